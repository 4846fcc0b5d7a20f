"""Report on every latent."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from palinka.analyses.findings import Findings
from palinka.analyses.latent_statistics import latent_statistics
from palinka.analyses.result import Result, Table
from palinka.analyses.stats.latents import TopHeap, nearest_latents
from palinka.data import ActivationDataModule, RowContext
from palinka.errors import InputError, track
from palinka.language_models.direct_effect import TokenEffects, token_effects
from palinka.training.callbacks.tensorboard import write_findings
from palinka.training.callbacks.variants import EndOfRunCallback
from palinka.training.module import SparseAutoencoderModule


@dataclass(frozen=True)
class Texts:
    """Decoded tokens and contexts.

    Attributes:
        tokens: By token id.
        around: Text around a row's token, which is between `⟦` and `⟧`, by row.
    """

    tokens: dict[int, str]
    around: dict[int, str]


@dataclass(frozen=True)
class LatentReport(Result):
    """One row for each latent in every array.

    Attributes:
        density: Share of tokens at which it is active, in per cent.
        activation: Mean magnitude over those tokens.
        nearest: Latents with the nearest directions, `(latents, n)`.
        nearest_cosine: Their cosines.
        top_activation: Largest activations, `(latents, n)`, padded with 0.
        top_row: Their validation rows, padded with -1.
        top_document: Documents of those rows.
        top_position: Positions of the tokens in their documents.
        raised, lowered: Tokens whose logits it raises and lowers most by the direct path,
            `(latents, n)`; None without such a path.
        raised_by, lowered_by: Size of these effects, in arbitrary units.
        text: Decoded tokens and contexts for `tables`.
    """

    density: NDArray[np.float64]
    activation: NDArray[np.float64]
    nearest: NDArray[np.int64]
    nearest_cosine: NDArray[np.float32]
    top_activation: NDArray[np.float32]
    top_row: NDArray[np.int64]
    top_document: NDArray[np.int64]
    top_position: NDArray[np.int64]
    raised: NDArray[np.int64] | None
    raised_by: NDArray[np.float32] | None
    lowered: NDArray[np.int64] | None
    lowered_by: NDArray[np.float32] | None
    text: Texts

    headline: ClassVar[tuple[str, ...]] = ("alive",)

    @property
    def alive(self) -> float:
        """Share of latents that are active anywhere, in per cent."""
        return 100.0 * float((self.density > 0).mean())

    def tables(self) -> dict[str, Table]:
        """One row for each latent, and one for each of its top activations."""
        count = len(self.density)
        latents: Table = {
            "latent": np.arange(count),
            "density": self.density,
            "activation": self.activation,
            "nearest": [" ".join(map(str, row)) for row in self.nearest.tolist()],
            "nearest_cosine": [" ".join(f"{c:.3f}" for c in row) for row in self.nearest_cosine],
        }
        for name, tokens in (("raises", self.raised), ("lowers", self.lowered)):
            if tokens is not None:
                latents[name] = [
                    " ".join(repr(self.text.tokens[token]) for token in row)
                    for row in tokens.tolist()
                ]
        there = self.top_row >= 0
        latent, rank = np.nonzero(there)
        contexts: Table = {
            "latent": latent,
            "rank": rank + 1,
            "activation": self.top_activation[there],
            "document": self.top_document[there],
            "position": self.top_position[there],
            "text": [self.text.around[row] for row in self.top_row[there].tolist()],
        }
        return {"latents": latents, "contexts": contexts}


BATCH_ROWS = 4096
# Tokens shown before and after the one at which a latent is active.
AROUND = 12


class ReportLatents(EndOfRunCallback):
    """Report on every latent, in `<log_dir>/analyses/latents/`.

    One pass over the validation rows, on the process that logs, at the end of `validate`,
    `test` and `fit`. `latents.csv` has a row for each latent: how often it is active and how
    strongly, the latents with the nearest directions, and the tokens whose logits it raises and
    lowers most by the direct path through the unembedding, where there is one from the site.
    `contexts.csv` has the texts in which it is most active; `arrays.npz` has all numbers.

    Args:
        contexts: Number of texts for each latent.
        tokens: Number of tokens that it raises, and that it lowers.
        nearest: Number of latents with near directions.

    Raises:
        InputError: If a number is below 1.
    """

    what = "report on latents"

    def __init__(self, contexts: int = 10, tokens: int = 10, nearest: int = 5) -> None:
        for name, value in (("contexts", contexts), ("tokens", tokens), ("nearest", nearest)):
            if value < 1:
                raise InputError(f"{name} is {value}; expected at least 1")
        self.contexts = contexts
        self.tokens = tokens
        self.nearest = nearest

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report on a checkpoint."""
        self.write_where_possible(trainer, pl_module)

    def write(
        self, trainer: pl.Trainer, module: SparseAutoencoderModule, data: ActivationDataModule
    ) -> None:
        """Write the report to the disk and to the logger."""
        result = self.report(data, module)
        settings = {**data.source, "rows": data.validation_rows.rows}
        write_findings(Findings("latents", {"": result}, settings=settings), trainer)

    def report(
        self,
        data: ActivationDataModule,
        module: SparseAutoencoderModule,
        watch: Callable[[NDArray[np.float32]], None] = lambda latents: None,
    ) -> LatentReport:
        """Report on the latents of a module over the validation rows.

        Args:
            data: Data module with the rows, their texts and the language model.
            module: The module; not sharded.
            watch: Called with every batch of latents, `(rows, latents)`, in order of the rows.
        """
        rows = data.validation_rows
        heap = TopHeap(module.autoencoder.latent_dim, self.contexts)

        def batches() -> Iterator[Tensor]:
            starts = range(0, rows.rows, BATCH_ROWS)
            for start in track(starts, "encoding latents", len(starts)):
                batch = rows.read_rows(start, min(start + BATCH_ROWS, rows.rows))
                with torch.no_grad():
                    latents = module.encode(batch[:, : data.width].to(module.device)).float().cpu()
                heap.add(latents.numpy())
                watch(latents.numpy())
                yield latents

        training = module.training
        module.eval()
        try:
            statistics = latent_statistics(batches())
        finally:
            module.train(training)
        top = heap.result()
        # In raw units: what one unit of a latent adds to the site.
        directions = (module.autoencoder.dictionary / module.output_scaling.scale).detach()
        near = nearest_latents(directions.float().cpu().numpy(), self.nearest)
        model = data.loaded_language_model
        effects: TokenEffects | None = None
        notes: tuple[str, ...] = ()
        try:
            effects = token_effects(
                model, data.validation_spec.resolved_sites[-1], directions, self.tokens
            )
        except InputError as error:
            notes = (str(error),)
        written = [] if effects is None else [effects.raised, effects.lowered]
        ids = {token for tensor in written for token in tensor.flatten().tolist()}
        places = {int(row): rows.context(int(row)) for row in np.unique(top.rows) if row >= 0}

        def decode(ids: list[int]) -> str:
            return str(model.tokenizer.decode(ids))

        empty = RowContext(np.zeros(0, np.int32), 0, -1, -1)
        found = [places.get(int(row), empty) for row in top.rows.flat]
        return LatentReport(
            density=statistics.density,
            activation=statistics.activation,
            nearest=near.latents,
            nearest_cosine=near.cosines,
            top_activation=top.values,
            top_row=top.rows,
            top_document=np.array([c.document for c in found]).reshape(top.rows.shape),
            top_position=np.array([c.position for c in found]).reshape(top.rows.shape),
            raised=effects and effects.raised.numpy(),
            raised_by=effects and effects.raised_by.numpy(),
            lowered=effects and effects.lowered.numpy(),
            lowered_by=effects and effects.lowered_by.numpy(),
            text=Texts(
                {token: decode([token]) for token in ids},
                {row: _around(decode, place) for row, place in places.items()},
            ),
            notes=notes,
        )


def _around(decode: Callable[[list[int]], str], place: RowContext) -> str:
    """Decode a row's token, marked, in its context."""
    before = place.tokens[max(0, place.offset - AROUND) : place.offset]
    after = place.tokens[place.offset + 1 : place.offset + 1 + AROUND]
    token = place.tokens[place.offset : place.offset + 1]
    left, middle, right = (decode(part.tolist()) for part in (before, token, after))
    return f"{left}⟦{middle}⟧{right}"
