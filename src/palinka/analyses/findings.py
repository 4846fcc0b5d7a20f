"""Findings of an analysis, and their files."""

import csv
import hashlib
import json
import shutil
import tempfile
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from palinka.analyses.result import Result, Table
from palinka.analyses.stimuli.base import code_span
from palinka.errors import InputError, escape_control_chars

# With an ending it stays below the 255 bytes that file systems allow.
_LONGEST_BYTES = 150


def file_names(names: Iterable[str]) -> dict[str, str]:
    """A file name without its ending for each name, all of them different.

    Letters and digits of every script stay, and so do `-`, `_` and `.`; everything else becomes
    `-`. A name that is too long, only dots, or would be the same file as an earlier one, also
    where case and composition do not count, ends in eight digits of its hash.
    """
    found: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        plain = "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
        unusable = not plain.strip(".") or len(plain.encode()) > _LONGEST_BYTES
        if unusable or unicodedata.normalize("NFC", plain).casefold() in taken:
            digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
            start = plain.encode()[:_LONGEST_BYTES].decode(errors="ignore")
            plain = f"{start}-{digest}".lstrip("-")
        taken.add(unicodedata.normalize("NFC", plain).casefold())
        found[name] = plain
    return found


def within_part(part: str, name: str) -> str:
    """`part/name`, or `name` where there is one part."""
    return f"{part}/{name}" if part else name


@dataclass(frozen=True)
class Findings:
    """Results and figures of one analysis.

    Attributes:
        name: The name of their folder.
        results: Results by part, such as `hidden.3/comma`; `""` where there is one.
        figures: Figures by name; the label of each is its caption.
        pages: Self-contained HTML pages by name.
        settings: Plain values that make the analysis reproducible.
        summary: The stimuli in brief, in markdown.
    """

    name: str
    results: Mapping[str, Result]
    figures: Mapping[str, Figure] = field(default_factory=dict)
    pages: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    summary: str = ""

    def __repr__(self) -> str:
        return f"Findings({'; '.join(self.headlines())})"

    def scalars(self) -> dict[str, float]:
        """Every single number, by `part/name` or `name`."""
        return self._by_name("scalars")

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Every array, by `part/name` or `name`."""
        return self._by_name("arrays")

    def tables(self) -> dict[str, Table]:
        """Every table, by `part/name` or `name`."""
        return self._by_name("tables")

    def _by_name(self, method: str) -> dict[str, Any]:
        return {
            within_part(part, name): value
            for part, result in self.results.items()
            for name, value in getattr(result, method)().items()
        }

    def at(self, site: str) -> dict[str, NDArray[Any]]:
        """Every array of a site, by its name; none of a site that was not analyzed."""
        result = self.results.get(site, self.results.get(""))
        return result.arrays() if result and site in self.settings["sites"] else {}

    def strongest_units(
        self, site: str, units: int, by: str = "t", k: int = 20, side: str = "both"
    ) -> NDArray[np.int64]:
        """The k of the units of a site with the largest values of a finding, the largest first.

        `side` is `positive`, `negative` for the smallest, or `both` for the largest magnitudes;
        fewer where fewer values have that sign.
        """
        if (values := (known := self.at(site)).get(by)) is None:
            there = f"it has {', '.join(known)}" if known else "its site is another one"
            raise InputError(f"{self.name} has no {by!r} of the units of {site}; {there}")
        if values.shape != (units,):
            given = f"{by!r} of {self.name} has the shape {values.shape}"
            raise InputError(f"{given}; expected a value for each of the {units} units of {site}")
        signed = {"positive": values, "negative": -values, "both": np.abs(values)}
        if side not in signed:
            raise InputError(f"side is {side!r}; expected {', '.join(signed)}")
        order: NDArray[np.int64] = np.argsort(-signed[side], kind="stable")[:k]
        return np.asarray(order[signed[side][order] > 0])

    def markdown(self) -> str:
        """The numbers as a table, the remarks, and the summary of the stimuli."""
        rows = [f"| {code_span(name)} | {value:.6g} |" for name, value in self.scalars().items()]
        notes = [
            f"- {f'{code_span(part)}: ' if part else ''}{code_span(note)}"
            for part, result in self.results.items()
            for note in result.notes
        ]
        table = "\n".join(["| finding | value |", "|---|---|", *rows])
        return "\n\n".join(filter(None, [table, "\n".join(notes), self.summary]))

    def headlines(self, most: int = 6, parts: int = 4) -> list[str]:
        """One line for each of the first parts: its headline, or at most `most` numbers."""
        lines = []
        for part, result in list(self.results.items())[:parts]:
            scalars = self._printed(result)
            kept = sorted(scalars, key=lambda name: "p_value" not in name)[:most]
            numbers = ", ".join(f"{n} {text}" for n, text in scalars.items() if n in kept)
            numbers = numbers.replace("p_value", "p").replace("_", " ")
            name = within_part(self.name, part) if part else self.name
            numbers += "; no test, no p-value" * (not _tested(result))
            lines.append(escape_control_chars(f"{name}: {self._headline(result) or numbers}"))
        more = len(self.results) - parts
        return lines + [f"{self.name}: … and {more} more in findings.json"] * (more > 0)

    def report(self, most: int = 24) -> str:
        """Headlines or the name, at most `most` numbers, and the remarks, for a terminal."""
        scalars = [
            (escape_control_chars(within_part(part, name)), text)
            for part, result in self.results.items()
            for name, text in self._printed(result).items()
        ]
        width = max((len(name) for name, _ in scalars[:most]), default=0)
        whole = all(map(self._headline, self.results.values()))
        untested = "" if any(map(_tested, self.results.values())) else ": no test, no p-value"
        lines = self.headlines() if whole else [self.name + untested]
        lines += [f"  {name:<{width}}  {text}" for name, text in scalars[:most]]
        if len(scalars) > most:
            lines.append(f"  … and {len(scalars) - most} more in findings.json")
        for note in sorted({note for result in self.results.values() for note in result.notes}):
            parts = [part for part, result in self.results.items() if note in result.notes]
            of = f"{', '.join(parts)}: " if len(parts) < len(self.results) else ""
            lines.append(f"  note: {escape_control_chars(of + note)}")
        return "\n".join(lines)

    def _headline(self, result: Result) -> str:
        return result.headline(*self._units_and_conditions())

    def _units_and_conditions(self) -> tuple[str, Sequence[str]]:
        return self.settings.get("units", "latents"), self.settings.get("conditions", ("a", "b"))

    def _printed(self, result: Result) -> dict[str, str]:
        """Scalars with units; those that end with a significant p-value come first."""
        (units, conditions), group = self._units_and_conditions(), 1
        level = getattr(result, "level", None)
        alpha = getattr(result, "alpha", 0.05) if level is None else round(1.0 - level, 12)
        found: list[dict[str, str]] = [{}, {}, {}]  # significant, others, and without a p-value
        for name, value in result.scalars().items():
            is_chance = "p_value" in name and not value <= alpha
            unit = result.scalar_units.get(name, "").format(units, *conditions)
            number = f"{value:.{6 if value.is_integer() else 4}g}"
            text = f"{'none' if np.isnan(value) else number} {unit}".rstrip()
            found[2][name] = text + " (not significant)" * is_chance
            if name.endswith("p_value"):
                group = is_chance if len(found[2]) > 1 else group  # several p-values stay together
                found[group] |= found[2]
                found[2] = {}
        return found[0] | found[1] | found[2]

    def write(self, output: Path) -> Path:
        """Write everything into the folder `<output>/<name>/`, all of it or nothing.

        An earlier run's findings in it are replaced.
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
            problem = f"{folder}: {error.strerror or error}; give another output folder"
            raise InputError(f"the findings cannot be written to {problem}") from error
        return folder

    def _write_into(self, folder: Path) -> None:
        drawn, tables = file_names(self.figures), self.tables()
        labels = {file: str(self.figures[name].get_label()) for name, file in drawn.items()}
        captions = {file: escape_control_chars(label) for file, label in labels.items()}
        record = {
            "name": self.name,
            "scalars": {n: v if np.isfinite(v) else None for n, v in self.scalars().items()},
            "notes": {part: list(result.notes) for part, result in self.results.items()},
            "settings": dict(self.settings),
            "captions": captions,
            "palinka": version("palinka"),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
        _write_text(folder / "findings.json", text + "\n")
        np.savez_compressed(folder / "arrays.npz", **self._by_name("arrays"))
        if self.summary:
            _write_text(folder / "stimuli.md", self.summary + "\n")
        for name, file in file_names(tables).items():
            with (folder / f"{file}.csv").open("w", newline="", encoding="utf-8") as stream:
                writer = csv.writer(stream)
                writer.writerow(tables[name])
                rows = zip(*tables[name].values(), strict=True)
                writer.writerows([_cell(value) for value in row] for row in rows)
        for name, file in drawn.items():
            about = {"Description": captions[file]} if captions[file] else None
            for ending in ("png", "svg"):
                self.figures[name].savefig(folder / f"{file}.{ending}", metadata=about)
                self.figures[name].set_layout_engine("none")  # computed once, the slowest part
        for name, file in file_names(self.pages).items():
            _write_text(folder / f"{file}.html", self.pages[name])


def _tested(result: Result) -> bool:
    return any("p_value" in name for name in result.scalars())


def _write_text(path: Path, text: str) -> None:
    # Half a character, as in the name of a file that is not UTF-8, becomes its escape.
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def _cell(value: Any) -> Any:
    """The value, text so that a spreadsheet does not take it for a formula to calculate."""
    if not isinstance(value, str):
        return value
    text = escape_control_chars(value)
    return f"'{text}" if len(text) > 1 and text.lstrip()[:1] in tuple("=+-@") else text
