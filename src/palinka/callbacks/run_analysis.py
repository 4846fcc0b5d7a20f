"""From an entry of a configuration to its findings.

What an analysis function takes is found by the names of its parameters, so that a new one
needs to be listed nowhere: `a` and `b` are the vectors of the items of the first and of the
second condition, `x` and `y` those of all items at the first and second site, `groups` the
condition of each item, `latents` all tokens of a passage, `words` and `documents` their token ids
and texts, and `targets` the mask of a category.
`pairs` is true for stimuli of matched pairs; an entry's options may set it to false.
"""

import difflib
import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from palinka import analyses, figures
from palinka.analyses.result import Result
from palinka.callbacks.analysis_entry import AnalysisEntry
from palinka.callbacks.findings import Findings
from palinka.callbacks.heatmaps import draw_heatmaps
from palinka.callbacks.options import DATA_PARAMETERS, check_options
from palinka.callbacks.reader import ActivationReader
from palinka.errors import InputError
from palinka.figures.style import plain_text, style
from palinka.printable import printable
from palinka.stimuli import Prepared, load_stimuli


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
    return [printable(label) for label in prepared.labels]


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
