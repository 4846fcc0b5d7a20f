"""Run an analysis of a configuration."""

import difflib
import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, get_type_hints

import numpy as np
from jsonargparse.typing import Path_fr
from matplotlib.figure import Figure
from numpy.typing import NDArray

from palinka import analyses
from palinka.analyses import figures
from palinka.analyses.figures.style import plain_text, style
from palinka.analyses.figures.text_heatmap import (
    LATENT_EXPONENT,
    NEGATIVE,
    POSITIVE,
    UNIT_EXPONENT,
    Heatmap,
    text_heatmap,
    text_heatmap_html,
)
from palinka.analyses.findings import Findings
from palinka.analyses.reader import ActivationReader
from palinka.analyses.result import Result
from palinka.analyses.stats.latents import choose_latents
from palinka.analyses.stimuli import Prepared, load_stimuli
from palinka.errors import InputError, escape_control_chars, type_mismatch
from palinka.language_models.token_text import token_bytes


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


# What the runner fills in; every other parameter of an analysis is an option.
DATA_PARAMETERS = frozenset(
    {"a", "b", "x", "y", "groups", "latents", "targets", "words", "documents"}
)


def check_options(name: str, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Make sure that an analysis takes some options, before anything is read for it.

    Args:
        name: What messages call the analysis.
        function: The analysis, whose type hints say what each option must be.
        options: Plain values by name.

    Raises:
        InputError: If an option is unknown, of another type, or a seed below zero.
    """
    known = set(inspect.signature(function).parameters) - DATA_PARAMETERS
    hints = get_type_hints(function)
    for option, value in options.items():
        if option not in known:
            nearest = difflib.get_close_matches(option, known, n=1, cutoff=0.4)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"it has {', '.join(known)}"
            raise InputError(f"{name} has no option {option!r}; {hint}")
        expected = type_mismatch(value, hints[option])
        if expected is not None:
            raise InputError(f"{name}: the option {option} is {value!r}; expected {expected}")
        if option == "seed" and value < 0:
            raise InputError(f"{name}: the option seed is {value}; expected at least 0")


_CAPTION = (
    "A text, its tokens shaded by how active each of the chosen latents or neurons is on them. The "
    "page of the same name has every value, and the token's number."
)


def draw_heatmaps(
    entry: AnalysisEntry,
    results: Mapping[str, tuple[str, Result]],
    prepared: Prepared,
    reader: ActivationReader,
) -> tuple[dict[str, Figure], dict[str, str]]:
    """Draw the units that `entry.heatmaps` asks for, if it does, over its text.

    Args:
        entry: What was analyzed.
        results: By part, the site and what was found there.
        prepared: The stimuli of the analysis.
        reader: Neurons or latents.

    Returns:
        Figures and HTML pages, by name.

    Raises:
        InputError: If the text is no passage, or the findings have no such value per unit.
    """
    wanted = entry.heatmaps
    if wanted is None:
        return {}, {}
    text = prepared
    if wanted.text is not None:
        text = load_stimuli(os.fspath(wanted.text)).prepare(reader.model.tokenizer)
    if text.kind != "passage":
        raise InputError(
            f"heatmaps are drawn over a passage, and {entry.name} has stimuli of the kind "
            f"{text.kind}; give heatmaps.text a stimuli file of the kind passage"
        )
    ids = [token for part in text.tokens for token in part]
    tokens = token_bytes(reader.model.tokenizer, ids)
    by_site = {
        site: np.concatenate(reader.every_token(text.tokens, site))
        for site in dict.fromkeys(site for site, _ in results.values())
    }
    figures: dict[str, Figure] = {}
    pages: dict[str, str] = {}
    for part, (site, result) in results.items():
        name = f"{part}/heatmaps" if part else "heatmaps"
        acts = by_site[site]
        drawn = _heatmaps(wanted, _criterion(wanted, result, acts), acts, reader.units)
        figures[name] = text_heatmap(tokens, drawn)
        figures[name].set_label(_CAPTION)
        pages[name] = text_heatmap_html(
            tokens, drawn, title=f"{entry.name} {part}".strip(), token_ids=ids
        )
    return figures, pages


def _criterion(
    wanted: HeatmapEntry, result: Result, acts: NDArray[np.float32]
) -> NDArray[np.float64]:
    """The finding that units are ranked by, `(units,)`."""
    per_unit = {
        name: values
        for name, values in result.arrays().items()
        if values.shape == (acts.shape[1],) and values.dtype == np.float64
    }
    if wanted.by not in per_unit:
        raise InputError(
            f"heatmaps cannot rank units by {wanted.by!r}; expected one of "
            f"{', '.join(per_unit) or 'none: this analysis has no value per unit'}"
        )
    return per_unit[wanted.by]


def _heatmaps(
    wanted: HeatmapEntry,
    criterion: NDArray[np.float64],
    acts: NDArray[np.float32],
    units: str,
) -> list[Heatmap]:
    """One for each rank and each number; the smallest values are drawn in the negative color."""
    kind = units.removesuffix("s")
    exponent = wanted.exponent
    if exponent is None:
        exponent = LATENT_EXPONENT if units == "latents" else UNIT_EXPONENT
    drawn = []
    for rank in wanted.ranks:
        (unit,) = choose_latents(criterion if rank > 0 else -criterion, [abs(rank)])
        caption = f"{kind} {unit}, {wanted.by} {criterion[unit]:.4g} (rank {rank})"
        color = POSITIVE if rank > 0 else NEGATIVE
        drawn.append(Heatmap(acts[:, unit], caption, color, exponent))
    for unit in choose_latents(criterion, [], wanted.units):
        caption = f"{kind} {unit}, {wanted.by} {criterion[unit]:.4g}"
        drawn.append(Heatmap(acts[:, unit], caption, POSITIVE, exponent))
    return drawn


@dataclass(frozen=True)
class Call:
    """One call of an analysis function.

    Attributes:
        part: What of the stimuli it is of, such as `hidden.3/comma`; `""` where there is one.
        site: The site that its data are from, or the last of those that are compared.
        data: The arguments that come from the stimuli.
        context: What its figures are labelled with.
    """

    part: str
    site: str
    data: Mapping[str, Any]
    context: Mapping[str, Any] = field(default_factory=dict)


def run_analysis(entry: AnalysisEntry, reader: ActivationReader) -> Findings:
    """Read the stimuli, analyze them, and draw what was found.

    Args:
        entry: What to do.
        reader: Neurons or latents.

    Raises:
        InputError: If the entry, its stimuli and the model do not fit together.
    """
    function = find_analysis(entry.analysis)
    check_options(entry.analysis, function, entry.options)
    sites = reader.sites(entry.sites)
    stimuli = load_stimuli(os.fspath(entry.stimuli))
    prepared = stimuli.prepare(reader.model.tokenizer)
    options = dict(entry.options)
    if prepared.pairs and "pairs" in inspect.signature(function).parameters:
        options.setdefault("pairs", True)
    results: dict[str, Result] = {}
    drawn: dict[str, Any] = {}
    means: dict[str, NDArray[np.float64]] = {}
    draw = getattr(figures, entry.analysis)
    calls = list(_calls(function, prepared, sites, reader))
    with style():
        for call in calls:
            result = function(**call.data, **options)
            results[call.part] = result
            if "x" in call.data:
                means[call.part] = np.asarray(call.data["x"], dtype=np.float64).mean(axis=0)
            # Of many sites the one in the middle has figures of its own; the overview has all.
            if call.site != sites[len(sites) // 2]:
                continue
            context = {"units": reader.units, **options, **call.data, **call.context}
            if hasattr(result, "project"):
                context["series"] = _series(result, prepared, call.site, reader)
            part = f"{call.part}/" if call.part else ""
            drawn |= {f"{part}{name}": figure for name, figure in draw(result, **context).items()}
        overview = getattr(inspect.getmodule(draw), "overview", None)
        if overview is not None and len(calls) > 1:
            drawn |= overview(results, means=means, units=reader.units, **calls[0].context)
        parts = {call.part: (call.site, results[call.part]) for call in calls}
        heatmaps, pages = draw_heatmaps(entry, parts, prepared, reader)
    for figure in drawn.values():
        plain_text(figure)
    return Findings(
        entry.name,
        results,
        figures=drawn | heatmaps,
        pages=pages,
        settings=_settings(entry, options, reader, sites, stimuli.hash),
        summary=prepared.summary(),
    )


def find_analysis(name: str) -> Callable[..., Result]:
    """The analysis function of a name.

    Raises:
        InputError: If there is none; names the nearest.
    """
    known = [module for module in dir(figures) if module in dir(analyses)]
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"choose from {', '.join(known)}"
        raise InputError(f"there is no analysis {name!r}; {hint}")
    function: Callable[..., Result] = getattr(analyses, name)
    return function


def _calls(
    function: Callable[..., Result],
    prepared: Prepared,
    sites: Sequence[str],
    reader: ActivationReader,
) -> Iterator[Call]:
    """What to call the function with, once or for each site, condition or category."""
    wanted = DATA_PARAMETERS & set(inspect.signature(function).parameters)
    if "latents" in wanted:
        yield from _of_passage(wanted, prepared, sites, reader)
    elif {"a", "b"} <= wanted:
        yield from _of_two_conditions(prepared, sites, reader)
    elif "y" in wanted:
        yield _of_two_sites(wanted, prepared, sites, reader)
    else:
        yield from _of_each_condition(prepared, sites, reader)


def _of_passage(
    wanted: frozenset[str], prepared: Prepared, sites: Sequence[str], reader: ActivationReader
) -> Iterator[Call]:
    if any(prepared.pool):
        raise InputError(
            "this analysis goes over all tokens of a text; give stimuli of kind passage"
        )
    lengths = [len(text) for text in prepared.tokens]
    of_tokens = {
        "words": np.concatenate(prepared.tokens),
        "documents": np.repeat(np.arange(len(lengths)), lengths),
    }
    of_tokens = {name: values for name, values in of_tokens.items() if name in wanted}
    for site in sites:
        latents = np.concatenate(reader.every_token(prepared.tokens, site))
        context = {"tokens": [token for text in prepared.display for token in text]}
        prefix = f"{site}/" if len(sites) > 1 else ""
        if "targets" not in wanted:
            yield Call(site if len(sites) > 1 else "", site, {"latents": latents}, context)
            continue
        for category, mask in prepared.targets.items():
            data = {"latents": latents, "targets": np.asarray(mask), **of_tokens}
            yield Call(f"{prefix}{category}", site, data, context)


def _of_two_conditions(
    prepared: Prepared, sites: Sequence[str], reader: ActivationReader
) -> Iterator[Call]:
    names = _pooled_conditions(prepared)
    if len(names) != 2:
        raise InputError(
            f"this analysis compares two conditions, and the stimuli have {len(names)}: "
            f"{', '.join(names)}"
        )
    vectors = reader.pooled(prepared, sites)
    for site in sites:
        first, second = (vectors[site][_members(prepared, name)] for name in names)
        context = {"items": _items(prepared), "conditions": tuple(names)}
        yield Call(site if len(sites) > 1 else "", site, {"a": first, "b": second}, context)


def _of_two_sites(
    wanted: frozenset[str], prepared: Prepared, sites: Sequence[str], reader: ActivationReader
) -> Call:
    names = _pooled_conditions(prepared)
    if len(sites) != 2:
        raise InputError(
            f"this analysis compares two sites, and {len(sites)} are given: {', '.join(sites)}"
        )
    vectors = reader.pooled(prepared, sites)
    data: dict[str, Any] = {"x": vectors[sites[0]], "y": vectors[sites[1]]}
    if "groups" in wanted and len(names) > 1:
        data["groups"] = list(prepared.conditions)
    return Call("", sites[1], data, {"items": _items(prepared), "sites": tuple(sites)})


def _of_each_condition(
    prepared: Prepared, sites: Sequence[str], reader: ActivationReader
) -> Iterator[Call]:
    names = _pooled_conditions(prepared)
    vectors = reader.pooled(prepared, sites)
    for site in sites:
        for name in names:
            members = _members(prepared, name)
            context = {"items": [_items(prepared)[member] for member in members]}
            yield Call(f"{site}/{name}", site, {"x": vectors[site][members]}, context)


def _items(prepared: Prepared) -> list[str]:
    """What figures call each item."""
    return [escape_control_chars(label) for label in prepared.labels]


def _pooled_conditions(prepared: Prepared) -> list[str]:
    if not any(prepared.pool):
        raise InputError(
            "this analysis compares items, and a passage has none; give stimuli of the kind "
            "contrast, words, carrier or occurrences"
        )
    return list(dict.fromkeys(prepared.conditions))


def _members(prepared: Prepared, condition: str) -> list[int]:
    return [item for item, name in enumerate(prepared.conditions) if name == condition]


def _series(
    result: Any, prepared: Prepared, site: str, reader: ActivationReader
) -> list[tuple[Sequence[str], NDArray[np.float64], NDArray[np.float64]]]:
    """Every token of every text along both directions."""
    series: list[tuple[Sequence[str], NDArray[np.float64], NDArray[np.float64]]] = []
    for number, acts in enumerate(reader.every_token(prepared.tokens, site)):
        along = result.project(acts)
        series.append((prepared.display[number], along[:, 0], along[:, 1]))
    return series


def _settings(
    entry: AnalysisEntry,
    options: Mapping[str, Any],
    reader: ActivationReader,
    sites: Sequence[str],
    stimuli_hash: str,
) -> dict[str, Any]:
    """What a reader needs to do the same again; plain values."""
    spec = reader.language_model
    return {
        "analysis": entry.analysis,
        "language_model": spec.name,
        "revision": spec.fingerprint().get("revision", spec.revision),
        "language_model_identity": spec.identity(),
        "dtype": spec.dtype,
        "bos": reader.bos,
        "sites": list(sites),
        "units": reader.units,
        "autoencoder": reader.encoder.described if reader.encoder else None,
        "stimuli": str(entry.stimuli),
        "stimuli_hash": stimuli_hash,
        "options": dict(options),
        "heatmaps": {
            key: str(value) if key == "text" and value is not None else value
            for key, value in (asdict(entry.heatmaps) if entry.heatmaps else {}).items()
        },
    }
