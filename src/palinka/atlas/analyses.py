"""Findings of analyses on disk, as the atlas shows them."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray

_MAX_ROWS = 200
# Settings without folders of this machine.
_SETTINGS = ("analysis", "language_model", "revision", "sites", "site", "units", "autoencoder",
             "stimuli", "stimuli_hash", "options", "rows")  # fmt: skip
# The report on the latents makes up the rest of the atlas.
_OWN = "latents"


@dataclass(frozen=True)
class Found:
    """Findings of one analysis.

    Attributes:
        name: Name of the analysis.
        scalars: Single numbers by name; None for NaN.
        notes: Remarks, each with its part of the analysis.
        settings: Settings as text.
        summary: Summary of the stimuli, in markdown.
        figures: PNG files.
        tables: Rows of cells by name, headings first.
        columns: One value per latent, by name.
        captions: Captions of the figures, by file name without suffix.
    """

    name: str
    scalars: dict[str, float | None]
    notes: list[tuple[str, str]]
    settings: dict[str, str]
    summary: str
    figures: list[Path]
    tables: dict[str, list[list[str]]]
    columns: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    captions: dict[str, str] = field(default_factory=dict)


def read_analyses(folder: Path | None, latents: int, site: str) -> list[Found]:
    """Read the findings of every analysis in a folder; skip other folders with a warning.

    Args:
        folder: `<log_dir>/analyses`; may be missing.
        latents: Number of latents. Arrays of that length become columns.
        site: Site of the latents; findings at other sites have no columns.
    """
    if folder is None or not folder.is_dir():
        return []
    return [
        found
        for path in sorted(folder.iterdir())
        if path.is_dir() and not path.name.startswith(".") and path.name != _OWN
        for found in _read(path, latents, site)
    ]


def _read(path: Path, latents: int, site: str) -> Iterator[Found]:
    try:
        record = json.loads((path / "findings.json").read_text(encoding="utf-8"))
        settings = dict(record.get("settings", {}))
        summary = path / "stimuli.md"
        yield Found(
            str(record["name"]),
            {str(name): _number(value) for name, value in dict(record["scalars"]).items()},
            [(str(p), str(n)) for p, notes in dict(record["notes"]).items() for n in notes],
            {name: _words(name, settings[name]) for name in _SETTINGS if settings.get(name)},
            summary.read_text(encoding="utf-8") if summary.exists() else "",
            sorted(path.glob("*.png")),
            {file.stem: _table(file) for file in sorted(path.glob("*.csv"))},
            dict(_columns(path / "arrays.npz", latents))
            if settings.get("units") == "latents" and settings.get("sites") == [site]
            else {},
            {str(name): str(text) for name, text in dict(record.get("captions", {})).items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        rank_zero_warn(f"{path} has no readable findings ({error}); left out of the atlas")


def _columns(path: Path, latents: int) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Arrays with one number per latent."""
    if not path.exists():
        return
    with np.load(path, allow_pickle=False) as arrays:
        for name, array in arrays.items():
            if array.shape == (latents,) and array.dtype.kind in "biuf":
                yield name, array.astype(np.float64)


def _table(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(islice(csv.reader(file), _MAX_ROWS + 1))


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _words(name: str, value: Any) -> str:
    if name == "stimuli":
        return Path(str(value)).name
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
