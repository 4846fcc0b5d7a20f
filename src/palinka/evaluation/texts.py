"""Probing tasks by their names: built-in ones, CSV files, and sets of sae-probes."""

import csv
import io
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from palinka.errors import InputError, did_you_mean, expanded
from palinka.evaluation.tasks import BUILT_IN, CONTROLS, Task, token_tasks, word_lists
from palinka.evaluation.values import Subject

MIN_TEXTS = 100
MAX_ROWS = 5000


def find_tasks(
    subject: Subject, names: Sequence[str], items: int | None, seed: int
) -> tuple[list[Task], list[Task], list[str]]:
    """Tasks of texts and of tokens, and remarks."""
    known = {"builtin": BUILT_IN, "controls": CONTROLS}
    tokens, texts, notes = list[str](), list[Task](), list[str]()
    for name in names:
        start, _, rest = name.partition(":")
        if start == "sae_probes":
            for one in word_lists()["recommended"] if rest == "recommended" else [rest]:
                rows, source = read_sae_probes(one)
                task, remarks = text_task(one, rows, items=items, seed=seed)
                texts.append(task)
                notes += [*remarks, f"{one}: texts from {source}" if source else ""]
        elif start.endswith(".csv"):
            rows = read_csv(start)
            task, remarks = text_task(start, rows, rest or None, items, seed)
            texts.append(task)
            notes += remarks
        else:
            tokens += known.get(name, (name,))
            if unknown := {*tokens} - {*BUILT_IN, *CONTROLS}:
                hint = "give builtin, controls, a CSV file, sae_probes:NAME or one of "
                built = ", ".join((*BUILT_IN, *CONTROLS))
                raise InputError(f"tasks: {unknown.pop()} is not a task; {hint}{built}")
    on_tokens = list[Task]()
    if tokens:
        if items is None:
            raise InputError("tasks: this protocol takes texts; give CSV files or sae_probes:NAME")
        tokenizer, contexts = subject.model.tokenizer, subject.contexts()
        names = list(dict.fromkeys(tokens))
        on_tokens, remarks = token_tasks(names, contexts, tokenizer, subject.skip, items, seed)
        notes += remarks
    return texts, on_tokens, [note for note in notes if note]


def text_task(
    name: str, rows: Sequence[Mapping[str, str]], positive: str | None = None,
    items: int | None = 2000, seed: int = 0,
) -> tuple[Task, list[str]]:  # fmt: skip
    """A task of texts from rows with `prompt` and `target`, and remarks.

    Copies, up to case and white space, are removed, and texts whose copies have two labels, since
    a copy in training gives its label away. Of the others at most `items` are drawn, stratified;
    with None the first 5,000 rows are taken as they are.
    """
    if not rows or {"prompt", "target"} - rows[0].keys():
        columns = ", ".join(rows[0]) if rows else "no rows"
        raise InputError(f"tasks: {name} has the columns {columns}; expected prompt and target")
    values = sorted({row["target"] for row in rows}, key=_in_order)
    if len(values) != 2 and positive is None:
        given = f"target has {len(values)} values ({', '.join(values[:5])})"
        hint = f"name the positive one with {name}:{values[0]}"
        raise InputError(f"tasks: {name}: {given}; {hint}")
    if positive is not None and positive not in values:
        hint = did_you_mean(positive, values)
        raise InputError(f"tasks: {name}: target is never {positive!r}{hint}")
    true = values[-1] if positive is None else positive
    if items is None:
        rows = rows[:MAX_ROWS]
        all_labels = np.array([row["target"] == true for row in rows])
        return Task(name, all_labels, np.arange(len(rows)), [row["prompt"] for row in rows]), []
    seen: dict[str, set[bool]] = defaultdict(set)
    first: dict[str, str] = {}
    for row in rows:
        text = " ".join(row["prompt"].lower().split())
        seen[text].add(row["target"] == true)
        first.setdefault(text, row["prompt"])
    texts = [text for text, targets in seen.items() if len(targets) == 1 and text]
    labels = np.array([True in seen[text] for text in texts], bool)
    notes = []
    if len(texts) < len(rows):
        copies = f"{len(rows) - len(texts):,} of {len(rows):,} rows are copies"
        notes.append(f"{name}: {copies}; {len(texts):,} texts are left")
    for kind, count in (("positives", labels.sum()), ("negatives", (~labels).sum())):
        if count < MIN_TEXTS:
            needed = f"a task needs at least {MIN_TEXTS} of each class"
            raise InputError(f"{name}: {count} {kind} after removing copies; {needed}")
    random, share = np.random.default_rng(seed), min(1.0, items / len(texts))
    sides = [random.permutation(np.flatnonzero(labels == side)) for side in (True, False)]
    chosen = np.sort(np.concatenate([side[: round(share * len(side))] for side in sides]))
    return Task(name, labels[chosen], chosen, [first[texts[at]] for at in chosen.tolist()]), notes


def _in_order(value: str) -> tuple[float, str]:
    try:
        return float(value), ""
    except ValueError:
        return np.inf, value


def read_csv(path: str) -> list[dict[str, str]]:
    """Rows of a CSV file with a header."""
    file = expanded(path)
    if not file.is_file():
        raise InputError(f"tasks: {file} does not exist; give a CSV file with prompt and target")
    try:
        return _rows(file.read_text("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"tasks: {file} is not UTF-8; save it as UTF-8") from error


def _rows(text: str) -> list[dict[str, str]]:
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))  # one for the whole process
    return [*csv.DictReader(io.StringIO(text, newline=""), restval="")]


def sae_probes_folder() -> Path:
    """Data folder of the installed package sae-probes, which is not imported."""
    package = find_spec("sae_probes")
    for folder in (package and package.submodule_search_locations) or ():
        return Path(folder) / "data"
    remedy = "pip install sae-probes --no-deps, or leave sae_probes:… out"
    raise InputError(f"tasks: sae_probes is not installed; {remedy}")


def read_sae_probes(name: str) -> tuple[list[dict[str, str]], str]:
    """Rows of a set of sae-probes, and the source that its list of sets names."""
    folder = sae_probes_folder()
    known = {file.name.removesuffix(".csv.zst"): file for file in folder.rglob("[0-9]*.csv.zst")}
    if name not in known:
        hint = did_you_mean(name, known)
        raise InputError(f"tasks: {name} is not a set of sae-probes{hint}")
    listed = _rows(_decompressed(folder / "probing_datasets_MASTER.csv.zst"))
    source = [r["Source"] for r in listed if Path(r["Dataset save name"]).stem == name]
    return _rows(_decompressed(known[name])), (source or [""])[0].strip()


def _decompressed(file: Path) -> str:
    """Text of a file compressed by Zstandard."""
    if find_spec("zstandard"):
        import zstandard

        with zstandard.open(file, "rt", encoding="utf-8", newline="") as stream:
            return str(stream.read())
    if program := shutil.which("zstd"):
        return subprocess.run(
            [program, "-dcq", file], capture_output=True, check=True
        ).stdout.decode()
    raise InputError("tasks: sets of sae-probes need zstandard: pip install 'palinka[evaluation]'")
