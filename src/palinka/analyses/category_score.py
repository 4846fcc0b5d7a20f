"""Preference of latents for the tokens of a category."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from palinka.analyses.result import Array, Mask, Result, Table, as_matrix, p_text, takes
from palinka.analyses.stats.latents import auc_of_ranks, column_ranks
from palinka.analyses.stats.permutation import chunks, permutation_p_values
from palinka.errors import InputError, progress

# Largest number of elements of a working array, for any number of tokens and latents.
CHUNK_ELEMENTS = 1 << 22
# Whole words are exchanged where there are this many in the category, and outside it.
MIN_WORDS = 8
# A category is clumped if none of this many exchanges of its words is (p = 0.005).
CLUMPING_EXCHANGES = 199


@dataclass(frozen=True)
class CategoryScore(Result):
    """Preference of each latent for the target tokens; arrays are `(latents,)`.

    Attributes:
        score: The mean of the non-zero activations at target tokens over that at the others.
        auc: The rank AUC as a detector of the targets; `None` where not computed.
        p_value: Probability of such a score of any latent under exchanged labels, or `None`.
        auc_p_value: The same of the AUC.
        null_score: The largest score of any latent under each exchange, `(exchanges,)`, or `None`.
        null_auc: The same of the AUC.
        coverage: Share of the target tokens at which each latent is not zero.
    """

    score: Array
    auc: Array | None = None
    p_value: Array | None = None
    auc_p_value: Array | None = None
    null_score: Array | None = None
    null_auc: Array | None = None
    coverage: Array | None = None

    def scalars(self) -> dict[str, float]:
        """The latents with the highest score and the highest AUC, these, and their p-values.

        No latent is best by score where none has a positive one.
        """
        best, numbers = int(self.score.argmax()), {}
        if self.score[best] > 0:
            numbers = {"best": best, "best_score": self.score[best]}
            if self.p_value is not None:
                numbers["best_p_value"] = self.p_value[best]
        if self.auc is not None:
            best = int(self.auc.argmax())
            numbers |= {"best_auc_unit": best, "best_auc": self.auc[best]}
        if self.auc_p_value is not None:
            numbers["best_auc_p_value"] = self.auc_p_value[best]
        return {name: float(value) for name, value in numbers.items()}

    def headline(self, units: str, conditions: Sequence[str]) -> str:
        """The best by AUC and by score, with corrected p and their share of the category.

        A small p of one of them is not yet a detector: its AUC and share of the tokens tell.
        """
        found = []
        for kind, values, p, null in (
            ("AUC", self.auc, self.auc_p_value, self.null_auc),
            ("score", self.score, self.p_value, self.null_score),
        ):
            if values is None:
                continue
            if not values.max() > 0:
                found.append(f"no {units.removesuffix('s')} has a positive {kind}")
                continue
            best = int(values.argmax())
            line = f"best {kind} {values[best]:.4g}, {units.removesuffix('s')} {best}"
            if units == "latents" and self.coverage is not None:
                line += f", active at {100 * self.coverage[best]:.3g} % of the category's tokens"
            found.append(f"{line}, {p_text(None if p is None else p[best], null)}")
        over = f"; each p is over all {len(self.score):,} {units}, for this text's words only"
        return "; ".join(found) + over * (self.p_value is not None)

    def tables(self) -> dict[str, Table]:
        """The 100 latents with the highest scores and those with the highest AUC, best first."""
        tables: dict[str, Table] = {}
        for name, ranking in (("best_latents", self.score), ("best_latents_by_auc", self.auc)):
            if ranking is not None:
                order = np.argsort(-ranking, kind="stable")[:100]
                arrays = self.arrays().items()
                columns = {n: values[order] for n, values in arrays if not n.startswith("null_")}
                ranks = np.arange(1, len(order) + 1)
                tables[name] = {"rank": ranks, "latent": order, **columns}
        return tables


@takes("categories of a passage")
def category_score(
    latents: ArrayLike, targets: ArrayLike, detector: bool = False, permutations: int = 0,
    seed: int = 0, words: ArrayLike | None = None, documents: ArrayLike | None = None,
) -> CategoryScore:  # fmt: skip
    """Score the preference of each latent for the target tokens.

    The score is the mean of a latent's non-zero activations at the targets divided by that at
    the other tokens, and 0 where either sum is not positive, as of a latent that never fires
    outside the category, whose AUC is high.

    The p-values are one-sided and correct for the number of latents: `(1 + exchanges of labels
    with a largest value, of any latent, at least as high) / (exchanges + 1)`. Latents that fire
    rarely make the largest score high, so its test is cautious.

    Tokens of a text are not exchangeable, since neighbors and repeated words have similar
    activations. With `words`, the labels of whole words are exchanged, all occurrences of a word
    keeping one label, as if any word, frequent or rare, could belong to the category. That takes
    8 words in the category and 8 outside, none of which is in both, and targets that are not
    clumped (no exchange has such uneven gaps between them), since an exchange would scatter them.
    Otherwise the labels are shifted circularly within each document by uniformly random distances
    (in one document by every distance, where `permutations` allows), which keeps their layout and
    assumes that activations are stationary within a document. `notes` has which was done.

    Args:
        latents: Activations, `(tokens, latents)`.
        targets: Mask of the category's tokens, `(tokens,)`, boolean.
        detector: Compute the AUC; with permutations it always is.
        permutations: Number of exchanges; 0 for no p-values.
        seed: Determines the exchanges.
        words: The word of each token, such as its token id, `(tokens,)`.
        documents: The document of each token, `(tokens,)`; default one document.

    Source:
        Westfall & Young (1993) for the maximum over latents; Phipson & Smyth (2010) for the
        ones in the p-value.
    """
    matrix = as_matrix(latents, "latents", minimum_rows=2)
    marks = _per_token(targets, "targets", len(matrix))
    mask = marks.astype(bool)
    if not np.array_equal(marks, mask):
        raise InputError("targets hold other values than true and false; give a boolean mask")
    if mask.all() or not mask.any():
        which = f"{'all' if mask.all() else 'none'} of the {len(mask)} tokens are targets"
        raise InputError(f"{which}; a score needs both kinds")
    notes = []
    if matrix.min() < 0:
        caution = "a ratio of means need not show a preference; see the AUC"
        notes.append(f"activations are signed: {caution}")
    labels = mask[None]
    if permutations:
        exchanged, note = _exchange_labels(mask, words, documents, permutations, seed)
        labels = np.concatenate([labels, exchanged])
        notes.append(note)
    detector |= permutations > 0
    (score, auc), nulls = _scores_and_aucs(matrix, labels, detector)
    tested: Any = (*map(permutation_p_values, (score, auc), nulls), *nulls) if permutations else ()
    given: dict[str, Any] = {"coverage": (matrix[mask] != 0).mean(axis=0), "notes": tuple(notes)}
    return CategoryScore(score, auc if detector else None, *tested, **given)


def _per_token(values: ArrayLike, name: str, tokens: int) -> NDArray[Any]:
    """The values as an array; a torch tensor may be on another device."""
    given = np.asarray(values.cpu() if hasattr(values, "cpu") else values)
    if given.shape != (tokens,):
        problem = f"{name} have the shape {given.shape} and there are {tokens} tokens"
        raise InputError(f"{problem}; expected one for each token")
    return given


def _ratios(
    target_sums: Array, target_counts: NDArray[Any], other_sums: Array, other_counts: NDArray[Any]
) -> Array:
    """Ratios of means, and 0 where either sum is not positive."""
    positive = (target_sums > 0) & (other_sums > 0)
    ratios = np.zeros(target_sums.shape)
    np.divide(target_sums * other_counts, other_sums * target_counts, out=ratios, where=positive)
    return ratios


def _exchange_labels(
    mask: Mask, words: ArrayLike | None, documents: ArrayLike | None, permutations: int, seed: int
) -> tuple[Mask, str]:
    """Exchanged labels, `(exchanges, tokens)`, and a note on the exchange."""
    rng = np.random.default_rng(seed)
    if words is not None:
        kinds, word = np.unique(_per_token(words, "words", len(mask)), return_inverse=True)
        labels = np.zeros(len(kinds), dtype=bool)
        labels[word[mask]] = True
        inside, outside = int(labels.sum()), int((~labels).sum())
        if np.array_equal(labels[word], mask) and min(inside, outside) >= MIN_WORDS:
            unevenness = _unevenness(mask)
            shuffles = (rng.permutation(labels)[word] for _ in range(CLUMPING_EXCHANGES))
            if any(_unevenness(shuffle) >= unevenness for shuffle in shuffles):
                shuffled = rng.permuted(np.tile(labels, (permutations, 1)), axis=1)
                return shuffled[:, word], (
                    f"p-values exchange the labels of whole words, {inside} of the category and "
                    f"{outside} others, as if frequent and rare words alike could belong to it"
                )
    document = _per_token(mask * 0 if documents is None else documents, "documents", len(mask))
    starts = np.flatnonzero(np.append(True, document[1:] != document[:-1]))
    lengths = np.diff(starts, append=len(mask))
    if len(starts) == 1 and len(mask) - 1 <= permutations:
        shifts = np.arange(1, len(mask))[:, None]
    else:
        shifts = rng.integers(0, lengths, size=(permutations, len(lengths)))
    start, length = np.repeat(starts, lengths), np.repeat(lengths, lengths)
    place = np.arange(len(mask)) - start
    shifted = np.empty((len(shifts), len(mask)), dtype=bool)
    for row, shift in zip(shifted, shifts, strict=True):
        row[:] = mask[start + (place - np.repeat(shift, lengths)) % length]
    return shifted, (
        f"p-values shift the labels circularly within each document ({len(shifted)} shifts), as "
        "if activations were stationary there"
    )


def _unevenness(mask: Mask) -> float:
    """Mean square of the gaps between targets over their squared mean, up to a factor."""
    positions = np.flatnonzero(mask)
    gaps = np.diff(positions, append=positions[0] + len(mask))
    return float(len(gaps) * (gaps.astype(np.float64) ** 2).sum())


def _scores_and_aucs(
    matrix: NDArray[Any], labels: Mask, detector: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scores and AUCs, `(2, latents)`, by the first labels; the largest by each of the others.

    Without `detector` the AUCs are zeros.
    """
    tokens, latents = matrix.shape
    observed, largest = np.zeros((2, latents)), np.zeros((2, len(labels)))
    with progress("Exchanging labels", latents, "latents") as bar:
        for columns in chunks(latents, min(1024, CHUNK_ELEMENTS // tokens)):
            part = matrix[:, columns].astype(np.float64)
            ranks = column_ranks(part) if detector else None
            # Counts below 2**24 are exact in float32, which multiplies twice as fast.
            nonzero = (part != 0).astype(np.float32)
            for some in chunks(len(labels), min(256, CHUNK_ELEMENTS // tokens)):
                inside = labels[some]
                counts = inside.astype(np.float32) @ nonzero
                sums, other_sums = (m.astype(np.float64) @ part for m in (inside, ~inside))
                values = np.zeros((2, *counts.shape))
                values[0] = _ratios(sums, counts, other_sums, nonzero.sum(axis=0) - counts)
                if ranks is not None:
                    values[1] = auc_of_ranks(ranks, inside)
                if some.start == 0:
                    observed[:, columns] = values[:, 0]
                np.maximum(largest[:, some], values.max(axis=2), out=largest[:, some])
            bar.update(part.shape[1])
    return observed, largest[:, 1:]
