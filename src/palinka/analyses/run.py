"""Run an analysis of a configuration."""

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import numpy as np
from jsonargparse.typing import Path_fr
from matplotlib.figure import Figure
from numpy.typing import NDArray

from palinka import analyses
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
from palinka.analyses.findings import Findings, within_part
from palinka.analyses.reader import ActivationReader, Call, calls_of
from palinka.analyses.result import DATA_PARAMETERS, Result
from palinka.analyses.stats.latents import choose_latents
from palinka.analyses.stimuli import Paired, Prepared, Stimuli, load_stimuli
from palinka.errors import InputError, did_you_mean, load_from_file, type_mismatch
from palinka.interventions.study import STUDIES, Study, find_study
from palinka.language_models.token_text import bos_id, token_bytes

Plain = bool | int | float | str
Setting = Plain | list[Plain] | dict[str, Plain]
LEAST = {
    "seed": 0, "permutations": 0, "resamples": 0, "draws": 1, "k": 1, "steps": 0, "verify": 0,
    "length": 1, "sequences": 1, "neutral_tokens": 1, "text_tokens": 1, "window": 1, "repeats": 1,
}  # fmt: skip


@dataclass(frozen=True)
class HeatmapEntry:
    """Units that are drawn as heatmaps, and the text.

    Args:
        by: The finding, one value per unit, that units are ranked by, such as `score` or `t`.
            Where there is an AUC, the best latent by it is drawn first.
        ranks: Ranks to draw: 1 is the largest value, -1 the smallest.
        units: Units to draw besides, by number.
        text: A stimuli file of the kind `passage` to draw them over; by default that of the
            analysis.
        exponent: Contrast: the values, scaled to 0 … 1, are raised to it; by default 2 for
            latents and 1 for units.
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
        name: Name of the folder of the findings.
        analysis: Name of a function in `palinka.analyses`, or a file of your own and a function
            in it, such as `my_analysis.py:nearest_mean`; the file lies where `stimuli` is
            looked for, beside the configuration.
        stimuli: File with the texts.
        sites: One or several sites of the model; `*` and `?` stand for any characters. An analysis
            of two sites takes `[x, y]`, of which each may stand for all layers, or all pairs of a
            pattern's sites; `[s, s]` compares units with latents, or the latents of two
            autoencoders.
        options: Further arguments of the analysis, such as `permutations`.
        heatmaps: Units to draw over a text.
        series: Texts whose tokens a generalized eigendecomposition draws one by one: the index of a
            text, from 0, or words that it contains; by default the first ones.
        intervention: What is changed in the model, where and how, by an analysis of interventions.
        outcomes: What such an analysis measures at the last token of each prompt, such as
            `logit_difference`, `log_probability` or `rank`.

    Example:
        Latents of a fit that tell "him" from "her", patched where "he" or "she" comes next, by
        `palinka analyze --config FILE --ckpt_path last`; the sites are those of the checkpoint:

            analyses:
              - {name: him_her, analysis: unit_tuning, stimuli: stimuli/him_her.yaml}
              - {name: he_she, analysis: activation_patching, stimuli: stimuli/he_she.yaml,
                 intervention: {components: [latents],
                                selection: {analysis: him_her, by: t, k: 20}}}
    """

    name: str
    analysis: str
    stimuli: Path_fr
    sites: str | list[str] = "blocks.middle.mlp.pre"
    # Plain values: of `Any`, the parser would import whatever a `class_path` in it names.
    options: dict[str, bool | int | float | str] = field(default_factory=dict)
    heatmaps: HeatmapEntry | None = None
    series: list[int | str] = field(default_factory=list)
    intervention: dict[str, Setting] = field(default_factory=dict)
    outcomes: list[str] = field(default_factory=lambda: ["logit_difference"])

    def __post_init__(self) -> None:
        _check_nulls(self)
        if not re.fullmatch(r"[\w-][\w.-]{0,99}", self.name, re.ASCII):
            rule = "the name becomes a folder's: at most 100 letters, digits, '-', '_' and '.'"
            raise InputError(f"an analysis is named {self.name!r}; {rule}")


def _check_nulls(entry: AnalysisEntry | HeatmapEntry) -> None:
    """Reject null except as a default: the parser of configurations takes it for anything."""
    for each in fields(entry):
        if getattr(entry, each.name) is None and each.default is not None:
            raise InputError(f"an analysis has null for {each.name}; give a value")


def run_analysis(
    entry: AnalysisEntry, reader: ActivationReader, earlier: Mapping[str, Findings] | None = None
) -> Findings:
    """Analyze an entry's stimuli on the reader's neurons or latents, and draw the results.

    Units to intervene on may come from `earlier` findings, by name.
    """
    analysis = checked_analysis(entry)
    stimuli = load_stimuli(os.fspath(entry.stimuli))
    prepared = stimuli.prepare(reader.model.tokenizer)
    series = [_text_index(wanted, prepared) for wanted in entry.series]
    if series and entry.analysis != "generalized_eigendecomposition":
        raise InputError(f"{entry.analysis} draws no series of tokens; leave series out")
    signature = inspect.signature(analysis.function)
    options: dict[str, Any] = dict(entry.options)
    if prepared.pairs and "pairs" in signature.parameters:
        options.setdefault("pairs", True)
    others: dict[str, str] = {}  # hashes of further stimuli, by path
    if (study := find_study(analysis.data)) is None:
        calls = list(calls_of(analysis.data, prepared, entry.sites, reader))
    else:
        start = _study(entry, reader, stimuli, prepared, earlier or {}, others)
        calls = [Call(m.part, "", m.data, m.context) for m in study(start, **entry.intervention)]
    middle = calls[len(calls) // 2]
    compared = middle.context.get("sites")
    results: dict[str, Result] = {}
    figures: dict[str, Figure] = {}
    with style():
        for call in calls:
            data = {name: x for name, x in call.data.items() if name in signature.parameters}
            try:
                signature.bind(**data, **options)
            except TypeError as error:
                given = ", ".join([*data, *options])
                raise InputError(f"{entry.analysis}: {error}; it is given {given}") from error
            result = results[call.part] = analysis.function(**data, **options)
            if not isinstance(result, Result):
                kind = type(result).__name__
                raise InputError(f"{entry.analysis} returned {kind}; expected an analyses.Result")
            # Of many sites the one in the middle has figures of its own; the overview has all.
            drawn = call.site == middle.site and call.context.get("sites") == compared
            if analysis.draw is None or not drawn:
                continue
            context = {**options, **data, "units": reader.units, "site": call.site}
            if call.site:
                acts = reader.every_token(prepared.tokens, call.site)
                context |= {"texts": zip(prepared.display, acts, strict=True), "series": series}
            for name, figure in analysis.draw(result, **context, **call.context).items():
                figures[within_part(call.part, name)] = figure
        if analysis.overview is not None and len(calls) > 1:
            x = {call.part: call.data["x"] for call in calls if "x" in call.data}
            means = {part: items.mean(axis=0, dtype=np.float64) for part, items in x.items()}
            labels: dict[str, Any] = {
                name: {call.part: call.context[name] for call in calls if name in call.context}
                for name in ("items", "sites")
            } | {"conditions": middle.context.get("conditions", ())}
            overview = analysis.overview(results, means=means, units=reader.units, **labels)
            figures = overview | figures  # the atlas keeps the order
        for figure in figures.values():
            plain_text(figure)
        heatmaps, pages = _draw_heatmaps(entry, calls, results, prepared, reader, others)
    spec, drawn_units = reader.language_model, asdict(entry.heatmaps) if entry.heatmaps else {}
    settings = {
        "analysis": entry.analysis,
        "language_model": spec.name,
        "revision": spec.fingerprint().get("revision", spec.revision),
        "language_model_identity": spec.identity(),
        "dtype": spec.dtype,
        "bos": reader.bos,
        "sites": reader.sites(entry.sites) if _takes_sites(analysis.data, entry) else [],
        "units": reader.units,
        "autoencoder": ", ".join(encoder.described for encoder in reader.encoders) or None,
        "stimuli": str(entry.stimuli),
        "stimuli_hash": stimuli.hash,
        "other_stimuli": others,
        "conditions": list(dict.fromkeys(prepared.conditions)),
        "matches": dict(prepared.matches),
        "options": options,
        "heatmaps": {k: str(v) if k == "text" and v else v for k, v in drawn_units.items()},
    }
    if study is not None:
        own = reader.model.model.config._attn_implementation
        patterns = "pattern" in entry.intervention.get("components", ())  # type: ignore[operator]
        eager = patterns or analysis.data == "attention patterns"
        settings |= {"intervention": dict(entry.intervention), "outcomes": entry.outcomes}
        settings["attention"] = "eager" if eager else own
    return Findings(entry.name, results, figures | heatmaps, pages, settings, prepared.summary())


def _study(
    entry: AnalysisEntry, reader: ActivationReader, stimuli: Stimuli, prepared: Prepared,
    earlier: Mapping[str, Findings], others: dict[str, str],
) -> Study:  # fmt: skip
    """The model, the prompts and the choices of an entry's interventions, which fill `others`."""
    tokenizer, sites = reader.model.tokenizer, reader.sites(entry.sites)
    views = [reader.view(site) for site in sites]

    def known(
        analysis: str, site: str, found: str, holdout: Sequence[bool] | None = None
    ) -> Findings:
        if (findings := earlier.get(analysis)) is None:
            raise InputError(f"the analysis {analysis!r} has no findings yet; list it first")
        own = findings.settings["stimuli_hash"] == stimuli.hash
        if holdout is None:
            if own and found:
                given = f"{entry.analysis}: {found} on the prompts they are tested on"
                advice = ", or set holdout: frames" * (entry.analysis == "lesion")
                raise InputError(f"{given}; give {analysis!r} other stimuli{advice}")
            return findings
        again = find_analysis(findings.settings["analysis"])
        if not own or again.data != "two conditions":
            needed = "an analysis of two conditions with the stimuli of the lesion"
            raise InputError(f"holdout: frames needs {needed}; {analysis!r} is another one")
        (call,) = calls_of(again.data, prepared, site, reader)
        halves = {name: rows[np.asarray(holdout)] for name, rows in call.data.items()}
        result = again.function(**halves, **findings.settings["options"])
        return replace(findings, results={"": result})

    def selected(
        site: str, *, analysis: str = "", holdout: Sequence[bool] | None = None, **wanted: Any
    ) -> NDArray[np.int64]:
        found = f"{wanted.get('k', 20)} units are to be chosen" * (entry.analysis == "lesion")
        count = study.check_units(site, ())
        return known(analysis, site, found, holdout).strongest_units(site, count, **wanted)

    def texts(path: str) -> Mapping[str, Sequence[Sequence[int]]]:
        found = load_stimuli(Path(getattr(entry.stimuli, "cwd", None) or "") / path)
        others[path] = found.hash
        every = found.prepare(tokenizer).by_condition
        return {name: [[*bos, *ids] for ids in some] for name, some in every.items()}

    bos = [bos_id(tokenizer)] if reader.bos else []
    pairs, count = None, len(prepared.tokens)
    if isinstance(stimuli, Paired):
        pairs = replace(stimuli, bos=stimuli.bos or reader.bos).prepare_pairs(tokenizer)
    frames = range(count // len(set(prepared.conditions)) if prepared.pairs else count)
    units: Sequence[Any] = frames if pairs is None else pairs.templates
    study = Study(
        reader.model,
        pairs,
        [[*bos, *ids] for ids in prepared.tokens],
        sites,
        entry.outcomes,
        {s: e.dictionary for s, e in views if e is not None and e.dictionary is not None},
        selected,
        texts,
        [units[i % len(units)] for i in range(count)],  # the same in every condition
        lambda site, analysis: known(analysis, site, "directions are to be found").at(site),
    )
    return study


def _takes_sites(data: str, entry: AnalysisEntry) -> bool:
    """True if the sites of an entry are read, or changed by its interventions."""
    given = entry.intervention
    of_units = {"neurons", "latents"}.intersection(given.get("components", ()))  # type: ignore[arg-type]
    whole_layers = {*STUDIES} - {"lesions", "doses of directions", "removals of subspaces"}
    return data not in whole_layers or bool(of_units) or given.get("units") is True


def _text_index(wanted: int | str, prepared: Prepared) -> int:
    """The index of a text, or of the first that contains some words."""
    texts = ["".join(tokens) for tokens in prepared.display]
    found = (at for at, text in enumerate(texts) if str(wanted) in text)
    index = wanted if isinstance(wanted, int) else next(found, -1)
    if not 0 <= index < len(texts):
        what = f"series: {wanted!r} is not one of the {len(texts)} texts"
        raise InputError(f"{what}; give an index from 0, or words that a text contains")
    return index


class Analysis(NamedTuple):
    """A function, its data, and what draws one result, or those of several sites together."""

    function: Callable[..., Result]
    data: str
    draw: Callable[..., dict[str, Figure]] | None
    overview: Callable[..., dict[str, Figure]] | None


def find_analysis(name: str, folder: str | None = None) -> Analysis:
    """Find a module of `palinka.analyses`, or `FILE.py:FUNCTION`, first in the folder.

    Figures come from the functions `NAME` and `overview` of the module in
    `palinka.analyses.figures`, or from `FUNCTION_figures` and `FUNCTION_overview` of the file.
    """
    if ".py:" in name:
        beside = Path(folder or "")
        there = (beside / name.rpartition(":")[0]).is_file()
        function = load_from_file(name, beside if there else Path())
        if not hasattr(function, "takes"):
            raise InputError(f"{name} does not declare its data; put @takes(…) in front of it")
        figures = sys.modules[function.__module__]
        draw, overview = f"{function.__name__}_figures", f"{function.__name__}_overview"
    else:
        if name not in analyses.__all__:
            hint = did_you_mean(name, analyses.__all__)
            raise InputError(f"{name!r} is neither an analysis nor FILE.py:FUNCTION{hint}")
        function = getattr(analyses, name)
        figures = importlib.import_module(f"palinka.analyses.figures.{name}")
        draw, overview = name, "overview"
    drawing = getattr(figures, draw, None), getattr(figures, overview, None)
    return Analysis(function, function.takes, *drawing)


def checked_analysis(entry: AnalysisEntry) -> Analysis:
    """Find the analysis of an entry, and check the entry's options against its hints."""
    # A configuration's paths are relative to its folder.
    analysis = find_analysis(name := entry.analysis, getattr(entry.stimuli, "cwd", None))
    hints = get_type_hints(analysis.function)
    parameters = inspect.signature(analysis.function).parameters
    known = parameters.keys() - set(DATA_PARAMETERS[analysis.data].split())
    study = find_study(analysis.data)
    settings = {} if study is None else get_type_hints(study)
    defaults = {} if study is None else inspect.signature(study).parameters
    settings = {key: hint for key, hint in settings.items() if key not in ("study", "return")}
    keys = {"analysis": str, "by": str} | ({"k": int, "side": str} if "units" in settings else {})
    checks: Any = (
        ("option", entry.options, {option: hints.get(option, Any) for option in known}),
        ("intervention setting", entry.intervention, settings),
        ("key of selection", entry.intervention.get("selection", {}), keys),
    )
    for kind, given, expected_of in checks:
        for key, value in given.items():
            if key not in expected_of:
                hint = did_you_mean(key, expected_of)
                raise InputError(f"{name} has no {kind} {key!r}{hint}")
            expected = type_mismatch(value, expected_of[key])
            if type(value) is int and key in LEAST and value < LEAST[key]:
                expected = f"at least {LEAST[key]}"
            if value == [] and key in defaults and defaults[key].default:
                expected = "at least one"
            if expected is not None:
                raise InputError(f"{name}: the {kind} {key} is {value!r}; expected {expected}")
    return analysis


_CAPTION = """A text, its tokens shaded by how active each of the chosen latents or neurons is on \
them, gray below zero; the words of a category are underlined. The page of the same name has every \
value, and the token's number."""


def _draw_heatmaps(
    entry: AnalysisEntry, calls: Sequence[Call], results: Mapping[str, Result],
    prepared: Prepared, reader: ActivationReader, others: dict[str, str],
) -> tuple[dict[str, Figure], dict[str, str]]:  # fmt: skip
    """Figures and HTML pages of the units that the entry requests; the text goes to `others`."""
    figures: dict[str, Figure] = {}
    pages: dict[str, str] = {}
    wanted, text = entry.heatmaps, prepared
    if wanted is None:
        return figures, pages
    if wanted.text is not None:
        stimuli = load_stimuli(path := os.fspath(wanted.text))
        text, others[path] = stimuli.prepare(reader.model.tokenizer), stimuli.hash
    if text.kind != "passage":
        given = f"{entry.name} has stimuli of the kind {text.kind}"
        raise InputError(f"heatmaps are drawn over a passage, and {given}; set heatmaps.text")
    ids = list(chain(*text.tokens))
    tokens = token_bytes(reader.model.tokenizer, ids)
    sites = dict.fromkeys(call.site for call in calls)
    acts = {site: np.concatenate(list(reader.every_token(text.tokens, site))) for site in sites}
    for call in calls:
        heatmaps = _heatmaps(wanted, results[call.part], acts[call.site], reader.units)
        name = within_part(call.part, "heatmaps")
        title = " ".join(dict.fromkeys([entry.name, call.part])).strip()
        underlined = text.targets.get(category := call.context.get("category", ""))
        if underlined is not None:
            title = f"{title} (underlined: the words of {category})"
        figures[name] = text_heatmap(tokens, heatmaps, underlined=underlined, title=title)
        figures[name].set_label(_CAPTION)
        page: dict[str, Any] = {"title": title, "token_ids": ids, "underlined": underlined}
        pages[name] = text_heatmap_html(tokens, heatmaps, **page)
    return figures, pages


# Findings by which units are ranked, and their p-values, corrected for the number of units.
_P_VALUES = {"score": "p_value", "auc": "auc_p_value", "t": "p_adjusted"}


def _heatmaps(
    wanted: HeatmapEntry, result: Result, acts: NDArray[np.float32], units: str
) -> list[Heatmap]:
    """One for each rank and each number; the smallest values are drawn in the negative color."""
    per_unit = {
        name: values
        for name, values in result.arrays().items()
        if values.shape == (acts.shape[1],) and values.dtype == np.float64
    }
    if wanted.by not in per_unit:
        known = ", ".join(per_unit) or "none: this analysis has no value per unit"
        raise InputError(f"heatmaps cannot rank units by {wanted.by!r}; expected one of {known}")
    by, exponent, auc = wanted.by, wanted.exponent, per_unit.get("auc")
    if by == "score" and auc is not None and not (per_unit[by] > 0).any():
        by = "auc"  # ratios of means of signed activations rank nothing
    criterion = per_unit[by]
    if exponent is None:
        exponent = LATENT_EXPONENT if units == "latents" else UNIT_EXPONENT

    def heatmap(unit: int, ranked: str = "", color: str = POSITIVE, by: str = by) -> Heatmap:
        shown = by.replace("auc", "AUC")
        caption = f"{units.removesuffix('s')} {unit}, {shown} {per_unit[by][unit]:.4g}"
        if (p := per_unit.get(_P_VALUES.get(by, ""))) is not None:
            caption += f", p {p[unit]:.3g}"
        signed = bool((acts[:, unit] < 0).any())
        return Heatmap(acts[:, unit], caption + ranked, color, exponent, signed)

    drawn = []
    if auc is not None and by != "auc":
        drawn.append(heatmap(int(auc.argmax()), by="auc"))
    for rank in wanted.ranks:
        (unit,) = choose_latents(criterion if rank > 0 else -criterion, [abs(rank)])
        drawn.append(heatmap(unit, f" (rank {rank})", POSITIVE if rank > 0 else NEGATIVE))
    return drawn + [heatmap(unit) for unit in choose_latents(criterion, [], wanted.units)]
