"""Findings of analyses on disk, as the atlas shows them."""

import csv
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray

from palinka.analyses.figures.head_scores import UNITS, title
from palinka.analyses.findings import file_names
from palinka.analyses.steering import KL_AT
from palinka.errors import InputError, counted
from palinka.evaluation.report import scalar_name

_MAX_ROWS = 200
_SCORES = ("detection", "fuzzing", "intruder")  # of explanations
EVALUATION = "evaluation"
# Settings without folders of this machine.
_SETTINGS = ("analysis", "language_model", "revision", "sites", "site", "units", "autoencoder",
             "stimuli", "stimuli_hash", "options", "rows")  # fmt: skip


@dataclass(frozen=True)
class Found:
    """Findings of one analysis."""

    # Plain values for its page: name, settings, scalars (None for NaN) with any bounds, notes with
    # their part, summary of the stimuli, figures, and tables with headings first.
    page: dict[str, Any]
    figures: dict[str, Path] = field(default_factory=dict)  # PNG files by their name in the atlas
    columns: dict[str, NDArray[np.float64]] = field(default_factory=dict)  # a value per latent
    effects: dict[int, list[dict[str, Any]]] = field(default_factory=dict)  # of interventions
    heads: dict[str, Any] = field(default_factory=dict)  # scores of all, and level of intervals
    explanations: dict[int, dict[str, Any]] = field(default_factory=dict)  # by latent


def read_analyses(folder: Path, latents: int, site: str, checksum: str = "") -> list[Found]:
    """Read the findings of every analysis in a folder; skip other folders with a warning.

    Arrays of `latents` numbers at `site` become columns, and those of an evaluation that has the
    dictionary, by the `checksum` of its checkpoint. That of a sweep is in the whole run's folder.
    """
    found: list[Found] = []
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    whole = folder.parent.parent / folder.name / EVALUATION
    if checksum and whole.is_dir() and folder / EVALUATION not in paths:
        paths.append(whole)
    for path in paths:
        # The report on the latents makes up the rest of the atlas.
        if not path.is_dir() or path.name.startswith(".") or path.name == "latents":
            continue
        try:
            found.append(_read(path, len(found), latents, site, checksum))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            rank_zero_warn(f"{path} has no readable findings ({error}); left out of the atlas")
    return found


def _read(path: Path, number: int, latents: int, site: str, checksum: str) -> Found:
    record = json.loads((path / "findings.json").read_text(encoding="utf-8"))
    settings = dict(record.get("settings", {}))
    columns, effects, intervals, arrays = {}, {}, {}, dict[str, NDArray[Any]]()
    if (path / "arrays.npz").exists():
        with np.load(path / "arrays.npz", allow_pickle=False) as stored:
            arrays = dict(stored)
    if settings.get("units") == "latents" and settings.get("sites") == [site]:
        columns = {
            name: arrays[name].astype(np.float64)
            for name in _auc_first(arrays)
            if arrays[name].shape == (latents,) and arrays[name].dtype.kind in "biuf"
        }
        effects = latent_effects(path, settings, arrays)
    elif (evaluated := path / f"{EVALUATION}.json").exists():
        evaluation = json.loads(evaluated.read_text(encoding="utf-8"))
        every = evaluation["dictionaries"]
        own = next((one["name"] for one in every if checksum and one["sha256"] == checksum), None)
        intervals = {scalar_name(v): (v["low"], v["high"]) for v in evaluation["values"]}
        of_own = {name: arrays.get(f"{name}/{own}") for name in ("reappears", "best_cosine")}
        columns = {name: values for name, values in of_own.items() if values is not None}
    tables = []
    for file in sorted(path.glob("*.csv")):
        with file.open(encoding="utf-8", newline="") as stream:
            rows = list(islice(csv.reader(stream), _MAX_ROWS + 1))
        tables.append({"name": file.stem, "rows": [row for row in rows if row]})
    summary, captions = path / "stimuli.md", record.get("captions", {})
    images = {file.stem: file for file in sorted(path.glob("*.png"))}
    # As they were drawn: the overview of several sites, what was found, and details.
    images = {stem: images[stem] for stem in [*captions, *images] if stem in images}
    names = {stem: f"{number}-{safe}.png" for stem, safe in file_names(images).items()}
    page = {
        "name": str(record["name"]),
        "settings": [
            (name, _text(name, settings[name])) for name in _SETTINGS if settings.get(name)
        ],
        "scalars": [
            (
                name,
                None if (value := record["scalars"][name]) is None else float(value),
                *intervals.get(name, ()),
            )
            for name in _auc_first(record["scalars"])
        ],
        "notes": [(str(p), str(note)) for p, notes in record["notes"].items() for note in notes],
        "summary": summary.read_text(encoding="utf-8") if summary.exists() else "",
        "figures": [
            {"file": name, "title": stem, "caption": str(captions.get(stem, ""))}
            for stem, name in names.items()
        ],
        "tables": tables,
    }
    figures = {name: images[stem] for stem, name in names.items()}
    return Found(page, figures, columns, effects, head_scores(settings, arrays))


def read_explanations(path: Path, latents: int, site: str, checksum: str = "") -> Found:
    """Read `explanations.json` of `palinka explain` as findings, of the checkpoint if known."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        given = record["latent_dim"], record["site"], record["sha256"]
        about = record["latents"].items()
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise InputError(f"{path} is not an explanations.json of palinka explain") from error
    if given != (latents, site, checksum or given[2]):
        fault = f"{path} explains another dictionary, of {given[0]} latents of {given[1]}"
        raise InputError(f"{fault}; explain this one, of {latents} of {site}")
    columns = {name: np.full(latents, np.nan) for name in (*_SCORES, "tokens")}
    explanations, numbers = {}, ("value", "low", "high", "n", "missing")
    for latent, one in about:
        if one["text"]:
            scores = {n: one[n] for n in _SCORES if n in one} | one["controls"]
            for name in columns.keys() & scores.keys():
                columns[name][int(latent)] = scores[name]["value"]  # NaN for None
            rows = [[name, *(score[n] for n in numbers)] for name, score in scores.items()]
            explanations[int(latent)] = {"text": one["text"], "model": one["model"], "scores": rows}
    rows = [[v["metric"], *("" if v[n] is None else v[n] for n in numbers[:3])]
            for v in record["values"]]  # fmt: skip
    notes = [("", f"95 % intervals: {record['values'][0]['method']}")]
    notes += [
        ("", f"{counted(n, 'latents')} left out: {why}") for why, n in record["excluded"].items()
    ]
    page = {
        "name": "explanations", "settings": [("analysis", "explain"), ("model", record["model"])],
        "scalars": [(v["metric"], v["value"]) for v in record["values"]], "notes": notes,
        "summary": "", "figures": [],
        "tables": [{"name": "means", "rows": [["score", "mean", "low", "high"], *rows]}],
    }  # fmt: skip
    return Found(page, columns=columns, explanations=explanations)


def _auc_first(names: Iterable[str]) -> list[str]:
    """Names of findings, of each part those of the AUC first."""
    parts = list(dict.fromkeys(name.rpartition("/")[0] for name in names))

    def place(name: str) -> tuple[int, bool]:
        part, _, field = name.rpartition("/")
        return parts.index(part), "auc" not in field

    return sorted(names, key=place)


def _text(name: str, value: Any) -> str:
    if name == "stimuli":
        return Path(str(value)).name
    if isinstance(value, dict):
        value = [f"{key.replace('_', ' ')} {item}" for key, item in value.items()]
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


Arrays = Mapping[str, NDArray[Any]]
# A label with an effect, the bounds of its interval, and p; NaN for none.
Row = tuple[str, float, float, float, float]
_CELLS = {
    "ablation": "Ablated: {} without it minus with it",
    "activation_patching": "Patched: {} with it from the paired prompt minus without",
    "lesion": "Ablated with others: {} without them minus with them",
}
_INTERVAL = ("effect", "effect_low", "effect_high", "p_corrected")
_OF_CELLS = "p is corrected for all cells of the analysis."
_OF_SETS = "p is the share of matched control sets with at least as large an effect."
_OF_SLOPE = """KL: where the divergence on neutral text first reaches this many nats. \
The slope is per median norm of the activations; p compares it with directions of equal norm."""


def latent_effects(
    path: Path, settings: Mapping[str, Any], arrays: Arrays
) -> dict[int, list[dict[str, Any]]]:
    """Effects of interventions on single latents, by latent; an entry for each outcome."""
    kind, outcomes = str(settings.get("analysis")), settings.get("outcomes", ())
    found = defaultdict[int, list[dict[str, Any]]](list)
    for outcome in outcomes if kind == "steering" or kind in _CELLS else ():
        part = outcome if len(outcomes) > 1 else ""
        words = outcome.replace("_", " ")
        if toward := settings["intervention"].get("toward"):
            words += f" toward “{toward}”"
        if kind == "steering":
            about = f"Steered along its direction: change of the {words}"
            rows, note = _steered(_table(path, part, "directions")), _OF_SLOPE
        else:
            about, note = _CELLS[kind].format(words), _OF_CELLS
            cells = _table(path, part, "cells")
            if kind == "lesion":
                units, note = arrays[f"{part}/units".lstrip("/")], _OF_SETS
                together = _row(f"{units.size} latents together", cells[0])
                rows = ((unit, together) for unit in units[units >= 0].tolist())
            else:
                own_cells = (cell for cell in cells if cell.get("latent"))
                rows = ((int(c["latent"]), _row(c.get("value") or "alone", c)) for c in own_cells)
        of_latent = defaultdict[int, list[Row]](list)
        for latent, row in rows:
            of_latent[latent].append(row)
        for latent, own in of_latent.items():
            entry = {"about": about, "rows": own, "note": note, "level": _level(settings)}
            found[latent].append(entry)
    return dict(found)


def _table(path: Path, part: str, name: str) -> list[dict[str, str]]:
    with (path / f"{part}-{name}.csv".lstrip("-")).open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def _steered(table: list[dict[str, str]]) -> Iterator[tuple[int, Row]]:
    nan = np.nan
    for row in (row for row in table if row["direction"].startswith("latent_")):
        latent = row["direction"].removeprefix("latent_")
        for side, verb in (("positive", "added"), ("negative", "subtracted")):
            effect = float(row[f"effect_at_kl_{side}"])
            yield int(latent), (f"{verb}, at a KL of {KL_AT:g}", effect, nan, nan, nan)
        slope = [float(row[name]) for name in ("slope", "slope_low", "slope_high")]
        yield int(latent), ("slope", slope[0], slope[1], slope[2], nan)
        for name, p in row.items():
            if name.startswith("p_"):
                control = name.removeprefix("p_").replace("_", " ")
                yield int(latent), (f"against {control}", nan, nan, nan, float(p))


def _row(label: str, row: Mapping[str, str]) -> Row:
    effect, low, high, p = (float(row[name]) for name in _INTERVAL)
    return label, effect, low, high, p


# Scores of heads in the order of their page, and what each is in a few words.
_HEAD_SCORES = {
    "previous_token": "attention to the previous token",
    "duplicate_token": "in repeated random tokens: attention to the same token before",
    "induction": "in repeated random tokens: attention to what followed the same token before",
    "induction_text": "attention to what followed earlier copies of the token",
    "sink": "attention to the first token",
    "self": "attention to the token itself",
    "entropy": "entropy of the attention",
    "entropy_normalized": "entropy of the attention over the largest possible",
    "distance": "mean distance of what is attended to",
    "distance_variance": "variance of that distance",
    "detect_previous": "share of all attention that goes to previous tokens",
    "detect_duplicate": "share of all attention that goes to earlier copies of the token",
    "detect_induction": "share of all attention that goes to what follows earlier copies",
}


def head_scores(settings: Mapping[str, Any], arrays: Arrays) -> dict[str, Any]:
    """Scores of all heads, arrays `(layers, heads)` with words; empty for other analyses."""
    if settings.get("analysis") != "head_scores":
        return {}
    keys = "score", "low", "high", "p_corrected", "significant"
    scores = [
        {"name": title(name), "about": about, "unit": UNITS.get(name, "attention")}
        | {key: arrays[f"{name}/{key}"] for key in keys}
        for name, about in _HEAD_SCORES.items()
        if f"{name}/score" in arrays
    ]
    return {"scores": scores, "level": _level(settings)}


def _level(settings: Mapping[str, Any]) -> float:
    return float(settings["options"].get("level", 0.95))
