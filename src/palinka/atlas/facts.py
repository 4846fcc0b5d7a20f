"""Facts about every latent."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from palinka.analyses.stats.latents import ActivationHistogram, HistogramCounter, TopHeap
from palinka.atlas.against import Against, Other, compare
from palinka.atlas.text import Text, TokenActivations, TokenCounter, Windows, read_windows
from palinka.autoencoders.base import positive_integer
from palinka.data import ActivationDataModule
from palinka.errors import InputError
from palinka.language_models.token_text import token_bytes
from palinka.training import SparseAutoencoderModule
from palinka.training.callbacks.base import evaluating
from palinka.training.callbacks.latent_report import BATCH_ROWS, LatentReport, ReportLatents

BINS = 128  # of the histograms, from which percentiles are read


def random_priorities(
    batch: NDArray[np.float32], random: np.random.Generator
) -> NDArray[np.float32]:
    """Random priority in (0, 1] of every active entry, whose largest are a random sample.

    Source:
        Efraimidis & Spirakis (2006), Weighted random sampling with a reservoir, with weights of 1.
    """
    active = batch > 0
    priority = np.zeros(batch.shape, dtype=np.float32)
    priority[active] = 1.0 - random.random(int(active.sum()), dtype=np.float32)
    return priority


@dataclass(frozen=True)
class Options:
    """Amount of detail per latent.

    Args:
        contexts: Number of top-activating texts.
        quantiles: Number of activation bands of equal probability.
        per_quantile: Texts drawn from each band.
        sample: Active tokens drawn, from which those of the bands are chosen.
        tokens: Number of promoted tokens, and of suppressed ones.
        nearest: Number of nearest latents by decoder cosine.
        seed: Seed of the draws.
    """

    contexts: int = 10
    quantiles: int = 5
    per_quantile: int = 3
    sample: int = 64
    tokens: int = 10
    nearest: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name != "seed":
                positive_integer(name, value)
        least = self.quantiles * self.per_quantile
        if self.seed < 0 or self.sample < least:
            given = f"seed is {self.seed} and sample {self.sample}"
            least_sample = f"at least {least}, quantiles * per_quantile"
            raise InputError(f"{given}; expected at least 0, and {least_sample}")


@dataclass(frozen=True)
class LatentFacts:
    """Measurements of every latent."""

    report: LatentReport
    histogram: ActivationHistogram
    top: Windows  # the texts that activate it most
    bands: Windows  # texts from each band, strongest first, `per_quantile` of each
    quantiles: int  # number of bands
    vocabulary: Mapping[int, bytes]  # of every token that occurs
    rows: int  # number of rows measured
    tokens: TokenActivations
    lengths: NDArray[np.float32]  # norm of each latent's direction in raw activations
    norm: float  # median of the raw activations that latents are decoded to
    against: Against | None = None


def gather(
    data: ActivationDataModule, module: SparseAutoencoderModule, options: Options,
    against: Other | None = None,
) -> LatentFacts:  # fmt: skip
    """Measure every latent of a module on one device, in a pass over the rows and their texts."""
    latents, stored = module.autoencoder.latent_dim, data.validation_rows
    histogram = HistogramCounter(latents, BINS)
    sample, random = TopHeap(latents, options.sample), np.random.default_rng(options.seed)
    tokens = TokenCounter(stored.tokens(), latents)

    def watch(batch: NDArray[np.float32]) -> None:
        histogram.add(batch)
        sample.add(random_priorities(batch, random))
        tokens.add(batch)

    reporter = ReportLatents(options.contexts, options.tokens, options.nearest)
    report = reporter.report(data, module, watch)
    text = Text(data.validation_contexts())
    rows = np.hstack([report.top.rows, sample.result().rows])
    with evaluating(module):
        windows = read_windows(data, module, text, rows)
    columns = np.tile(np.arange(rows.shape[1]), (latents, 1))
    parts = np.split(columns, [report.top.rows.shape[1]], axis=1)
    top, sampled = (windows.chosen(part) for part in parts)
    changed = [report.effects[n].ravel() for n in ("raised", "lowered") if n in report.effects]
    ids = np.unique(np.concatenate([text.tokens, *changed])).tolist()
    # Ids beyond the tokenizer's only pad the embedding matrix.
    tokenizer = data.loaded_language_model.tokenizer
    known = [token for token in ids if token < len(tokenizer)]
    vocabulary = dict.fromkeys(ids, b"")
    vocabulary.update(zip(known, token_bytes(tokenizer, known), strict=True))
    written = stored.read_rows(0, min(stored.rows, BATCH_ROWS))[:, -module.autoencoder.output_dim :]
    directions = (module.autoencoder.dictionary / module.output_scaling.scale).detach().float()
    return LatentFacts(
        report,
        histogram.result(),
        top,
        sampled.chosen(choose_from_bands(sampled, options.quantiles, options.per_quantile)),
        options.quantiles,
        vocabulary,
        stored.rows,
        tokens.result(),
        directions.norm(dim=1).cpu().numpy(),
        float(written.float().norm(dim=1).median()),
        compare(data, module, against) if against else None,
    )


def choose_from_bands(sample: Windows, bands: int, each: int) -> NDArray[np.int64]:
    """Select windows of a random sample from each band of equal probability.

    Returns columns of the sample, `(latents, bands * each)`, the strongest first; -1 for none.
    """
    values = np.where(sample.places >= 0, sample.peak, -np.inf)
    edges = (sample.places >= 0).sum(axis=1)[:, None] * np.arange(bands + 1) // bands
    return choose_by_rank(values, edges, each)


def choose_by_rank(
    values: NDArray[np.floating[Any]], edges: NDArray[np.int64], each: int
) -> NDArray[np.int64]:
    """Select columns at even distances within ranges of the descending ranks of each row.

    Ranges lie between `edges`, `(rows, ranges + 1)`. Returns `(rows, ranges * each)`; -1 for none.
    """
    rows, n = values.shape
    first, members = edges[:, :-1, None], np.diff(edges)[:, :, None]
    shown, place = np.minimum(members, each), np.arange(each)
    # In the middle of each of `shown` equal parts of the range.
    at = first + (2 * place + 1) * members // np.maximum(1, 2 * shown)
    order = np.argsort(-values, axis=1, kind="stable")
    columns = np.take_along_axis(order, np.minimum(at, n - 1).reshape(rows, -1), axis=1)
    return np.where((place < shown).reshape(rows, -1), columns, -1)
