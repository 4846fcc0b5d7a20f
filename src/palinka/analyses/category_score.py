"""Which latents prefer the tokens of a category."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from palinka.analyses.blocks import blocks
from palinka.analyses.compiled import compiled
from palinka.analyses.permutation_p_values import permutation_p_values
from palinka.analyses.rank_auc import rank_auc
from palinka.analyses.result import Result, Table, as_matrix
from palinka.errors import InputError
from palinka.progress import progress

# How many numbers a working array may hold, whatever the number of tokens and latents.
WORKING_SIZE = 1 << 22


@dataclass(frozen=True)
class CategoryScore(Result):
    """How much each latent prefers the target tokens; arrays are `(latents,)`.

    Attributes:
        score: The mean of the non-zero activations at target tokens over that at the others.
        auc: The rank AUC as a detector of the targets, or `None` where it was not asked for.
        p_value: How probable it is that shuffled labels give any latent such a score, or
            `None` where no permutations were asked for.
    """

    score: NDArray[np.float64]
    auc: NDArray[np.float64] | None = None
    p_value: NDArray[np.float64] | None = None

    headline: ClassVar[tuple[str, ...]] = ("best", "best_score", "best_auc", "best_p_value")

    @property
    def best(self) -> int:
        """The latent with the highest score."""
        return int(self.score.argmax())

    @property
    def best_score(self) -> float:
        """The highest score."""
        return float(self.score[self.best])

    @property
    def best_auc(self) -> float | None:
        """The AUC of the latent with the highest score."""
        return None if self.auc is None else float(self.auc[self.best])

    @property
    def best_p_value(self) -> float | None:
        """The p-value of the latent with the highest score."""
        return None if self.p_value is None else float(self.p_value[self.best])

    def tables(self) -> dict[str, Table]:
        """The 100 latents with the highest scores, best first."""
        order = np.argsort(-self.score, kind="stable")[:100]
        columns = {name: values[order] for name, values in self.arrays().items()}
        return {"best_latents": {"rank": np.arange(1, len(order) + 1), "latent": order, **columns}}


def category_score(
    latents: ArrayLike,
    targets: ArrayLike,
    detector: bool = False,
    permutations: int = 0,
    seed: int = 0,
) -> CategoryScore:
    """Score how much each latent prefers the target tokens to all others.

    The score is the mean of a latent's non-zero activations at the targets divided by that at
    the other tokens, and 0 where either group's sum is not positive. A latent that never fires
    outside the category therefore scores 0: look at its AUC.

    The p-values correct for the number of latents: the labels are shuffled over tokens, each
    shuffle gives the largest score of any latent, and a latent's p-value is
    `(1 + shuffles with a largest score at least as high) / (permutations + 1)`. Latents that
    fire rarely make the largest shuffled score high, so the test is cautious.

    Args:
        latents: Activations, `(tokens, latents)`.
        targets: Which tokens belong to the category, `(tokens,)`, boolean.
        detector: Whether to compute the AUC; with permutations it always is.
        permutations: How many shuffles; 0 for no p-values.
        seed: Determines the shuffles.

    Returns:
        The score of every latent and, where asked for, its AUC and p-value.

    Raises:
        InputError: If no token or every token is a target, if the mask does not fit the
            latents, or if those hold NaN or infinities.

    Source:
        Westfall & Young (1993) for the maximum over latents; Phipson & Smyth (2010) for the
        ones in the p-value.
    """
    matrix = as_matrix(latents, "latents", minimum_rows=2)
    mask = _target_mask(targets, len(matrix))
    if permutations < 0:
        raise InputError(f"permutations is {permutations}; expected 0 or more")
    sums, counts = _sums_and_counts(matrix, mask)
    score = _ratios(sums[0], counts[0], sums[1], counts[1])
    auc = p_value = None
    if detector or permutations:
        auc = np.empty(len(score))
        for columns in blocks(len(score), WORKING_SIZE // len(matrix)):
            auc[columns] = rank_auc(matrix[:, columns], mask)
    if permutations:
        null = _largest_shuffled_scores(matrix, mask, permutations, seed)
        p_value = permutation_p_values(score, null)
    signed = matrix.min() < 0
    note = "activations are signed: a ratio of means need not show a preference; see the AUC"
    return CategoryScore(score, auc, p_value, notes=(note,) if signed else ())


def _target_mask(targets: ArrayLike, tokens: int) -> NDArray[np.bool_]:
    if hasattr(targets, "detach"):  # a torch tensor, maybe on another device
        targets = targets.detach().cpu().numpy()
    given = np.asarray(targets)
    mask = given.astype(bool)
    if given.shape != (tokens,):
        raise InputError(
            f"targets have the shape {given.shape} and there are {tokens} tokens; expected one "
            "true or false for each token"
        )
    if not np.array_equal(given, mask):
        raise InputError("targets hold other values than true and false; give a boolean mask")
    if mask.all() or not mask.any():
        which = "all" if mask.all() else "none"
        raise InputError(f"{which} of the {tokens} tokens are targets; a score needs both kinds")
    return mask


@compiled
def _sums_and_counts(
    latents: NDArray[Any], mask: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Sums and numbers of the non-zero activations of each group, `(2, latents)`; targets first."""
    sums = np.zeros((2, latents.shape[1]))
    counts = np.zeros((2, latents.shape[1]), dtype=np.int64)
    for token in range(latents.shape[0]):
        group = 0 if mask[token] else 1
        for latent in range(latents.shape[1]):
            sums[group, latent] += latents[token, latent]
            counts[group, latent] += latents[token, latent] != 0
    return sums, counts


def _largest_shuffled_scores(
    matrix: NDArray[Any], mask: NDArray[np.bool_], permutations: int, seed: int
) -> NDArray[np.float64]:
    """The largest score over all latents for each shuffle of the labels."""
    rng = np.random.default_rng(seed)
    tokens, latents = matrix.shape
    largest = np.zeros(permutations)
    with progress("Shuffling labels", permutations, "shuffles") as bar:
        for some in blocks(permutations, min(256, WORKING_SIZE // tokens)):
            n_some = len(largest[some])
            inside = rng.permuted(np.tile(mask, (n_some, 1)), axis=1)
            outside = ~inside
            for columns in blocks(latents, min(1024, WORKING_SIZE // tokens)):
                block = matrix[:, columns].astype(np.float64)
                # Counts below 2**24 are exact in float32, which multiplies twice as fast.
                nonzero = (block != 0).astype(np.float32)
                counts = inside.astype(np.float32) @ nonzero
                scores = _ratios(
                    inside.astype(np.float64) @ block,
                    counts,
                    outside.astype(np.float64) @ block,
                    nonzero.sum(axis=0) - counts,
                )
                np.maximum(largest[some], scores.max(axis=1), out=largest[some])
            bar.update(n_some)
    return largest


def _ratios(
    target_sums: NDArray[np.float64],
    target_counts: NDArray[Any],
    other_sums: NDArray[np.float64],
    other_counts: NDArray[Any],
) -> NDArray[np.float64]:
    """Ratios of means, and 0 where either sum is not positive."""
    positive = (target_sums > 0) & (other_sums > 0)
    ratios = np.zeros(target_sums.shape)
    np.divide(target_sums * other_counts, other_sums * target_counts, out=ratios, where=positive)
    return ratios
