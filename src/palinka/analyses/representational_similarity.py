"""Representational similarity analysis (RSA) of two sites."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from palinka.analyses.result import Result, Table, as_float64, takes
from palinka.analyses.stats.bootstrap import resampled_scores
from palinka.analyses.stats.similarity import (
    Comparison,
    compare_matrices,
    cosine_similarity,
    is_constant,
    mantel_scores,
    members_of,
    selectivity_index,
    similarity_between,
    similarity_within,
)
from palinka.errors import InputError

# The same labeling, permuted, may score less than the observed one by rounding alone.
ROUNDING = 1e-12


@dataclass(frozen=True)
class RepresentationalSimilarity(Result):
    """Similarities among the same words at two sites, and their comparison.

    Attributes:
        similarity_x: Cosine similarity at the first site, `(items, items)`.
        similarity_y: The same at the second.
        score: Similarity of the two matrices, by `compare`.
        group_scores: The same among the words of each group alone, `(groups,)`, in order of first
            appearance; NaN for groups of two words, empty without groups.
        selectivity_x: Mean similarity within groups over mean similarity between groups, at the
            first site; `None` without groups.
        selectivity_y: The same at the second.
        p_value: One-sided, by permuted words, as if the words were exchangeable: words of one
            stem, which are alike at both sites, are not. `None` without permutations.
        score_interval: 2.5th and 97.5th percentile of `score` over resampled words, `(2,)`, as if
            the words were independent draws. It covers 92 to 98 % from 16 words where the sites
            share an arrangement, and up to 100 % where they do not. `None` without permutations,
            and for CKA.
        compare: Kind of the score.
        group_names: In order of first appearance.
        membership: The group of each item as an index into `group_names`, `(items,)`; `None`
            without groups.
    """

    similarity_x: NDArray[np.float64]
    similarity_y: NDArray[np.float64]
    score: float
    group_scores: NDArray[np.float64]
    selectivity_x: float | None
    selectivity_y: float | None
    p_value: float | None
    score_interval: NDArray[np.float64] | None
    compare: Comparison
    group_names: tuple[str, ...]
    membership: NDArray[np.int64] | None

    def scalars(self) -> dict[str, float]:
        """The numbers, with the ends of the interval as `score_low` and `score_high`."""
        scalars = super().scalars()
        if self.score_interval is not None:
            scalars["score_low"], scalars["score_high"] = map(float, self.score_interval)
        return scalars

    def tables(self) -> dict[str, Table]:
        """One row per group, where there are groups."""
        if self.membership is None:
            return {}
        return {
            "groups": {
                "group": self.group_names,
                "words": np.bincount(self.membership),
                "score": self.group_scores,
                "within_x": similarity_within(self.similarity_x, self.membership),
                "within_y": similarity_within(self.similarity_y, self.membership),
            }
        }


@takes("two sites")
def representational_similarity(
    x: ArrayLike,
    y: ArrayLike,
    groups: Sequence[Any] | NDArray[Any] | None = None,
    compare: Comparison = "pearson",
    permutations: int = 0,
    seed: int = 0,
) -> RepresentationalSimilarity:
    """Compare the similarities among words at one site with those at another.

    Args:
        x: Vectors of the words at the first site, `(items, d_x)`.
        y: Vectors of the same words in the same order at the second, `(items, d_y)`.
        groups: The group of every word, such as its category.
        compare: `"pearson"`, `"spearman"` or `"kendall"` (τ-a) over pairs of different words, or
            `"cka"` (linear, of the vectors scaled to unit length; the plain one, which is above
            zero even for unrelated sites where words are few: read it beside its p-value).
        permutations: Number of exchanges of the words of `y` for the p-value (Mantel's test), any
            word with any other and all its similarities with it, since pairs that share a word
            are not independent; and of resamples of words for the interval, within groups where
            there are any. 0: neither.
        seed: Of the shuffles and resamples.

    Returns:
        Both similarity matrices, their score, its p-value and interval, and per group.

    Raises:
        InputError: If there are fewer than three words, a group of one word, lists of different
            lengths, NaN, or a comparison that does not exist.

    Source:
        Kriegeskorte, Mur & Bandettini (2008); Mantel (1967); Schütt et al. (2023) for the
        interval; Kornblith et al. (2019) for CKA.
    """
    if compare not in get_args(Comparison):
        raise InputError(f"compare is {compare!r}; expected one of {_listed(get_args(Comparison))}")
    if permutations < 0:
        raise InputError(f"permutations is {permutations}; expected 0 or more")
    x, y = as_float64(x, "x", minimum_rows=3), as_float64(y, "y", minimum_rows=3)
    if len(x) != len(y):
        raise InputError(
            f"x has {len(x)} items and y has {len(y)}; give vectors of the same words in both"
        )
    names, membership = ((), None) if groups is None else _grouped(groups, len(x))
    similarity_x, similarity_y = cosine_similarity(x), cosine_similarity(y)
    score = compare_matrices(similarity_x, similarity_y, compare)
    notes = [
        *_zero_notes(similarity_x, "x"),
        *_zero_notes(similarity_y, "y"),
        *_score_notes(similarity_x, similarity_y, score, "all words"),
    ]

    strata = [np.arange(len(x))] if membership is None else members_of(membership)
    group_scores = []
    if membership is not None:
        for name, items in zip(names, strata, strict=True):
            of_x, of_y = (matrix[np.ix_(items, items)] for matrix in (similarity_x, similarity_y))
            group_scores.append(compare_matrices(of_x, of_y, compare))
            notes += _score_notes(of_x, of_y, group_scores[-1], f"group {name!r}")
        notes += _selectivity_notes(similarity_x, membership, "x")
        notes += _selectivity_notes(similarity_y, membership, "y")

    p_value, interval = None, None
    if permutations > 0:
        shuffles, draws = np.random.default_rng(seed).spawn(2)
        p_value = float("nan")
        if np.isfinite(score):
            null = mantel_scores(similarity_x, similarity_y, compare, permutations, shuffles)
            p_value = float((1 + (null >= score - ROUNDING).sum()) / (permutations + 1))
            if compare == "cka":
                notes.append(
                    f"CKA of these words, shuffled, is {null.mean():.3f} on average, not 0; for "
                    "the same reason it has no bootstrap interval"
                )
            else:
                resampled = resampled_scores(
                    similarity_x, similarity_y, compare, strata, permutations, draws
                )
                defined = resampled[np.isfinite(resampled)]
                interval = np.percentile(defined, [2.5, 97.5]) if len(defined) else None
                if left_out := len(resampled) - len(defined):
                    notes.append(
                        f"{left_out} of {len(resampled)} resamples of the words have no score"
                    )

    return RepresentationalSimilarity(
        similarity_x=similarity_x,
        similarity_y=similarity_y,
        score=score,
        group_scores=np.array(group_scores, dtype=np.float64),
        selectivity_x=None if membership is None else selectivity_index(similarity_x, membership),
        selectivity_y=None if membership is None else selectivity_index(similarity_y, membership),
        p_value=p_value,
        score_interval=interval,
        compare=compare,
        group_names=names,
        membership=membership,
        notes=tuple(notes),
    )


def _grouped(
    groups: Sequence[Any] | NDArray[Any], items: int
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Names of the groups in order of first appearance, and the index of each item's group."""
    labels = [str(group) for group in groups]
    if len(labels) != items:
        raise InputError(f"groups has {len(labels)} entries for {items} items; give one per item")
    names = tuple(dict.fromkeys(labels))
    membership = np.array([names.index(label) for label in labels])
    alone = [name for name, size in zip(names, np.bincount(membership), strict=True) if size == 1]
    if alone:
        raise InputError(
            f"one word alone in {'group' if len(alone) == 1 else 'groups'} {_listed(alone)}; "
            "expected two or more per group: add words or leave the group out"
        )
    return names, membership


def _selectivity_notes(
    similarity: NDArray[np.float64], membership: NDArray[np.int64], site: str
) -> list[str]:
    between = similarity_between(similarity, membership)
    if between.size == 0:
        return [f"there is one group only: {site} has no selectivity"]
    if between.mean() <= 0.0:
        return [
            f"groups have a mean similarity of {between.mean():.3g} with each other in {site}: its "
            "selectivity, a ratio, has no meaning"
        ]
    return []


def _zero_notes(similarity: NDArray[np.float64], site: str) -> list[str]:
    zero = int((similarity.diagonal() == 0.0).sum())
    return [f"{zero} words are all zeros in {site}: their cosines are 0"] if zero else []


def _score_notes(
    x: NDArray[np.float64], y: NDArray[np.float64], score: float, which: str
) -> list[str]:
    if len(x) == 2:
        return [f"{which} has two words, and so no score"]
    constant = [name for name, matrix in (("x", x), ("y", y)) if is_constant(matrix)]
    if constant:
        value = "no score" if np.isnan(score) else f"a score of {score:.3g}"
        return [
            f"all pairs of words are equally similar in {' and '.join(constant)}: {which} has "
            f"{value}"
        ]
    return []


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)
