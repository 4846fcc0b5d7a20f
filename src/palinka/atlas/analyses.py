"""Findings of analyses on disk, as the atlas shows them."""

import csv
import json
from dataclasses import dataclass
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
    columns: dict[str, NDArray[np.float64]]
    captions: dict[str, str]


def read_analyses(folder: Path | None, latents: int, site: str) -> list[Found]:
    """Read the findings of every analysis in a folder; skip other folders with a warning.

    Arrays of `latents` numbers become columns, if the findings are of latents at `site`.
    """
    found: list[Found] = []
    for path in sorted(folder.iterdir()) if folder is not None and folder.is_dir() else ():
        # The report on the latents makes up the rest of the atlas.
        if not path.is_dir() or path.name.startswith(".") or path.name == "latents":
            continue
        try:
            found.append(_read(path, latents, site))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            rank_zero_warn(f"{path} has no readable findings ({error}); left out of the atlas")
    return found


def _read(path: Path, latents: int, site: str) -> Found:
    record = json.loads((path / "findings.json").read_text(encoding="utf-8"))
    settings = dict(record.get("settings", {}))
    columns = {}
    ours = settings.get("units") == "latents" and settings.get("sites") == [site]
    if ours and (path / "arrays.npz").exists():
        with np.load(path / "arrays.npz", allow_pickle=False) as arrays:
            for name, array in arrays.items():
                if array.shape == (latents,) and array.dtype.kind in "biuf":
                    columns[name] = array.astype(np.float64)
    tables = {}
    for file in sorted(path.glob("*.csv")):
        with file.open(encoding="utf-8", newline="") as stream:
            tables[file.stem] = list(islice(csv.reader(stream), _MAX_ROWS + 1))
    summary = path / "stimuli.md"
    return Found(
        name=str(record["name"]),
        scalars={str(n): v if v is None else float(v) for n, v in record["scalars"].items()},
        notes=[(str(p), str(note)) for p, notes in record["notes"].items() for note in notes],
        settings={name: _text(name, settings[name]) for name in _SETTINGS if settings.get(name)},
        summary=summary.read_text(encoding="utf-8") if summary.exists() else "",
        figures=sorted(path.glob("*.png")),
        tables=tables,
        columns=columns,
        captions={str(name): str(text) for name, text in record.get("captions", {}).items()},
    )


def _text(name: str, value: Any) -> str:
    if name == "stimuli":
        return Path(str(value)).name
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
