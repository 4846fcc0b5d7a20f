"""Effects of interventions on latents, and scores of heads, in findings on disk."""

import csv
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from palinka.analyses.figures.head_scores import UNITS

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
_OF_SLOPE = """KL: where the divergence on neutral text first reaches so many nats. \
The slope is per median norm of the activations; p compares it with directions of equal norm."""


def latent_effects(
    path: Path, settings: Mapping[str, Any], arrays: Arrays
) -> dict[int, list[dict[str, Any]]]:
    """Effects of interventions on single latents, by latent, from a folder of findings.

    Each outcome of an analysis is an entry: a sentence `about` it, its `rows`, a `note` on their
    p-values, and the `level` of the intervals.
    """
    kind, outcomes = str(settings.get("analysis")), settings.get("outcomes", ())
    found = defaultdict[int, list[dict[str, Any]]](list)
    for outcome in outcomes if kind == "steering" or kind in _CELLS else ():
        part = outcome if len(outcomes) > 1 else ""
        words = outcome.replace("_", " ")
        if toward := settings["intervention"].get("toward"):
            words += f" toward “{toward}”"
        if kind == "steering":
            at = settings["options"].get("kl_at", 0.1)
            about = f"Steered along its direction: change of the {words}"
            rows, note = _steered(_table(path, part, "directions"), at), _OF_SLOPE
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


def _steered(table: list[dict[str, str]], at: float) -> Iterator[tuple[int, Row]]:
    nan = np.nan
    for row in table:
        kind, _, latent = row["direction"].partition("_")
        if kind != "latent":
            continue
        for side, verb in (("positive", "added"), ("negative", "subtracted")):
            effect = float(row[f"effect_at_kl_{side}"])
            yield int(latent), (f"{verb}, at a KL of {at:g}", effect, nan, nan, nan)
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
_SCORES = {
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
        {"name": name.replace("_", " "), "about": about, "unit": UNITS.get(name, "attention")}
        | {key: arrays[f"{name}/{key}"] for key in keys}
        for name, about in _SCORES.items()
        if f"{name}/score" in arrays
    ]
    return {"scores": scores, "level": _level(settings)}


def _level(settings: Mapping[str, Any]) -> float:
    return float(settings["options"].get("level", 0.95))
