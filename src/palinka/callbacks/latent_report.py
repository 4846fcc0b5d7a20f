"""What is known of each latent: how often it fires, where most, what it writes, what is near."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from palinka.analyses.result import Result, Table


@dataclass(frozen=True)
class Texts:
    """Tokens and rows as people read them.

    Attributes:
        tokens: By token id.
        around: The text around a row's token, which stands between `⟦` and `⟧`, by row.
    """

    tokens: dict[int, str]
    around: dict[int, str]


@dataclass(frozen=True)
class LatentReport(Result):
    """One row for each latent in every array.

    Attributes:
        density: The share of tokens at which it is active, in per cent.
        activation: The mean magnitude over those tokens.
        nearest: The latents with the nearest directions, `(latents, n)`.
        nearest_cosine: Their cosines.
        top_activation: Its largest activations, `(latents, n)`; 0 where there are no more.
        top_row: The validation rows that they stand in; -1 where there are no more.
        top_document: The documents of those rows.
        top_position: The tokens' places in their documents.
        raised, lowered: The tokens whose logits it raises and lowers most by the direct path,
            `(latents, n)`; None where there is no such path.
        raised_by, lowered_by: By how much, in units without a meaning.
        text: What `tables` shows: tokens by id, and the surroundings of each top activation.
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
        """The share of latents that are active anywhere, in per cent."""
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
