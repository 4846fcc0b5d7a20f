"""What analyses have found, as it lies on disk, for the atlas: figures, tables, latents' values."""

import csv
import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray

from palinka.errors import read_ordinary

# More than any analysis writes, so that a folder of something else does not fill the site.
_MOST_FIGURES = 60
_LARGEST_FIGURE = 32 << 20
_MOST_ROWS = 200
_LARGEST_TEXT = 32 << 20
_LARGEST_ARRAYS = 1 << 30
_PNG = b"\x89PNG\r\n\x1a\n"
# Only what says what was done; no folders of this machine.
_SETTINGS = ("analysis", "language_model", "revision", "sites", "site", "units", "autoencoder",
             "stimuli", "stimuli_hash", "options", "rows")  # fmt: skip
# The report on the latents is what the rest of the atlas shows.
_OWN = "latents"


@dataclass(frozen=True)
class Found:
    """One analysis.

    Attributes:
        name: Its name.
        scalars: Single numbers by name; None where there is none.
        notes: Remarks, with what they are of.
        settings: What was analyzed, in words.
        summary: What is to be known of the stimuli.
        figures: PNG files.
        tables: Rows of cells by name, headings first.
        columns: By name a value for each latent.
        captions: What figures show, by the names of their files without the ending.
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
    """Read the findings of every analysis in a folder; what is none is passed over.

    Args:
        folder: `<log_dir>/analyses`; None, or one that is not there, has none.
        latents: How many latents there are. Values of so many latents become columns.
        site: Where the latents are: findings of other sites give no columns.
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
        record = json.loads(_text(path / "findings.json"))
        settings = dict(record.get("settings", {}))
        summary = path / "stimuli.md"
        yield Found(
            str(record["name"]),
            {str(name): _number(value) for name, value in dict(record["scalars"]).items()},
            [(str(p), str(n)) for p, notes in dict(record["notes"]).items() for n in notes],
            {name: _words(name, settings[name]) for name in _SETTINGS if settings.get(name)},
            _text(summary) if summary.exists() else "",
            list(_figures(path)),
            {file.stem: _table(file) for file in sorted(path.glob("*.csv"))},
            dict(_columns(path / "arrays.npz", latents))
            if settings.get("units") == "latents" and settings.get("sites") == [site]
            else {},
            {str(name): str(text) for name, text in dict(record.get("captions", {})).items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        rank_zero_warn(f"{path}: no findings that the atlas can show ({error})")


def _figures(path: Path) -> Iterator[Path]:
    for file in sorted(path.glob("*.png"))[:_MOST_FIGURES]:
        if read_ordinary(file, _LARGEST_FIGURE).startswith(_PNG):
            yield file


def _columns(path: Path, latents: int) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Every array with one number for each latent."""
    if not path.exists():
        return
    # A number takes eight bytes; what unpacks to more is none of ours.
    most = 8 * latents + (1 << 16)
    with np.load(io.BytesIO(read_ordinary(path, _LARGEST_ARRAYS)), allow_pickle=False) as arrays:
        sizes = {member.filename: member.file_size for member in arrays.zip.infolist()}
        for name in arrays.files:
            if sizes[f"{name}.npy"] > most:
                continue
            array = arrays[name]
            if array.shape == (latents,) and array.dtype.kind in "biuf":
                yield name, array.astype(np.float64)


def _table(path: Path) -> list[list[str]]:
    rows = csv.reader(io.StringIO(_text(path), newline=""))
    return [row for _, row in zip(range(_MOST_ROWS + 1), rows, strict=False)]


def _text(path: Path) -> str:
    return read_ordinary(path, _LARGEST_TEXT).decode("utf-8", errors="replace")


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _words(name: str, value: Any) -> str:
    if name == "stimuli":
        return Path(str(value)).name
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
