"""Findings of analyses on disk, as the atlas shows them."""

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray

from palinka.analyses.findings import file_names
from palinka.atlas.effects import head_scores, latent_effects
from palinka.errors import InputError, counted

_MAX_ROWS = 200
_SCORES = ("detection", "fuzzing", "intruder")  # of explanations
EVALUATION = "evaluation"
# Settings without folders of this machine.
_SETTINGS = ("analysis", "language_model", "revision", "sites", "site", "units", "autoencoder",
             "stimuli", "stimuli_hash", "options", "rows")  # fmt: skip


@dataclass(frozen=True)
class Found:
    """Findings of one analysis.

    Attributes:
        page: Plain values for its page: name, settings, scalars (None for NaN), notes with their
            part, summary of the stimuli, figures, and tables with headings first.
        figures: PNG files by their name in the atlas.
        columns: One value per latent, by name.
        effects: Effects of interventions on single latents, by latent.
        heads: Scores of all attention heads, and the level of their intervals.
        explanations: Text, model and scores of explained latents, by latent.
    """

    page: dict[str, Any]
    figures: dict[str, Path]
    columns: dict[str, NDArray[np.float64]]
    effects: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    heads: dict[str, Any] = field(default_factory=dict)
    explanations: dict[int, dict[str, Any]] = field(default_factory=dict)


def read_analyses(folder: Path | None, latents: int, site: str, checksum: str = "") -> list[Found]:
    """Read the findings of every analysis in a folder; skip other folders with a warning.

    Arrays of `latents` numbers become columns, if the findings are of latents at `site`, and those
    of an evaluation if it has the dictionary, which it finds by the `checksum` of its checkpoint.
    The evaluation of a sweep is in the folder of the whole run.
    """
    found: list[Found] = []
    paths = sorted(folder.iterdir()) if folder is not None and folder.is_dir() else []
    if folder is not None and not any(path.name == EVALUATION for path in paths):
        whole = folder.parent.parent / folder.name / EVALUATION
        paths += [whole] if checksum and whole.is_dir() else []
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
    columns, effects, arrays = {}, {}, dict[str, NDArray[Any]]()
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
        every = json.loads(evaluated.read_text(encoding="utf-8"))["dictionaries"]
        own = next((one["name"] for one in every if checksum and one["sha256"] == checksum), None)
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
            (name, None if (value := record["scalars"][name]) is None else float(value))
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
    """Read `explanations.json` of `palinka explain` as findings, of the checkpoint if known.

    Raises:
        InputError: If the latents are others.
    """
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
    explanations, numbers = {}, ("value", "low", "high", "n")
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
    return Found(page, {}, columns, explanations=explanations)


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
