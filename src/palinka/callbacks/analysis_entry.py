"""One entry of the list `analyses` in a configuration."""

from dataclasses import dataclass, field, fields

from jsonargparse.typing import Path_fr

from palinka.errors import InputError


@dataclass(frozen=True)
class HeatmapEntry:
    """Which units are drawn as heatmaps, over which text.

    Args:
        by: The finding, one value per unit, that units are ranked by, such as `score` or `t`.
        ranks: Which ranks to draw: 1 is the largest value, -1 the smallest.
        units: Units to draw besides, by number.
        text: A stimuli file of the kind `passage` to draw them over; that of the analysis if
            left out.
        exponent: Contrast: the values, scaled to 0 … 1, are raised to it. 2 for latents and 1
            for units if left out.
    """

    by: str
    ranks: list[int] = field(default_factory=lambda: [1])
    units: list[int] = field(default_factory=list)
    text: Path_fr | None = None
    exponent: float | None = None

    def __post_init__(self) -> None:
        _check_nulls(self)


@dataclass(frozen=True)
class AnalysisEntry:
    """An analysis of stimuli at sites of a language model.

    Args:
        name: What the findings are kept under; a folder's name.
        analysis: Which analysis: the name of a function in `palinka.analyses`.
        stimuli: The file with the texts.
        sites: Where in the model, one name or several; `*` and `?` stand for any characters.
        options: Further arguments of the analysis, such as `permutations`.
        heatmaps: Units to draw over a text.
    """

    name: str
    analysis: str
    stimuli: Path_fr
    sites: str | list[str] = "blocks.middle.mlp.pre"
    # Plain values: of `Any`, the parser would import whatever a `class_path` in it names.
    options: dict[str, bool | int | float | str] = field(default_factory=dict)
    heatmaps: HeatmapEntry | None = None

    def __post_init__(self) -> None:
        _check_nulls(self)
        usable = 0 < len(self.name) <= _LONGEST_NAME and not set(self.name) - set(_NAME_CHARACTERS)
        if not usable or self.name.startswith("."):
            raise InputError(
                f"an analysis is named {self.name!r}; the name becomes a folder's, so use letters, "
                f"digits, '-', '_' and '.', at most {_LONGEST_NAME} of them"
            )


def _check_nulls(entry: "AnalysisEntry | HeatmapEntry") -> None:
    """Null is there only by default: the parser of configurations takes it for anything."""
    for each in fields(entry):
        if getattr(entry, each.name) is None and each.default is not None:
            raise InputError(f"an analysis has null for {each.name}; give a value")


_LONGEST_NAME = 100
_NAME_CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."
