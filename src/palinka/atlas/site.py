"""Pages of an atlas."""

import base64
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from palinka.analyses.figures.text_heatmap import display_tokens
from palinka.analyses.findings import file_names
from palinka.atlas.analyses import Found
from palinka.atlas.facts import LatentFacts
from palinka.atlas.text import BEFORE, Windows
from palinka.errors import InputError
from palinka.training.callbacks.summary import ROWS


def script(name: str, value: Any) -> str:
    """JavaScript that passes data to the page under a name.

    A page on disk may not fetch files, but it may load scripts. Non-ASCII characters and `<` are
    escaped, so that no text is taken for markup under any encoding.

    Args:
        name: Key of the data.
        value: Plain values; numbers are finite.

    Raises:
        ValueError: If a number is not finite.
    """
    arguments = (
        json.dumps(part, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
        for part in (name, value)
    )
    return f"palinka.receive({','.join(arguments)});\n".replace("<", "\\u003c")


def packed(array: NDArray[Any], kind: str) -> dict[str, str]:
    """Array as little-endian bytes in base64.

    Args:
        array: Any shape; flattened.
        kind: `float32`, `uint32`, `uint16` or `uint8`.
    """
    little = np.dtype(kind).newbyteorder("<")
    data = np.ascontiguousarray(array, dtype=little).tobytes()
    return {"kind": kind, "data": base64.b64encode(data).decode("ascii")}


def short(value: float, digits: int = 4) -> float | None:
    """Round to significant digits; None where not finite."""
    return float(f"{value:.{digits}g}") if np.isfinite(value) else None


# Latents in a file: a few hundred kilobytes, read in a few milliseconds.
CHUNK = 64
# In place of a token beyond the context: the largest number of the kind.
KINDS = ("uint16", "uint32")


class Chunks:
    """Records of all latents, in chunks of one file each."""

    def __init__(self, facts: LatentFacts) -> None:
        self._facts = facts
        # Tokens with a part of a character, which is readable only among its neighbors.
        self._parts = {token for token, text in facts.vocabulary.items() if not _is_whole(text)}
        # Tokens are stored as indices into the list of those that occur.
        self._ids = np.array(sorted(facts.vocabulary))
        self._kind = next(k for k in KINDS if len(self._ids) < np.iinfo(k).max)

    def __iter__(self) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """Index of each file and its records."""
        count = len(self._facts.words)
        for number, start in enumerate(range(0, count, CHUNK)):
            yield number, [self._record(i) for i in range(start, min(start + CHUNK, count))]

    def _record(self, latent: int) -> dict[str, Any]:
        facts = self._facts
        report = facts.report
        counts = facts.histogram.counts[latent]
        used = int(np.flatnonzero(counts).max(initial=-1)) + 1
        pairs = [(report.raised, report.raised_by), (report.lowered, report.lowered_by)]
        raised, lowered = (
            [] if ids is None or by is None else _effects(self._places(ids[latent]), by[latent])
            for ids, by in pairs
        )
        return {
            "histogram": {
                "width": float(facts.histogram.width[latent]),
                "counts": counts[:used].tolist(),
            },
            "top": self._windows(facts.top, latent),
            "bands": self._windows(facts.bands, latent),
            "sampled": int(facts.sampled[latent]),
            "words": [
                [word.text, word.places, short(word.activation)] for word in facts.words[latent]
            ],
            "raised": raised,
            "lowered": lowered,
            "nearest": _effects(report.nearest[latent], report.nearest_cosine[latent]),
        }

    def _windows(self, windows: Windows, latent: int) -> dict[str, Any]:
        """All windows of a latent, with their columns."""
        columns = np.flatnonzero(windows.places[latent] >= 0)
        tokens = windows.tokens[latent, columns]
        values = windows.activations[latent, columns]
        return {
            "columns": columns.tolist(),
            "document": windows.documents[latent, columns].tolist(),
            "position": windows.positions[latent, columns].tolist(),
            "tokens": packed(self._places(tokens), self._kind),
            "activations": [
                [part for at in np.flatnonzero(row) for part in (int(at), short(row[at]))]
                for row in values
            ],
            "shown": [self._shown(row.tolist()) for row in tokens],
        }

    def _places(self, tokens: NDArray[Any]) -> NDArray[np.int64]:
        """Indices into the vocabulary; the largest number of the kind for none."""
        return np.where(tokens < 0, np.iinfo(self._kind).max, np.searchsorted(self._ids, tokens))

    def _shown(self, tokens: list[int]) -> dict[int, str]:
        """Display text of tokens with a part of a character, by place."""
        if self._parts.isdisjoint(tokens):
            return {}
        places = [place for place, token in enumerate(tokens) if token >= 0]
        vocabulary = self._facts.vocabulary
        texts = display_tokens([vocabulary[tokens[place]] for place in places])
        return {p: t for p, t in zip(places, texts, strict=True) if tokens[p] in self._parts}


def _effects(ids: NDArray[np.int64], by: NDArray[np.float32]) -> list[list[Any]]:
    return [[int(i), short(value)] for i, value in zip(ids, by, strict=True)]


def _is_whole(token: bytes) -> bool:
    try:
        token.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


# Words and tokens in the search index of a latent.
_WORDS = 8
_TOKENS = 5
_LABEL_WORDS = 4


@dataclass(frozen=True)
class Column:
    """A column of the table: one number per latent.

    Attributes:
        key: Name in links and filters.
        label: Heading.
        about: Tooltip, a sentence.
        values: `(latents,)`; NaN where missing.
        log: Logarithmic axis.
    """

    key: str
    label: str
    about: str
    values: NDArray[np.floating[Any]]
    log: bool = False

    def described(self) -> dict[str, Any]:
        """Plain values for the page."""
        return {
            "key": self.key,
            "label": self.label,
            "about": self.about,
            "log": self.log,
            "values": packed(self.values, "float32"),
        }


# Arrays that analyses write: heading, tooltip, logarithmic axis.
_FIELDS = {
    "score": ("score", "mean activation at the category's tokens over that at the others", False),
    "auc": ("AUC", "how well it detects the category's tokens; 0.5 is chance", False),
    "p_value": ("p", "corrected for the number of latents", True),
    "auc_p_value": ("p of AUC", "corrected for the number of latents", True),
    "p": ("p", "two-sided, each latent by itself", True),
    "p_adjusted": ("p adj.", "two-sided, corrected for the number of latents", True),
    "t": ("t", "statistic of the difference of the two conditions", False),
    "effect_size": ("g", "Hedges' g of the difference of the two conditions", False),
    "significant": ("sig.", "1 where the difference holds after correction", False),
}


def columns(facts: LatentFacts, analyses: Sequence[Found]) -> Iterator[Column]:
    """Columns of the table."""
    report = facts.report
    dead = report.density == 0
    yield Column("density", "density %", "share of tokens at which it is active", report.density,
                 log=True)  # fmt: skip
    activation = np.where(dead, np.nan, report.activation)
    yield Column("activation", "mean", "mean activation where it is active", activation, log=True)
    largest = np.where(report.top_activation[:, 0] > 0, report.top_activation[:, 0], np.nan)
    yield Column("max", "max", "largest activation", largest, log=True)
    if report.raised_by is not None and report.lowered_by is not None:
        about = "direct effect on the logit of the token that it {} most; no unit"
        yield Column("raises", "raises by", about.format("raises"), report.raised_by[:, 0])
        yield Column("lowers", "lowers by", about.format("lowers"), report.lowered_by[:, 0])
    if report.nearest_cosine.shape[1]:
        yield Column("nearest", "nearest", "cosine with the nearest other direction",
                     report.nearest_cosine[:, 0])  # fmt: skip
    for found in analyses:
        for name, values in found.columns.items():
            part, _, field = name.rpartition("/")
            label, about, log = _FIELDS.get(field, (field.replace("_", " "), field, False))
            of = " ".join(dict.fromkeys(word for word in (found.name, part) if word))
            yield Column(f"{found.name}/{name}", f"{of} {label}", f"{of}: {about}", values, log)


def labels(facts: LatentFacts) -> list[str]:
    """Label of each latent: its top words."""
    return [" · ".join(word.text for word in words[:_LABEL_WORDS]) for words in facts.words]


def search_texts(facts: LatentFacts) -> list[str]:
    """Search text of each latent besides its label: further words and promoted tokens."""
    texts = shown_tokens(facts.vocabulary)
    raised = facts.report.raised
    return [
        " ".join(
            [
                *(word.text for word in words[_LABEL_WORDS:_WORDS]),
                *([] if raised is None else (texts[int(t)].strip() for t in raised[i, :_TOKENS])),
            ]
        )
        for i, words in enumerate(facts.words)
    ]


def shown_tokens(vocabulary: Mapping[int, bytes]) -> dict[int, str]:
    """Display text of every token."""
    return {token: display_tokens([text])[0] for token, text in vocabulary.items()}


def metrics(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Metrics with their intervals, from values such as `val/fvu` and `val_interval/fvu/low`."""
    found = []
    for name, label in ROWS.items():
        if name.startswith("val/") and name in values:
            low, high = (
                values.get(f"val_interval/{name.removeprefix('val/')}/{end}")
                for end in ("low", "high")
            )
            found.append(
                {
                    "label": label,
                    "value": short(float(values[name]), 5),
                    "low": None if low is None else short(float(low), 5),
                    "high": None if high is None else short(float(high), 5),
                }
            )
    return found


PAGES = Path(__file__).with_name("pages")
# Entries of a site: a folder with anything else is never replaced.
PARTS = frozenset({"index.html", "assets", "data", "figures"})
FORMAT = 1


@dataclass(frozen=True)
class About:
    """Provenance of an atlas.

    Attributes:
        language_model: Name of the model.
        site: Site of the latents.
        autoencoder: Class of the autoencoder.
        metrics: Metrics by name, such as `val/fvu`.
        text: Name of the measured text, after "of" and "on".
    """

    language_model: str
    site: str
    autoencoder: str
    metrics: Mapping[str, Any]
    text: str = "the validation split"


def write_site(
    output: Path, facts: LatentFacts, about: About, analyses: Sequence[Found] = ()
) -> Path:
    """Write the atlas into a folder, atomically.

    Args:
        output: A new or empty folder, or an atlas, which is replaced.
        facts: Measurements of the latents.
        about: Provenance.
        analyses: Findings of analyses.

    Returns:
        The page to open, `index.html`.

    Raises:
        InputError: If the folder has other contents, or cannot be written.
    """
    check_output(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
        try:
            shutil.copyfile(PAGES / "index.html", beside / "index.html")
            shutil.copytree(PAGES / "assets", beside / "assets")
            (beside / "data").mkdir()
            for name, value in _data(facts, about, analyses):
                text = script(name, value)
                (beside / "data" / f"{name}.js").write_text(text, encoding="ascii")
            _copy_figures(beside / "figures", analyses)
            beside.chmod(0o755)  # temporary folders have mode 0700
            if output.exists():
                shutil.rmtree(output)
            beside.replace(output)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    except OSError as error:
        raise InputError(
            f"the atlas cannot be written to {output}: {error.strerror or error}; give another"
            " output folder"
        ) from error
    return output / "index.html"


def check_output(output: Path) -> None:
    """Reject an output folder that is not an atlas, before anything is measured."""
    if not output.exists():
        return
    if not output.is_dir():
        raise InputError(f"{output} is a file; give a folder for the atlas")
    names = {path.name for path in output.iterdir()}
    if names and not (names <= PARTS and (output / "data" / "overview.js").is_file()):
        raise InputError(f"{output} already exists and is not an atlas; choose another folder")


def figure_names(found: Found, number: int) -> dict[Path, str]:
    """File name of each figure of an analysis in the site."""
    safe = file_names(path.stem for path in found.figures)
    return {path: f"{number}-{safe[path.stem]}.png" for path in found.figures}


def _data(facts: LatentFacts, about: About, analyses: Sequence[Found]) -> Iterator[tuple[str, Any]]:
    yield "overview", _overview(facts, about, analyses)
    yield "labels", labels(facts)
    yield "search", search_texts(facts)
    tokens = shown_tokens(facts.vocabulary)
    ids = sorted(tokens)
    yield (
        "vocabulary",
        {"ids": packed(np.array(ids), "uint32"), "texts": [tokens[token] for token in ids]},
    )
    for number, records in Chunks(facts):
        yield f"latents-{number:04d}", records
    for number, found in enumerate(analyses):
        yield f"analysis-{number}", _analysis(found, number)


def _overview(facts: LatentFacts, about: About, analyses: Sequence[Found]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "palinka": version("palinka"),
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "language_model": about.language_model,
        "site": about.site,
        "autoencoder": about.autoencoder,
        "text": about.text,
        "latents": len(facts.words),
        "rows": facts.rows,
        "chunk": CHUNK,
        "before": BEFORE,
        "quantiles": facts.quantiles,
        "per_quantile": facts.bands.places.shape[1] // facts.quantiles,
        "metrics": metrics(about.metrics),
        "notes": list(facts.report.notes),
        "columns": [column.described() for column in columns(facts, analyses)],
        "analyses": [
            {"name": found.name, "kind": found.settings.get("analysis", "")} for found in analyses
        ],
    }


def _analysis(found: Found, number: int) -> dict[str, Any]:
    return {
        "name": found.name,
        "settings": list(found.settings.items()),
        "scalars": list(found.scalars.items()),
        "notes": found.notes,
        "summary": found.summary,
        "figures": [
            {"file": name, "title": path.stem, "caption": found.captions.get(path.stem, "")}
            for path, name in figure_names(found, number).items()
        ],
        "tables": [
            {"name": name, "rows": [row for row in rows if row]}
            for name, rows in found.tables.items()
        ],
    }


def _copy_figures(folder: Path, analyses: Sequence[Found]) -> None:
    for number, found in enumerate(analyses):
        for path, name in figure_names(found, number).items():
            folder.mkdir(exist_ok=True)
            shutil.copyfile(path, folder / name)
