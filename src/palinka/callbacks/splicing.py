"""What a language model's loss becomes when something takes the place of a site's activations."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from palinka.analyses.document_intervals import Ratios
from palinka.corpora import Block
from palinka.kernels.collectives import gather_unequal_rows, world
from palinka.language_models import LanguageModel
from palinka.language_models.next_token import cross_entropy, kl_divergence
from palinka.language_models.replacement import EncodesAndDecodes, as_function

# Sums over the predicted tokens of a document.
COLUMNS = (
    "tokens", "ce_clean", "ce_spliced", "ce_ablated", "ce_ablated_mean", "kl",
    "error_spliced", "error_ablated_mean",
)  # fmt: skip
# So many logits are computed at once where no batch size is given: 64 MiB in float32.
BATCH_LOGITS = 1 << 24


def _weights(**columns: float) -> list[float]:
    return [columns.get(name, 0.0) for name in COLUMNS]


_TOKENS = _weights(tokens=1)
RATIOS: Ratios = {
    "ce_clean": (_weights(ce_clean=1), _TOKENS),
    "ce_spliced": (_weights(ce_spliced=1), _TOKENS),
    "ce_delta": (_weights(ce_spliced=1, ce_clean=-1), _TOKENS),
    "ce_ablated": (_weights(ce_ablated=1), _TOKENS),
    "ce_ablated_mean": (_weights(ce_ablated_mean=1), _TOKENS),
    "loss_recovered": (
        _weights(ce_ablated=1, ce_spliced=-1),
        _weights(ce_ablated=1, ce_clean=-1),
    ),
    "loss_recovered_mean": (
        _weights(ce_ablated_mean=1, ce_spliced=-1),
        _weights(ce_ablated_mean=1, ce_clean=-1),
    ),
    "kl": (_weights(kl=1), _TOKENS),
}
# Where a further site is looked at.
ERROR_RATIOS: Ratios = {
    "site_mse": (_weights(error_spliced=1), _TOKENS),
    "site_recovered": (
        _weights(error_ablated_mean=1, error_spliced=-1),
        _weights(error_ablated_mean=1),
    ),
}


def splice(
    model: LanguageModel,
    site: str,
    autoencoder: EncodesAndDecodes,
    mean: NDArray[np.float64],
    contexts: Iterable[Block],
    *,
    skip: int = 0,
    batch_size: int | None = None,
    share: tuple[int, int] = (0, 1),
    source_site: str | None = None,
    error_site: str | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Sum up the losses of a model as it is, spliced and ablated, document by document.

    Every next token within a context counts, for the document that it belongs to. The first
    `skip` tokens of a context are left as they are in every case: the autoencoder has not been
    trained on their like.

    Args:
        model: The language model.
        site: Where the reconstruction, zeros, or the mean take the place of activations.
        autoencoder: From raw activations to latents and back.
        mean: The site's mean, `(width,)`.
        contexts: Token blocks; neighbors of one length go through the model together.
        skip: How many leading tokens of each context keep their activations.
        batch_size: Contexts per forward pass; as many as make 64 MiB of logits if left out.
        share: Of `(n, of)`, take every `of`-th batch, beginning with the `n`-th.
        source_site: Where a transcoder reads, in the same forward pass; `site` if left out.
        error_site: Where to look at how far activations move from the clean ones, such as that of
            a later block; nowhere if left out.

    Returns:
        The documents in ascending order, `(documents,)`, and their sums, `(documents, columns)`
        with the columns of `COLUMNS`.
    """
    found: dict[int, NDArray[np.float64]] = {}
    run = _Run(model, source_site or site, site, autoencoder, mean, skip, error_site)
    vocabulary = int(model.model.config.vocab_size)
    for number, batch in enumerate(_batches(contexts, vocabulary, batch_size)):
        if number % share[1] != share[0]:
            continue
        tokens = torch.from_numpy(np.stack([block.tokens for block in batch])).to(model.device)
        sums = run.losses(tokens).cpu().numpy()
        documents = np.stack([block.documents for block in batch])[:, 1:].reshape(-1)
        own, places = np.unique(documents, return_inverse=True)
        for document, place in zip(own.tolist(), range(len(own)), strict=True):
            row = sums[:, places == place].sum(axis=1)
            found[document] = found.get(document, 0.0) + row
    order = sorted(found)
    table = (
        np.stack([found[document] for document in order]) if order else np.zeros((0, len(COLUMNS)))
    )
    return np.array(order, dtype=np.int64), table


def of_all_processes(
    documents: NDArray[np.int64], sums: NDArray[np.float64], device: torch.device
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Add up the documents' sums over the processes; the same on each of them.

    Args:
        documents: This process's documents, `(documents,)`.
        sums: Their sums, `(documents, columns)`.
        device: Where the processes exchange tensors.
    """
    rows = torch.from_numpy(np.column_stack([documents.astype(np.float64), sums])).to(device)
    gathered = gather_unequal_rows(rows, world()).cpu().numpy()
    everyone, places = np.unique(gathered[:, 0].astype(np.int64), return_inverse=True)
    total = np.zeros((len(everyone), sums.shape[1]))
    np.add.at(total, places, gathered[:, 1:])
    return everyone, total


@dataclass(frozen=True)
class _Run:
    """What `splice` is given, but for the tokens."""

    model: LanguageModel
    source_site: str
    site: str
    autoencoder: EncodesAndDecodes
    mean: NDArray[np.float64]
    skip: int
    error_site: str | None

    def losses(self, tokens: Tensor) -> Tensor:
        """What `COLUMNS` sums up, for every predicted token of a batch, `(columns, tokens)`."""
        targets = tokens[:, 1:]
        center = torch.from_numpy(self.mean).to(self.model.device)
        clean, before = self._clean(tokens)
        spliced, after = self._spliced(tokens)
        losses = [cross_entropy(clean, targets), cross_entropy(spliced, targets)]
        divergence = kl_divergence(clean, spliced)
        error = _error(before, after, divergence)
        del clean, spliced, after
        for ablation in (torch.zeros_like, lambda x: center.to(x).expand_as(x)):
            ablated, after = self._replaced(tokens, ablation)
            losses.append(cross_entropy(ablated, targets))
        ablated_error = _error(before, after, divergence)  # with the mean, which comes last
        values = [torch.ones_like(divergence), *losses, divergence, error, ablated_error]
        return torch.stack([value.flatten() for value in values])

    def _clean(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        with self._noting(self.error_site, tokens) as noted:
            logits = self.model.logits(tokens)[:, :-1]
        return logits, noted[0] if noted else None

    def _spliced(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        reconstruct = as_function(self.autoencoder, None, False)
        if self.source_site == self.site:
            return self._replaced(tokens, reconstruct)
        with self._noting(self.source_site, tokens) as source:
            return self._replaced(tokens, lambda _: reconstruct(source[0][:, self.skip :]))

    def _replaced(
        self, tokens: Tensor, replacement: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        kept = _from(self.skip, tokens.shape[1], replacement)
        with self.model.replaced(self.site, kept):
            return self._clean(tokens)

    @contextmanager
    def _noting(self, site: str | None, tokens: Tensor) -> Iterator[list[Tensor]]:
        """Keep what the model goes on with at a site, `(texts, tokens, width)`, in a list."""
        noted: list[Tensor] = []

        def note(x: Tensor) -> Tensor:
            noted[:] = [x.reshape(-1, tokens.shape[1], x.shape[-1])]
            return x

        if site is None:
            yield noted
        else:
            with self.model.replaced(site, note):
                yield noted


def _error(before: Tensor | None, after: Tensor | None, like: Tensor) -> Tensor:
    """The mean squared change of the activations of every token but the first of each context."""
    if before is None or after is None:
        return torch.zeros_like(like)
    return (before[:, 1:].double() - after[:, 1:].double()).square().mean(dim=-1).to(like)


def _from(
    skip: int, tokens: int, replacement: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    """A replacement that leaves the first tokens of each context as they are."""

    def replace(x: Tensor) -> Tensor:
        # Some models run their MLP on all tokens in one row.
        rows = x.reshape(-1, tokens, x.shape[-1])
        new = replacement(rows[:, skip:]).to(x)
        return torch.cat([rows[:, :skip], new], dim=1).view(x.shape)

    return replace


def _batches(
    contexts: Iterable[Block], vocabulary: int, batch_size: int | None
) -> Iterator[list[Block]]:
    predicted = (block for block in contexts if block.tokens.size > 1)
    for length, alike in groupby(predicted, key=lambda block: block.tokens.size):
        size = batch_size or max(1, BATCH_LOGITS // (vocabulary * length))
        while batch := list(islice(alike, size)):
            yield batch
