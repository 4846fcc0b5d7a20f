"""The leading components' scores by item, under the true labels and under shuffled ones."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from palinka.analyses.generalized_eigendecomposition import (
    GeneralizedEigendecomposition,
    permuted_labels,
)
from palinka.analyses.generalized_eigendecomposition import (
    generalized_eigendecomposition as decompose,
)
from palinka.figures.style import HUES, MUTED, new_figure

# More items than this cannot be named beside an axis, and no name takes more characters.
MOST_LABELS, LONGEST_LABEL = 60, 48

Array = NDArray[np.float64]


def directions(names: tuple[str, str]) -> tuple[str, str]:
    """What the two directions are called."""
    return f"{names[0]} over {names[1]}", f"{names[1]} over {names[0]}"


def draw_scores(
    result: GeneralizedEigendecomposition,
    names: tuple[str, str],
    first: NDArray[np.bool_] | None,
    items: Sequence[str] | None,
) -> Figure:
    """Both leading components by item, beside the items' names where these are few.

    Args:
        result: What the analysis found.
        names: Of the conditions.
        first: `(items,)`, which of them are of the first condition, if that is known.
        items: What to call them.
    """
    count = len(result.scores_a)
    named = items is not None and len(items) == count <= MOST_LABELS
    labels = [_shortened(item) for item in items] if named and items is not None else []
    if named:
        height, longest = 1.2 + 0.13 * count, max(map(len, labels))
        figure, panels = new_figure(7.0 + 0.05 * longest, height, ncols=2, sharey=True)
    else:
        figure, panels = new_figure(8.5, 4.6, nrows=2, sharex=True)
    units = names[::-1]
    for axes, scores, direction, unit in zip(
        panels, (result.scores_a, result.scores_b), directions(names), units, strict=True
    ):
        _draw_stems(axes, scores, first, names, upright=not named)
        label = f"score (SD in {unit})"
        axes.set(title=direction, **({"xlabel": label} if named else {"ylabel": label}))
    if named:
        panels[0].set_yticks(range(count), labels, fontsize=6, parse_math=False)
        panels[0].set_ylim(count - 0.4, -0.6)
    else:
        panels[-1].set_xlabel("item")
    if first is not None:
        panels[0].legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2)
    return figure


def _shortened(label: str) -> str:
    return label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 1] + "…"


def _draw_stems(
    axes: Axes,
    scores: Array,
    first: NDArray[np.bool_] | None,
    names: tuple[str, str],
    upright: bool = True,
) -> None:
    """A point on a stem for each item, in the color of its condition."""
    places = np.arange(len(scores))
    line = axes.axhline if upright else axes.axvline
    line(0.0, color=MUTED, linewidth=0.8, zorder=0)
    groups = [(slice(None), HUES[0], None)]
    if first is not None:
        groups = [(first, HUES[0], names[0]), (~first, HUES[1], names[1])]  # type: ignore[list-item]
    for chosen, hue, label in groups:
        stems = axes.vlines if upright else axes.hlines
        stems(places[chosen], 0.0, scores[chosen], color=hue, linewidth=0.7, alpha=0.6)
        x, y = (places, scores) if upright else (scores, places)
        axes.plot(x[chosen], y[chosen], "o", color=hue, ms=3, label=label)


def draw_shuffled(
    result: GeneralizedEigendecomposition, both: tuple[Array, Array], names: tuple[str, str],
    seed: int,
) -> Figure:  # fmt: skip
    """The true labeling in the left column, a shuffled one in the right.

    Args:
        result: What the analysis found.
        both: `(items, d)` each, that it was run on.
        names: Of the conditions.
        seed: Of the shuffled labeling.

    Raises:
        InputError: If the shuffled labeling leaves a covariance that cannot be inverted.
    """
    shuffled_a, shuffled_b, order = permuted_labels(*both, pairs=result.pairs, seed=seed)
    other = decompose(shuffled_a, shuffled_b, result.variance, result.shrinkage)
    count = len(order)
    place = np.argsort(order)  # back to the items' own order
    true, drawn = np.arange(count) < len(both[0]), place < len(both[0])
    figure, panels = new_figure(9.0, 7.0, nrows=3, ncols=2, sharey="row")
    for column, (title, each, labels, take) in enumerate(
        (
            ("True labels", result, true, np.arange(count)),
            ("One shuffled labeling", other, drawn, place),
        )
    ):
        spectrum = panels[0, column]
        for name, direction, hue in zip("ab", directions(names), HUES, strict=False):
            eigenvalues = getattr(each, f"eigenvalues_{name}")
            spectrum.plot(
                np.arange(1, len(eigenvalues) + 1), eigenvalues, "o-", ms=3, color=hue,
                label=direction,
            )  # fmt: skip
        spectrum.set(title=title, xlabel="generalized component")
        for row, name, direction in zip((1, 2), "ab", directions(names), strict=False):
            axes = panels[row, column]
            _draw_stems(axes, getattr(each, f"scores_{name}")[take], labels, names)
            axes.set_title(direction)
        panels[2, column].set_xlabel("item, colored by its label")
    panels[0, 0].set_ylabel("eigenvalue (variance ratio)")
    panels[0, 1].legend()
    panels[1, 1].legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2)
    for row, unit in ((1, names[1]), (2, names[0])):
        panels[row, 0].set_ylabel(f"score (SD in {unit})")
    return figure
