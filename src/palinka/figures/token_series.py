"""A component's score on every token of a text, the two versions of a frame one on the other."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from palinka.figures.style import HUES, MUTED, mark_zero, new_figure

TextSeries = tuple[Sequence[str], NDArray[np.float64], NDArray[np.float64]]
"""The tokens of a text, and their scores for the first condition over the second and back."""

# More frames than this are not drawn; more tokens than this are not named.
MOST_FRAMES, MOST_TOKENS = 6, 40
# Versions of one frame differ in no more tokens than this in either.
_LONGEST_TARGET = 3


def draw_series(series: Sequence[TextSeries], n_a: int, names: tuple[str, str]) -> Figure:
    """The first texts' scores in both directions, token by token.

    Where text `i` of either condition is the same frame with another target, the two are drawn
    over each other, and their corresponding tokens are joined. Other texts stand alone.

    Args:
        series: Of each text, in the order of the items: the first condition's texts first.
        n_a: How many texts are of the first condition.
        names: Of the conditions.
    """
    groups = _groups(series, n_a)[:MOST_FRAMES]
    most = min(max(len(series[text][0]) for group in groups for text in group), MOST_TOKENS)
    figure, panels = new_figure(
        max(8.0, 0.4 * most), 0.4 + 1.55 * len(groups), nrows=len(groups), ncols=2, squeeze=False,
        sharey="col",
    )  # fmt: skip
    for direction, units in ((0, names[1]), (1, names[0])):
        for row, group in enumerate(groups):
            axes = panels[row, direction]
            _draw_group(
                axes, [series[text] for text in group], [t >= n_a for t in group], direction
            )
            axes.set_ylabel(f"score (SD in {units})", fontsize="small")
        _limit(
            panels[:, direction], [series[text] for group in groups for text in group], direction
        )
        panels[0, direction].set_title(f"{names[direction]} over {names[1 - direction]}")
    for name, hue in zip(names, HUES, strict=False):
        panels[0, 1].plot([], [], "o-", color=hue, label=name)
    panels[0, 1].legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2)
    return figure


def corresponding(first: Sequence[str], second: Sequence[str]) -> tuple[int, int] | None:
    """How many tokens two versions of a frame share before and after the target.

    Returns:
        The two counts, or nothing if the two are no versions of one frame.
    """
    shorter = min(len(first), len(second))
    before = next((i for i in range(shorter) if first[i] != second[i]), shorter)
    rest = shorter - before
    after = next((i for i in range(rest) if first[-1 - i] != second[-1 - i]), rest)
    if max(len(first), len(second)) - before - after > _LONGEST_TARGET or before + after == 0:
        return None
    return before, after


def _groups(series: Sequence[TextSeries], n_a: int) -> list[tuple[int, ...]]:
    """Numbers of the texts to draw together."""
    pairs = [(i, n_a + i) for i in range(n_a)] if len(series) == 2 * n_a else []
    frames = [
        pair for pair in pairs if corresponding(series[pair[0]][0], series[pair[1]][0]) is not None
    ]
    if frames:
        return list(frames)
    half = MOST_FRAMES // 2
    alone = [*range(min(half, n_a)), *range(n_a, min(n_a + half, len(series)))]
    return [(text,) for text in alone]


def _draw_group(
    axes: Axes, texts: Sequence[TextSeries], second: Sequence[bool], direction: int
) -> None:
    """One text, or two versions of one, with their tokens along the axis."""
    length = max(len(text[0]) for text in texts)
    places = [np.arange(len(text[0]), dtype=float) for text in texts]
    labels = list(texts[0][0])
    if len(texts) == 2:
        (tokens, *scores), (others, *other_scores) = texts
        before, after = corresponding(tokens, others) or (0, 0)
        # What follows the target stands at the same place in both versions.
        for place, text in zip(places, texts, strict=True):
            if after:
                place[-after:] += length - len(text[0])
        longer, shorter = (tokens, others) if len(tokens) >= len(others) else (others, tokens)
        labels = list(longer)
        middle = "".join(tokens[before : len(tokens) - after])
        other = "".join(others[before : len(others) - after])
        if len(longer) == len(shorter) and length - before - after == 1:
            labels[before] = f"{middle}/{other.strip()}"
        joined = [*range(before + 1), *range(-after, 0)] if before < length else range(length)
        for token in joined:
            if token < min(len(tokens), len(others)):
                heights = scores[direction][token], other_scores[direction][token]
                axes.plot(
                    (places[0][token], places[1][token]), heights, color=MUTED, linewidth=0.8,
                    zorder=1,
                )  # fmt: skip
        axes.axvspan(before - 0.5, length - after - 0.5, color=HUES[4], alpha=0.2, linewidth=0)
    for place, text, of_second in zip(places, texts, second, strict=True):
        hue = HUES[1] if of_second else HUES[0]
        axes.plot(place, text[1 + direction], "o-", color=hue, ms=3, linewidth=1.0)
    mark_zero(axes)
    axes.set_xlim(-0.6, length - 0.4)
    if length <= MOST_TOKENS:
        axes.set_xticks(
            range(length), labels, rotation=40, ha="right", rotation_mode="anchor", fontsize=6.5,
            parse_math=False,
        )  # fmt: skip
    else:
        axes.set_xlabel("token")


def _limit(panels: NDArray[np.object_], texts: Sequence[TextSeries], direction: int) -> None:
    """Scale by all but the first tokens, which models single out with huge activations."""
    later = np.concatenate([text[1 + direction][1:] for text in texts])
    if len(later) == 0:
        return
    low, high = min(later.min(), 0.0), max(later.max(), 0.0)
    margin = 0.08 * (high - low) or 1.0
    for axes in panels:
        axes.set_ylim(low - margin, high + margin)
