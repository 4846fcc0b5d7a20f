"""The findings of one analysis: on disk, and in the logger."""

import csv
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

import palinka
from palinka.analyses.result import Result, Table
from palinka.callbacks.dashboard import tensorboard_writers
from palinka.errors import InputError


@dataclass(frozen=True)
class Findings:
    """What one analysis found, under one name.

    Attributes:
        name: The name.
        results: Results by what they are of, such as `hidden.3/comma`; `""` where there is one.
        figures: Figures by name.
        pages: Self-contained HTML pages by name.
        settings: What was analyzed, for the record: plain values.
        summary: What a reader should know of the stimuli, in markdown.
    """

    name: str
    results: Mapping[str, Result]
    figures: Mapping[str, Figure] = field(default_factory=dict)
    pages: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    summary: str = ""

    def scalars(self) -> dict[str, float]:
        """Every single number, by `part/name` or `name`."""
        return self._flat({part: result.scalars() for part, result in self.results.items()})

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Every array, by `part/name` or `name`."""
        return self._flat({part: result.arrays() for part, result in self.results.items()})

    def tables(self) -> dict[str, Table]:
        """Every table, by `part/name` or `name`."""
        return self._flat({part: result.tables() for part, result in self.results.items()})

    def markdown(self) -> str:
        """The numbers as a table, the remarks, and the summary of the stimuli."""
        rows = [f"| {name} | {value:.6g} |" for name, value in self.scalars().items()]
        notes = [
            f"- {f'{part}: ' if part else ''}{note}"
            for part, result in self.results.items()
            for note in result.notes
        ]
        blocks = ["\n".join(["| finding | value |", "|---|---|", *rows]), "\n".join(notes)]
        return "\n\n".join(block for block in [*blocks, self.summary] if block)

    def report(self, most: int = 24) -> str:
        """The name, the numbers and the remarks for a terminal, at most `most` numbers."""
        scalars = self.scalars()
        shown = dict(list(scalars.items())[:most])
        width = max((len(name) for name in shown), default=0)
        lines = [self.name, *(f"  {name:<{width}}  {value:.6g}" for name, value in shown.items())]
        if len(scalars) > most:
            lines.append(f"  … and {len(scalars) - most} more in findings.json")
        notes = {note for result in self.results.values() for note in result.notes}
        return "\n".join([*lines, *(f"  note: {note}" for note in sorted(notes))])

    def write(self, output: Path) -> Path:
        """Write everything into `<output>/<name>/`, all of it or nothing.

        Returns:
            The folder, in which an earlier run's findings have been replaced.

        Raises:
            InputError: If the folder cannot be written.
        """
        folder = output / self.name
        try:
            output.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=output, prefix=f".{self.name}-") as temporary:
                whole = Path(temporary) / self.name
                whole.mkdir()
                self._write_into(whole)
                if folder.exists():
                    shutil.rmtree(folder)
                whole.replace(folder)
        except OSError as error:
            raise InputError(
                f"the findings cannot be written to {folder}: {error.strerror or error}; give "
                "another output folder"
            ) from error
        return folder

    def log(self, trainer: pl.Trainer, step: int) -> None:
        """Hand the numbers to every logger, and figures and text to TensorBoard."""
        prefix = f"analyses/{self.name}"
        scalars = {f"{prefix}/{name}": value for name, value in self.scalars().items()}
        for logger in trainer.loggers:
            logger.log_metrics(scalars, step)
        for writer in tensorboard_writers(trainer):
            for name, figure in self.figures.items():
                writer.add_figure(f"{prefix}/{name}", figure, step, close=False)
            writer.add_text(prefix, self.markdown(), step)

    def _flat(self, by_part: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        return {
            f"{part}/{name}" if part else name: value
            for part, values in by_part.items()
            for name, value in values.items()
        }

    def _write_into(self, folder: Path) -> None:
        record = {
            "name": self.name,
            "scalars": {name: _plain(value) for name, value in self.scalars().items()},
            "notes": {part: list(result.notes) for part, result in self.results.items()},
            "settings": dict(self.settings),
            "palinka": palinka.__version__,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
        (folder / "findings.json").write_text(text + "\n", encoding="utf-8")
        arrays: dict[str, Any] = dict(self.arrays())
        np.savez_compressed(folder / "arrays.npz", **arrays)
        if self.summary:
            (folder / "stimuli.md").write_text(self.summary + "\n", encoding="utf-8")
        for name, table in self.tables().items():
            _write_csv(folder / f"{_file_name(name)}.csv", table)
        for name, figure in self.figures.items():
            for ending in ("png", "svg"):
                figure.savefig(folder / f"{_file_name(name)}.{ending}")
        for name, page in self.pages.items():
            (folder / f"{_file_name(name)}.html").write_text(page, encoding="utf-8")


def _plain(value: float) -> float | None:
    """JSON has no NaN and no infinities."""
    return value if np.isfinite(value) else None


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name)


def _write_csv(path: Path, table: Table) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(table)
        writer.writerows(zip(*table.values(), strict=True))
