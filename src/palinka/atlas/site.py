"""Pages of an atlas."""

import base64
import json
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from palinka.analyses.figures.text_heatmap import display_tokens
from palinka.analyses.stats.permutation import chunks
from palinka.atlas.against import Against
from palinka.atlas.analyses import Found
from palinka.atlas.facts import LatentFacts
from palinka.atlas.text import BEFORE, TokenActivations, Windows
from palinka.errors import InputError
from palinka.training.callbacks.summary import DOCUMENTS, ROWS, interval


def script(name: str, value: Any) -> str:
    """JavaScript that passes data to the page under a name; no text in it is markup."""
    arguments = json.dumps([name, value], allow_nan=False, separators=(",", ":"))[1:-1]
    return f"palinka.receive({arguments});\n".replace("<", "\\u003c")


def packed(array: NDArray[Any], kind: str) -> dict[str, str]:
    """Array of any shape as little-endian bytes in base64, of a kind such as `float32`."""
    data = np.ascontiguousarray(array, dtype=np.dtype(kind).newbyteorder("<")).tobytes()
    return {"kind": kind, "data": base64.b64encode(data).decode("ascii")}


def short(value: float | None, digits: int = 4) -> float | None:
    """Round to significant digits; None where not finite."""
    return None if value is None or not np.isfinite(value) else float(f"{value:.{digits}g}")


CHUNK = 64  # latents in a file: a few hundred kilobytes, read in a few milliseconds


class Records:
    """Records of single latents, whose tokens are indices into the list of those that occur."""

    def __init__(self, facts: LatentFacts) -> None:
        self._facts = facts
        # Tokens with a part of a character, which is readable only among its neighbors.
        known = facts.vocabulary.items()
        self._parts = {i for i, text in known if text.decode(errors="ignore").encode() != text}
        self._ids = np.array(sorted(facts.vocabulary))
        self._tokens = facts.tokens.of_latents(_TOKENS, len(facts.lengths))
        self._kind = "uint16" if len(self._ids) < np.iinfo("uint16").max else "uint32"

    def __getitem__(self, latent: int) -> dict[str, Any]:
        facts, report, tokens = self._facts, self._facts.report, self._facts.tokens
        own = self._tokens[latent]
        ids, times = tokens.ids[tokens.token[own]], tokens.counts[tokens.token[own]]
        active = np.column_stack([self._places(ids), times, tokens.mean[own], tokens.maximum[own]])
        counts, width = facts.histogram.counts[latent], float(facts.histogram.width[latent])
        effects = {name: values[latent] for name, values in report.effects.items()}
        changed = {
            name: _pairs(self._places(effects[name]), effects[f"{name}_by"]) if effects else []
            for name in ("raised", "lowered")
        }
        return {
            "histogram": {"width": width, "counts": np.trim_zeros(counts, "b").tolist()},
            "top": self._windows(facts.top, latent),
            "bands": self._windows(facts.bands, latent),
            "tokens": [[short(number, 6) for number in row] for row in active.tolist()],
            **changed,
            "length": short(facts.lengths[latent]),
            "nearest": _pairs(report.near.latents[latent], report.near.cosines[latent]),
        }

    def _windows(self, windows: Windows, latent: int) -> dict[str, Any]:
        """All windows of a latent, with their columns."""
        columns = np.flatnonzero(windows.places[latent] >= 0)
        tokens = windows.tokens[latent, columns]
        return {
            "columns": columns.tolist(),
            "document": windows.documents[latent, columns].tolist(),
            "position": windows.positions[latent, columns].tolist(),
            "tokens": packed(self._places(tokens), self._kind),
            "activations": [
                [part for at in np.flatnonzero(row) for part in (int(at), short(row[at]))]
                for row in windows.activations[latent, columns]
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
        texts = display_tokens([self._facts.vocabulary[tokens[place]] for place in places])
        return {p: t for p, t in zip(places, texts, strict=True) if tokens[p] in self._parts}


def _pairs(ids: NDArray[np.int64], values: NDArray[np.float32]) -> list[list[Any]]:
    return [[int(i), short(value)] for i, value in zip(ids, values, strict=True)]


# Arrays that analyses write: heading, unit, tooltip, logarithmic axis.
_FIELDS = {
    "score": ("score", "ratio", "mean activation at the category's tokens over others", False),
    "auc": ("AUC", "0 to 1", "how well it detects the category's tokens; 0.5 is chance", False),
    "p_value": ("p", "corrected", "corrected for the number of latents", True),
    "auc_p_value": ("p of AUC", "corrected", "corrected for the number of latents", True),
    "p": ("p", "uncorrected", "two-sided, each latent by itself", True),
    "p_adjusted": ("p adj.", "corrected", "two-sided, corrected for the number of latents", True),
    "t": ("t", "statistic", "statistic of the difference of the two conditions", False),
    "effect_size": ("g", "sd", "Hedges' g: difference of the conditions over their sd", False),
    "dead": ("never active", "0 or 1", "1 where it is active at no token of the analysis", False),
    "detection": ("detection", "0 to 1", "balanced accuracy of its label; 0.5 is chance", False),
    "fuzzing": ("fuzzing", "0 to 1", "the same of marked tokens", False),
    "intruder": ("intruder", "0 to 1", "share of foreign texts found; 0.2 is chance", False),
    "tokens": ("tokens", "0 to 1", "detection by its main tokens, without an explanation", False),
    "significant": ("sig.", "0 or 1", "1 where the difference holds after correction", False),
    "reappears": ("reappears", "share", "share of the other seeds with a partner of it", False),
    "best_cosine": ("best cosine", "mean", "mean over the other seeds of its best cosine", False),
}


def _columns(facts: LatentFacts, analyses: Sequence[Found]) -> list[dict[str, Any]]:
    """Columns of the table: one number per latent, NaN where missing."""
    columns: list[dict[str, Any]] = []

    def add(
        key: str, label: str, unit: str, about: str, values: NDArray[Any], log: bool = False
    ) -> None:
        named = {"key": key, "label": label, "unit": unit, "about": about, "log": log}
        columns.append({**named, "values": packed(values, "float32")})

    report = facts.report
    density, largest = report.statistics.density, report.top.values[:, 0]
    activation = np.where(density == 0, np.nan, report.statistics.activation)
    add("density", "density", "% of tokens", "share of tokens at which it is active", density, True)
    add("activation", "mean", "activation", "mean where it is active", activation, log=True)
    largest = np.where(largest > 0, largest, np.nan)
    add("max", "max", "activation", "largest activation on the text", largest, log=True)
    if report.effects:
        about = "direct effect on the logit of the token that it {} most, about the mean of all"
        for key, name in (("raises", "raised_by"), ("lowers", "lowered_by")):
            add(key, f"{key} by", "no unit", about.format(key), report.effects[name][:, 0])
    if report.near.cosines.shape[1]:
        about = "cosine with the nearest other direction of the dictionary"
        add("nearest", "nearest", "cosine", about, report.near.cosines[:, 0])
    if facts.against:
        matches, values = facts.against.matches, np.full(len(density), np.nan)
        values[matches.pairs[:, 0]] = matches.cosines
        add("match", "match", "cosine", f"cosine with its match in {facts.against.name}", values)
    for found in analyses:
        for name, values in found.columns.items():
            part, _, field = name.rpartition("/")
            plain = (field.replace("_", " "), "", field, False)
            label, unit, about, log = _FIELDS.get(field, plain)
            analysis = found.page["name"]
            of = " ".join(dict.fromkeys(word for word in (analysis, part) if word))
            add(f"{analysis}/{name}", f"{of} {label}", unit, f"{of}: {about}", values, log)
    return columns


def _metrics(values: Mapping[str, Any], kind: str) -> list[dict[str, Any]]:
    """Metrics in the terminal's units, from values such as `val/fvu`, `val_interval/fvu/low`."""
    found = []
    for name, (label, unit) in ROWS.items():
        if name.startswith("val/") and name in values:
            numbers = (values[name], *interval(values, name))
            factor = 100 if unit.startswith("%") else 1
            value, low, high = (n if n is None else short(factor * float(n), 5) for n in numbers)
            row = {"label": label, "unit": unit.format(kind=kind)}
            found.append({**row, "value": value, "low": low, "high": high})
    return found


PAGES = Path(__file__).with_name("pages")
# Entries of a site: a folder with anything else is never replaced.
PARTS = frozenset({"index.html", "assets", "data", "figures"})
_LABEL, _TOKENS = 4, 8  # tokens in a latent's label, and on its page
# Latents of a token by mean, and by maximum, in the search index; tokens in each of its files.
_RANKED, _INDEXED = 10, 512


@dataclass(frozen=True)
class About:
    """Provenance of an atlas."""

    language_model: str
    site: str
    autoencoder: str  # its class
    metrics: Mapping[str, Any]  # by name, such as `val/fvu`
    kind: str = "raw"  # of the activations measured
    text: str = "the validation split"  # after "of" and "on"


def write_site(
    output: Path, facts: LatentFacts, about: About, analyses: Sequence[Found] = ()
) -> Path:
    """Write the atlas, in place of one in the folder, and return the page to open."""
    check_output(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as beside:
        whole = Path(beside) / "atlas"
        shutil.copytree(PAGES, whole)
        (whole / "data").mkdir()
        for name, value in _data(facts, about, analyses):
            (whole / "data" / f"{name}.js").write_text(script(name, value), encoding="ascii")
        for name, path in (each for found in analyses for each in found.figures.items()):
            (whole / "figures").mkdir(exist_ok=True)
            shutil.copyfile(path, whole / "figures" / name)
        if output.exists():
            shutil.rmtree(output)
        whole.replace(output)
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


def _data(facts: LatentFacts, about: About, analyses: Sequence[Found]) -> Iterator[tuple[str, Any]]:
    """Name and content of each file of data."""
    texts = {token: display_tokens([text])[0] for token, text in sorted(facts.vocabulary.items())}
    latents = len(facts.lengths)
    raised = facts.report.effects.get("raised", np.empty((latents, 0), dtype=np.int64))
    yield "overview", _overview(facts, about, analyses)
    explained = {j: one for found in analyses for j, one in found.explanations.items()}
    labels = _labels(facts.tokens, texts, latents)
    yield "labels", [explained.get(j, {"text": label})["text"] for j, label in enumerate(labels)]
    yield "promoted", [" ".join(texts[t].strip() for t in ids) for ids in raised.tolist()]
    yield "vocabulary", {"ids": packed(np.array(list(texts)), "uint32"), "texts": [*texts.values()]}
    yield from _index(facts.tokens, texts)
    if facts.against:
        yield "against", _against(facts.against, texts)
    records, effects = Records(facts), defaultdict[int, list[dict[str, Any]]](list)
    for number, found in enumerate(analyses):
        for latent, own in found.effects.items():
            effects[latent] += [_plain(one) | {"analysis": number} for one in own]
    for number, part in enumerate(chunks(latents, CHUNK)):
        yield (
            f"latents-{number:04d}",
            [
                {**records[j], "effects": effects[j], "explanation": explained.get(j)}
                for j in range(latents)[part]
            ],
        )
    for number, found in enumerate(analyses):
        yield f"analysis-{number}", found.page
        if found.heads:
            yield f"heads-{number}", _plain(found.heads)


def _plain(value: Any) -> Any:
    """Arrays, tuples and numbers, in a dict too, as JSON has them; None for NaN."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return short(value) if isinstance(value, float) else value


def _index(tokens: TokenActivations, texts: Mapping[int, str]) -> Iterator[tuple[str, Any]]:
    """Tokens in alphabetical order, and files with the latents of some of them each."""
    kept = tokens.of_tokens(_RANKED)
    starts = np.searchsorted(tokens.token[kept], np.arange(len(tokens.ids) + 1))
    names = [texts[token].strip().casefold() for token in tokens.ids.tolist()]
    order = np.array(sorted(range(len(names)), key=names.__getitem__))
    index = {
        "places": packed(np.searchsorted(list(texts), tokens.ids[order]), "uint32"),
        "counts": packed(tokens.counts[order], "uint32"),
        "chunk": _INDEXED,
    }
    yield "tokens", index
    for number, part in enumerate(chunks(len(order), _INDEXED)):
        spans = [kept[starts[i] : starts[i + 1]] for i in order[part]]
        pairs = np.concatenate(spans)
        latents_of = {
            "sizes": [len(span) for span in spans],
            "latents": packed(tokens.latent[pairs], "uint32"),
            "means": packed(tokens.mean[pairs], "float32"),
            "maxima": packed(tokens.maximum[pairs], "float32"),
        }
        yield f"tokens-{number:04d}", latents_of


def _labels(tokens: TokenActivations, texts: Mapping[int, str], latents: int) -> list[str]:
    found = (tokens.ids[tokens.token[own]].tolist() for own in tokens.of_latents(_LABEL, latents))
    return [" · ".join(texts[token].strip() or "␣" for token in ids) for ids in found]


def _against(against: Against, texts: Mapping[int, str]) -> dict[str, Any]:
    matches = against.matches
    return {
        "name": against.name,
        "least": short(matches.floor, 3),
        "floor": short(matches.threshold, 3),
        "share": short(100.0 * matches.share, 3),
        "pairs": packed(matches.pairs, "uint32"),
        "cosines": packed(matches.cosines, "float32"),
        "best": [packed(best, "float32") for best in matches.best],
        "tokens": _labels(against.tokens, texts, len(against.density)),
        "density": packed(against.density, "float32"),
    }


def _overview(facts: LatentFacts, about: About, analyses: Sequence[Found]) -> dict[str, Any]:
    return {
        "palinka": version("palinka"),
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        **vars(about),
        "latents": len(facts.lengths),
        "rows": facts.rows,
        "chunk": CHUNK,
        "before": BEFORE,
        "quantiles": facts.quantiles,
        "per_quantile": facts.bands.places.shape[1] // facts.quantiles,
        "metrics": _metrics(about.metrics, about.kind),
        "documents": short(float(about.metrics.get(DOCUMENTS, np.nan)), 15),
        "norm": short(facts.norm),
        "against": facts.against.name if facts.against else None,
        "notes": list(facts.report.notes),
        "columns": _columns(facts, analyses),
        "analyses": [
            {"name": found.page["name"], "kind": dict(found.page["settings"]).get("analysis", "")}
            for found in analyses
        ],
    }
