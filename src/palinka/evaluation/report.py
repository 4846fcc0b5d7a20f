"""Values, verdicts and detectable differences of an evaluation, and their files."""

import json
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import levene

from palinka.analyses.figures.forest import Row, forest
from palinka.analyses.findings import Findings
from palinka.analyses.result import Result, Table
from palinka.analyses.stats import comparison
from palinka.analyses.stimuli.base import code_span
from palinka.errors import counted
from palinka.evaluation.representations import sample_rows
from palinka.evaluation.tasks import CONTROLS
from palinka.evaluation.values import (
    MANY_TASKS,
    OF_TWO,
    SEEDS_ALONE,
    SHARES,
    Group,
    Key,
    Measurement,
    Subject,
    Value,
    by_recipe,
    sample_of,
    value_of,
)
from palinka.language_models.edits import latents_of

FORMAT = 1
Record = Mapping[str, Any]
KEY = ("metric", "task", "k")
L0 = ("l0", "", None)
DESCRIBED = ("name", "recipe", "seed", "kind", "sha256", "latent_dim")  # of a dictionary
# Its differences are those of `ce_delta`.
UNCOMPARED = frozenset({"ce_spliced"})
UNEQUAL_L0 = 0.05
LEVENE = 0.01
MOST_SEEDS = 1000
MOST_REASON = 36  # characters; longer reasons stand below the table
# Metrics, and gaps of them, that are printed; the others are in the files.
HEADLINES = (
    "fvu", "l0", "ce_delta", "loss_recovered", "dead", "auc", "k_for_dense", "baselines_beaten",
    "test_auc", "test_acc", "stability_share", "stability_share_0.7", "absorption_full",
    "split_features",
)  # fmt: skip


@dataclass(frozen=True)
class Evaluation(Result):
    """The numbers of an evaluation: values, and rows of the tables of that name."""

    values: tuple[Value, ...]
    comparisons: Sequence[Record] = ()
    detectable: Sequence[Record] = ()
    extra: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    hidden: Collection[str] = ()  # the seeds of recipes, whose values are in tables alone

    def scalars(self) -> dict[str, float]:
        """Headlines, by the names of their dictionary, metric, task and k."""
        shown = [one for one in self.headlines().values if one.of not in self.hidden]
        return {scalar_name(vars(one)): one.value for one in shown}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Arrays of the groups."""
        return dict(self.extra)

    def rows(self) -> dict[str, Sequence[Record]]:
        """Rows of all tables."""
        values = [_record(one) for one in self.values]
        return {"values": values, "comparisons": self.comparisons, "detectable": self.detectable}

    def tables(self) -> dict[str, Table]:
        """The tables `values`, `comparisons` and `detectable`."""
        return {name: _columns(table) for name, table in self.rows().items() if table}

    def headlines(self) -> "Evaluation":
        """Main metrics; of single tasks only what has no mean over tasks."""
        tasks, means = (
            {(one.metric, one.of) for one in self.values if bool(one.task) == single}
            for single in (True, False)
        )
        both = {metric for metric, _ in tasks & means}

        def chosen(metric: str, task: str, names: Collection[str] = HEADLINES) -> bool:
            known = metric.removesuffix("_gap") in names
            return known and not (task and metric in both)

        def is_of_few_tasks(one: Value) -> bool:
            is_mean = one.metric.removesuffix("_gap") == "auc" and "tasks" in one.n
            return is_mean and one.n["tasks"] < MANY_TASKS

        compared = (*HEADLINES, "auc_given_tasks")  # in place of `auc` where tasks are few
        names = compared if any(map(is_of_few_tasks, self.values)) else HEADLINES
        values = tuple(
            one for one in self.values
            if chosen(one.metric, one.task, names) and not is_of_few_tasks(one)
        )  # fmt: skip
        comparisons, detectable = (
            [row for row in rows if chosen(row["metric"], row["task"], compared)]
            for rows in (self.comparisons, self.detectable)
        )
        return replace(self, values=values, comparisons=comparisons, detectable=detectable)


@dataclass(frozen=True, repr=False)
class EvaluationFindings(Findings):
    """Findings with `evaluation.json` and `evaluation.md`."""

    record: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""
    short: str = ""

    def _write_into(self, folder: Path) -> None:
        super()._write_into(folder)
        record = json.dumps(plain(self.record), indent=1, ensure_ascii=False, allow_nan=False)
        for name, content in (("evaluation.json", record), ("evaluation.md", self.text)):
            (folder / name).write_text(content + "\n", encoding="utf-8")


def evaluation_findings(
    subject: Subject, groups: Mapping[str, Group], settings: Mapping[str, Any],
    against: Iterable[str] = (), margin: float = 0.0,
) -> EvaluationFindings:  # fmt: skip
    """Make values, comparisons and detectable differences of the groups' measurements.

    All recipes are compared with each other; with those `against`, if there are any, only the
    others are. Holm's correction is over all comparisons of one metric.
    """
    measured = by_recipe(subject, groups.values())
    seeds = {one.name: one.seed for one in subject.dictionaries}
    recipes = [*subject.recipes]
    others = [name for name in recipes if name in set(against)]
    pairs = [(a, b) for i, a in enumerate(recipes) for b in recipes[i + 1 :]]
    if others:
        pairs = [(a, b) for a in recipes if a not in others for b in others]
    weak: dict[str, str] = {}
    for name, control in (item for group in groups.values() for item in group.weak.items()):
        weak[name] = " and ".join(filter(None, [weak.get(name), control]))
    headlines = [f"{name} is no better than {controls}." for name, controls in weak.items()]
    notes = dict.fromkeys(note for group in groups.values() for note in group.notes)
    values, hidden, panels = list[Value](), set[str](), dict[str, list[Row]]()
    samples = defaultdict[Key, dict[str, comparison.Sample]](dict)
    for key, of in measured.items():
        rows = []
        for name, own in of.items():
            samples[key][name] = sample_of(own, name, [seeds[one.of] for one in own])
            values += [value_of([one], one.of) for one in own]
            if len(own) > 1:
                values.append(value_of(own, name))
                hidden |= {one.of for one in own}
            v, points = values[-1], [one.value for one in own if len(own) > 1]
            rows.append(Row(v.of, v.value, v.low, v.high, points))
        if key[1:] == ("", None) and key[0] not in UNCOMPARED:
            panels[key[0]] = rows
    values += [value for group in groups.values() for value in group.values]
    l0 = {name: float(one.values.mean()) for name, one in samples.get(L0, {}).items()}
    l0 = l0 or (_sampled_l0(subject) if pairs and samples else {})
    comparisons: list[Record] = []
    claims = {key: of for key, of in samples.items() if _is_compared(measured[key])}
    for metric in dict.fromkeys(key[0] for key in claims if key[0] not in UNCOMPARED):
        keys = [key for key in claims if key[0] == metric and key[1] not in CONTROLS]
        largest = 1.0 if SHARES.match(metric) else np.inf
        chosen = [(key, a, b) for key in keys for a, b in pairs if {a, b} <= samples[key].keys()]
        found = comparison.compare(
            [(samples[k][a], samples[k][b]) for k, a, b in chosen], margin, weak, largest
        )
        for (key, *_), one in zip(chosen, found, strict=True):
            row = dict(zip(KEY, key, strict=True)) | vars(one) | {"note": _unequal(l0, one)}
            comparisons.append({name: part for name, part in row.items() if name != "notes"})
    result = Evaluation(
        tuple(values), comparisons, [*_detectable(claims, comparisons)],
        {name: array for group in groups.values() for name, array in group.arrays.items()}, hidden,
        notes=(*headlines, *notes),
    )  # fmt: skip
    bands = {metric: band for group in groups.values() for metric, band in group.bands.items()}
    figures = {name: figure for group in groups.values() for name, figure in group.figures.items()}
    of_l0 = {v.of: v.value for v in values if v.metric == "l0"}
    spec = subject.model.spec
    site = {"name": spec.name, "revision": spec.revision, "site": subject.site}
    record = {
        "format": FORMAT,
        "palinka": version("palinka"),
        "settings": settings,
        "model": site,
        "dictionaries": [
            {**{name: getattr(one, name) for name in DESCRIBED}, "l0": of_l0.get(one.name)}
            for one in subject.dictionaries
        ],
        **result.rows(),
        "notes": list(result.notes),
    }
    title = f"# Evaluation of {code_span(subject.site)} of {code_span(spec.name)}"
    title = "\n\n".join([title, *(f"**{line}**" for line in headlines), ""])
    shown = replace(result, notes=tuple(notes))
    return EvaluationFindings(
        "evaluation",
        {"": result},
        {**forest(panels, bands), **figures},
        settings={**settings, **site},
        record=record,
        text=title + summary(shown),
        short=title + summary(shown.headlines()),
    )


def _is_compared(of: Mapping[str, Sequence[Measurement]]) -> bool:
    return all(one.is_compared for own in of.values() for one in own)


def _sampled_l0(subject: Subject) -> dict[str, float]:
    """Mean L0 of each recipe on some thousand tokens."""
    rows, found = sample_rows(subject), defaultdict[str, list[float]](list)
    for one in subject.dictionaries:
        active = (latents_of(one.autoencoder, rows) != 0).sum(dim=1)
        found[one.recipe].append(float(active.double().mean()))
    return {name: float(np.mean(each)) for name, each in found.items()}


def _unequal(l0: Mapping[str, float], one: comparison.Comparison) -> str:
    pair = [l0.get(name, np.nan) for name in (one.a, one.b)]
    if max(pair) <= (1 + UNEQUAL_L0) * min(pair) or np.isnan(pair).any():
        return ""
    return f"L0 of {pair[0]:.3g} and {pair[1]:.3g}: they are different points of a curve."


def _detectable(
    samples: Mapping[Key, Mapping[str, comparison.Sample]], comparisons: Sequence[Record]
) -> Iterable[Record]:
    """Rows of the spread of metrics over seeds, and of the differences that seeds can find.

    `sd` is the standard deviation over the `n` seeds of a recipe, or of all where their spreads
    are pooled, with its interval and degrees of freedom. `n` seeds find a `difference` 4 times in
    5, and `seeds` half the largest observed; None without one, or where more text is needed rather
    than more seeds.
    """
    for key, of in samples.items():
        groups = {name: one.values for name, one in of.items() if len(one.values) > 1}
        if not groups or key[0] in UNCOMPARED or np.isnan(np.concatenate([*groups.values()])).any():
            continue
        pooled = {"all recipes": [*groups.values()]}
        usable = [values for values in groups.values() if len(values) > 2 and np.ptp(values) > 0]
        if len(usable) > 1 and levene(*usable).pvalue < LEVENE:
            pooled = {name: [values] for name, values in groups.items()}
        named = dict(zip(KEY, key, strict=True))
        compared = [row for row in comparisons if named.items() <= row.items()]
        largest = max((abs(row["difference"]) for row in compared), default=np.nan)
        errors = [comparison.difference(of[row["a"]], of[row["b"]]).errors for row in compared]
        items = max((e[u] for e in errors for u in e if u != "seeds"), default=None)
        for name, values in pooled.items():
            sd, low, high = comparison.seed_spread(values)
            if sd > 0.0:  # seeds that agree to the digit do not tell what they would find
                n = min(map(len, values))
                df = sum(len(one) - 1 for one in values)
                row = {"of": name, "sd": sd, "low": low, "high": high, "df": df, "n": n}
                row |= {"difference": _found(sd, n, items)}
                yield {**named, **row, "seeds": _seeds(sd, items, largest / 2)}


def _found(sd: float, n: int, items: comparison.Variance | None) -> float:
    """Difference that seeds find, as if pairing them gained nothing, with the error of items."""
    errors = {"seeds": comparison.Variance(2 * sd**2 / n, n - 1.0)}
    return comparison.Estimate(0.0, errors | ({"items": items} if items else {}), {}).detectable()


def _seeds(sd: float, items: comparison.Variance | None, size: float) -> int | None:
    if not size > 0:
        return None
    n = 2 + bisect_left(range(2, MOST_SEEDS), -size, key=lambda n: -_found(sd, n, items))
    return n if n < MOST_SEEDS else None


def summary(result: Evaluation) -> str:
    """Tables of values, verdicts and detectable differences in markdown."""
    rows_of = defaultdict[tuple[str, str], list[Value]](list)  # controls and gaps beside values
    for one in result.values:
        if one.of not in result.hidden:
            rows_of[one.metric.removesuffix("_gap"), one.task].append(one)
    shown = [one for of_metric in rows_of.values() for one in of_metric]
    parts, rows, of_k = [], [], defaultdict[tuple[str, ...], dict[int, str]](dict)
    below = dict[str, None]()
    for v in shown:
        half = (v.high - v.low) / 2
        value, low, high = (comparison.format_number(x, half) for x in (v.value, v.low, v.high))
        reason, over = v.method.removeprefix("none: "), _sizes(v.n)
        interval = reason if np.isnan(half) else f"{low} to {high}"
        name = " ".join(filter(None, [v.metric, v.task]))
        if v.k is None:
            if len(interval) > MOST_REASON:
                interval, below[f"No interval of {v.metric}: {reason}."] = "none", None
            rows.append([name, v.of, value, interval, over])
        else:
            of_k[name, v.of, over][v.k] = value if np.isnan(half) else f"{value} ({interval})"
    if rows:
        parts.append(_table(["metric", "of", "value", "95 % interval", "over"], rows))
    parts += below
    if ks := sorted({k for cells in of_k.values() for k in cells}):
        rows = [[name, of, *(c.get(k, "") for k in ks), n] for (name, of, n), c in of_k.items()]
        parts.append(_table(["metric", "of", *(f"k = {k}" for k in ks), "over"], rows))
    by_pair = defaultdict[tuple[str, str], list[Record]](list)
    for row in result.comparisons:
        by_pair[row["a"], row["b"]].append(row)
    parts += ["## Comparisons"] * bool(by_pair)
    for pair, own in by_pair.items():
        remarks = dict.fromkeys(row[x] for row in own for x in ("remark", "note") if row[x])
        lines = [f"- {' '.join(_words(row))}: {row['sentence'].rstrip('.')}." for row in own]
        parts += ["### " + " and ".join(pair), *remarks, "\n".join(lines)]
    if result.detectable:
        rows = [
            [" ".join(_words(d)), d["of"], f"{d['sd']:.3g}", f"{d['low']:.2g} to {d['high']:.2g}",
             f"{d['df']}", f"{d['n']}", f"{d['difference']:.3g}", str(d["seeds"] or "-")]
            for d in result.detectable
        ]  # fmt: skip
        heads = ["metric", "of", "sd over seeds", "95 % interval", "df", "seeds", "detectable",
                 "seeds for half the largest difference"]  # fmt: skip
        about = (
            "A difference of two recipes as large as `detectable` is found 4 times in 5 at p .05, "
            "without a correction for several comparisons."
        )
        parts += ["## Detectable differences", about, _table(heads, rows)]
    if result.notes:
        parts += ["## Notes", "\n".join(f"- {note}" for note in result.notes)]
    return "\n\n".join(parts)


def scalar_name(row: Record) -> str:
    """Name of a value among the scalars of an evaluation, from its row in `evaluation.json`."""
    return "/".join([row["of"], *_words(row)])


def _words(row: Record) -> list[str]:
    k = "" if row["k"] is None else f"k={row['k']}"
    return [part for part in (row["metric"], row["task"], k) if part]


def _sizes(n: Mapping[str, int]) -> str:
    return ", ".join(counted(count, unit) for unit, count in n.items())


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [heads, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    lines = [" | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in cells]
    lines.insert(1, " | ".join("-" * width for width in widths))
    return "\n".join(f"| {line} |" for line in lines)


def _record(one: Value) -> Record:
    """A row of the table of values and of `evaluation.json`."""
    seeds_alone = one.method == SEEDS_ALONE or [*one.n] == ["seeds"]
    given = "data" if seeds_alone else "" if "seeds" in one.n else "weights"
    given = "these two" if one.method == OF_TWO else given
    return {**vars(one), "unit": [*one.n], "given": given}


def _columns(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Columns of rows with the same names; collections become text, and None is empty."""

    def cell(value: Any) -> Any:
        if isinstance(value, Mapping):
            return _sizes(value)
        return " ".join(value) if isinstance(value, list) else "" if value is None else value

    return {name: [cell(row[name]) for row in rows] for name in rows[0]}


def plain(value: Any) -> Any:
    """Plain values for JSON, with null for NaN and infinities."""
    if isinstance(value, Mapping):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
