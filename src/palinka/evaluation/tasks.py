"""Probing tasks: built-in ones on tokens, CSV files, and sets of sae-probes."""

import csv
import hashlib
import io
import re
import shutil
import subprocess
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from numpy.typing import NDArray

from palinka.analyses.stats.bootstrap import MINIMUM_DOCUMENTS
from palinka.data import Context
from palinka.errors import InputError, counted, did_you_mean, expanded
from palinka.evaluation.values import Subject
from palinka.language_models.token_text import token_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Labels = NDArray[np.int8]  # 1, 0, or -1 for tokens that are not in the task

MAX_TOKENS = 250_000  # of the validation split, that are labelled
FIRST_POSITION = 16
PER_DOCUMENT = 4  # tokens of a document and class, where there are enough documents
MIN_ITEMS = 400  # tokens of a class, without which a task is left out
WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")


@dataclass(frozen=True)
class Task:
    """Items with two labels, each a token of a context or a text."""

    name: str
    labels: NDArray[np.bool_]  # (items,)
    groups: NDArray[Any]  # document of each token, or number of each text, (items,)
    texts: Sequence[str] = ()  # of a task of texts, (items,)
    contexts: Sequence[NDArray[np.int64]] = field(default=(), repr=False)  # ids, of one of tokens
    # Context and position of each token, (items, 2).
    places: NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 2), np.int64))
    is_control: bool = False  # its label should not be found

    @property
    def unit(self) -> str:
        """Plural of the groups."""
        return "texts" if self.texts else "documents"


@dataclass
class Segment:
    """Consecutive tokens of one document in one context, as text."""

    context: int
    positions: NDArray[np.int64]  # in the context
    ids: NDArray[np.int64]
    document: int
    is_start: bool  # of the document
    pieces: list[str]

    def __post_init__(self) -> None:
        self.text, found = "".join(self.pieces), [*WORD.finditer("".join(self.pieces))]
        self.words = [match[0].lower().replace("\u2019", "'") for match in found]
        self.spans = np.array([match.span() for match in found], np.int64).reshape(-1, 2)
        # Characters up to the end of each token, and before it.
        self.ends = np.cumsum([*map(len, self.pieces)], dtype=np.int64)
        self.starts = np.append(0, self.ends[:-1])
        # The first word after each token, and the one that ends with it and is whole here, or -1.
        self.next_word = np.searchsorted(self.spans[:, 0], self.ends)
        at, (start, end) = self.next_word - 1, np.append(self.spans, [[0, -1]], axis=0).T
        whole = (end[at] == self.ends) & ((start[at] > 0) | self.is_start)
        whole[-1:] = False  # the last one may continue
        self.word = np.where(whole, at, -1)

    def of_words(self, rule: Callable[[int, str], int]) -> Labels:
        """Labels of the tokens that end a word, by the word."""
        by_word = [*(rule(at, word) for at, word in enumerate(self.words)), -1]
        return np.array(by_word, np.int8)[self.word]

    def before(self, marks: Sequence[bool] | NDArray[np.bool_], stop: Any) -> NDArray[np.bool_]:
        """Mark each `stop` that has one of `marks` among the five before it."""
        counts = np.append(0, np.cumsum(marks))
        return np.asarray(counts[stop] > counts[np.maximum(stop - 5, 0)])


def word_lists() -> dict[str, Any]:
    """Function words, plurals by singular, and simple pasts by base form."""
    return dict(yaml.safe_load(Path(__file__).with_name("words.yaml").read_text("utf-8")))


def _among(condition: Any, candidates: Any) -> Labels:
    return np.where(candidates, condition, -1).astype(np.int8)


def _sides(positive: Iterable[str], negative: Iterable[str]) -> Callable[[int, str], int]:
    sides = dict.fromkeys(negative, 0) | dict.fromkeys(positive, 1)
    return lambda _, word: sides.get(word, -1)


def _hash_bit(text: str) -> int:
    return hashlib.sha256(text.encode()).digest()[-1] & 1


def _next_words(s: Segment, lists: Mapping[str, Any], kind: str) -> Labels:
    n, words = len(s.pieces), s.next_word
    follows = np.append(words[1:] > words[:-1], False)  # the next token starts a word
    if kind == "word_ends":
        return _among(follows, np.arange(n) < n - 1)
    if kind == "function_word_next":
        known = {*lists["function_words"]}
        marks = np.array([*(word in known for word in s.words), False])
        whole = np.append(s.spans[:, 1] < len(s.text), False)
        return _among(marks[words], follows & whole[words])
    between = np.append(0, s.spans[:-1, 1])
    gaps = [s.text[a:b] for a, b in zip(between, s.spans[:, 0], strict=False)]
    goes_on = np.array([*(not re.search("[.!?]", gap) for gap in gaps), False])
    upper = np.array([*(s.text[start].isupper() for start in s.spans[:, 0]), False])
    return _among(upper[words], follows & goes_on[words])


def _sentence_ends(s: Segment) -> Labels:
    marks = np.array([piece.strip()[:1] in (".", "!", "?") for piece in s.pieces])
    return _among(np.append(marks[1:], False), np.arange(len(marks)) < len(marks) - 1)


def _in_quotes(s: Segment, paragraph: str) -> Labels:
    text, inside = np.array([*s.text]), np.zeros(len(s.text) + 1, bool)
    breaks = [0, *(match.end() for match in re.finditer(paragraph, s.text)), len(text)]
    for start, stop in pairwise(breaks):
        part = text[start:stop]
        odd = np.cumsum(part == '"') % 2 == 1
        inside[start + 1 : stop + 1] = odd | (np.cumsum(part == "“") > np.cumsum(part == "”"))
    inside[breaks[1:-1]] = False
    known = (s.ends > (breaks[1] if len(breaks) > 2 else len(text))) | s.is_start
    return _among(inside[s.ends], known)


def _negated(s: Segment, negations: Sequence[str]) -> Labels:
    marks = [word in negations or word.endswith("n't") for word in s.words]
    ended = np.searchsorted(s.spans[:, 1], s.starts, side="right")
    return _among(s.before(marks, ended), (ended >= 5) | s.is_start)


def _after_comma(s: Segment) -> Labels:
    at = np.arange(len(s.pieces))
    return _among(s.before(["," in piece for piece in s.pieces], at), (at >= 5) | s.is_start)


def label_tokens(segments: Sequence[Segment], first: int = FIRST_POSITION) -> dict[str, Labels]:
    """Labels of all tokens, `(tokens,)`, for each built-in task on those from `first` on."""
    lists, place = word_lists(), np.concatenate([s.positions for s in segments])
    paragraph = r"\n\s*\n" if any("\n\n" in s.text for s in segments) else r"\n"
    texts: dict[int, str] = defaultdict(str)
    for s in segments:
        texts[s.document] += s.text
    bits = {document: _hash_bit(text) for document, text in texts.items()}

    def first_letter(_: int, word: str) -> int:
        return int(word[0] <= "m") if "a" <= word[0] <= "z" else -1

    def long_word(_: int, word: str) -> int:
        return 1 if len(word) >= 7 else 0 if len(word) <= 4 else -1

    def repeated(s: Segment) -> Labels:
        first = {word: at for at, word in reversed([*enumerate(s.words)])}
        return s.of_words(lambda at, word: first[word] < at)

    by_word = {
        "plural": _sides(lists["plurals"].values(), lists["plurals"]),
        "past": _sides(lists["pasts"].values(), lists["pasts"]),
        "gender": _sides(lists["he"], lists["she"]),
        "first_letter": first_letter,
        "long_word": long_word,
        "random_word": lambda _, word: _hash_bit(word),
    }
    of_next = ("capital_next", "word_ends", "function_word_next")
    rules: dict[str, Callable[[Segment], Labels]] = {
        **{kind: partial(_next_words, lists=lists, kind=kind) for kind in of_next},
        "sentence_ends": _sentence_ends,
        "in_quotes": partial(_in_quotes, paragraph=paragraph),
        "repeated": repeated,
        "negated": partial(_negated, negations=lists["negations"]),
        "after_comma": _after_comma,
        **{name: partial(Segment.of_words, rule=rule) for name, rule in by_word.items()},
        "random_document": lambda s: np.full(len(s.pieces), bits[s.document], np.int8),
    }
    labels = {name: np.concatenate([*map(rule, segments)]) for name, rule in rules.items()}
    usable = place[place >= first]
    labels["late"] = (place > np.median(usable if len(usable) else place)).astype(np.int8)
    labels["parity"] = (place % 2 == 0).astype(np.int8)
    return labels


MATCHED = (
    "capital_next", "word_ends", "sentence_ends", "function_word_next", "in_quotes", "repeated",
    "negated", "after_comma", "late",
)  # fmt: skip
BUILT_IN = (*MATCHED, "plural", "past", "gender", "first_letter", "long_word")
CONTROLS = ("parity", "random_document", "random_word")


def find_segments(
    contexts: Sequence[Context], tokenizer: "PreTrainedTokenizerBase"
) -> Iterator[Segment]:
    """Divide contexts by document, without special tokens."""
    special = [*tokenizer.all_special_ids]
    for number, context in enumerate(contexts):
        edges = np.flatnonzero(np.diff(context.documents)) + 1
        for part in np.split(np.arange(len(context.tokens)), edges):
            rows = part[~np.isin(context.tokens[part], special)]
            if len(rows):
                ids = context.tokens[rows]
                at_start = bool(context.positions[rows[0]] == 0)
                pieces = token_texts(tokenizer, ids.tolist(), "replace")
                document = int(context.documents[rows[0]])
                yield Segment(number, rows, ids, document, at_start, pieces)


def draw_pairs(
    labels: Labels, keys: NDArray[Any], documents: NDArray[Any], most: int, random: Any
) -> NDArray[np.int64]:
    """Draw pairs of a positive and a negative row of one key, `(pairs, 2)`, at most `most`.

    Of a document and class at most 4 rows are drawn, or more by powers of two where that gives too
    few pairs.
    """
    order = random.permutation(np.flatnonzero(labels >= 0)).tolist()
    limit, found = PER_DOCUMENT, list[tuple[int, int]]()
    while order:
        waiting: dict[Any, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
        used: Counter[tuple[int, int]] = Counter()
        found = []
        for row in order:
            mine, key = int(labels[row]), (int(documents[row]), int(labels[row]))
            others = waiting[keys[row]][1 - mine]
            if used[key] >= limit:
                continue
            while others and used[int(documents[others[-1]]), 1 - mine] >= limit:
                others.pop()
            if not others:
                waiting[keys[row]][mine].append(row)
                continue
            pair = (row, others.pop())
            used[key] += 1
            used[int(documents[pair[1]]), 1 - mine] += 1
            found.append(pair if mine else pair[::-1])
            if len(found) == most:
                break
        if len(found) == most or limit >= len(order):
            break
        limit *= 2
    return np.array(found, np.int64).reshape(-1, 2)


def token_tasks(
    names: Sequence[str], contexts: Iterable[Context], tokenizer: "PreTrainedTokenizerBase",
    skip: int = 0, items: int = 2000, seed: int = 0,
) -> tuple[list[Task], list[str]]:  # fmt: skip
    """Built-in tasks on tokens of contexts, and remarks on those that are left out.

    Half of the `items` are positive. In a matched task the label of an item is a fair coin given
    its token id, so that the current token does not predict it.
    """
    kept, seen = list[Context](), 0
    for context in contexts:
        kept.append(context)
        if (seen := seen + len(context.tokens)) >= MAX_TOKENS:
            break
    segments = [*find_segments(kept, tokenizer)]
    if not segments:
        raise InputError("tasks: the validation split has no text; give more documents")
    first = max(FIRST_POSITION, skip)
    labels = label_tokens(segments, first)
    ids, place = (np.concatenate([vars(s)[n] for s in segments]) for n in ("ids", "positions"))
    sizes = [len(s.ids) for s in segments]
    documents, number = (
        np.repeat([vars(s)[n] for s in segments], sizes) for n in ("document", "context")
    )
    tokens, usable, tasks, notes = [c.tokens for c in kept], place >= first, [], []
    for name in names:
        random = np.random.default_rng([seed, (*BUILT_IN, *CONTROLS).index(name)])
        mine = np.where(usable, labels[name], -1)
        keys = ids if name in MATCHED else np.zeros_like(ids)
        pairs = draw_pairs(mine, keys, documents, items if name in MATCHED else items // 2, random)
        rows = pairs.ravel()
        if name in MATCHED:
            # With both rows of a pair a token's surplus of one label in training would be a
            # surplus of the other in the test half: a lookup would be below one half.
            rows = pairs[np.arange(len(pairs)), random.permutation(len(pairs)) % 2]
        rows = np.sort(rows)
        sides = (rows[labels[name][rows] == side] for side in (0, 1))
        few, least = min(len(np.unique(documents[side])) for side in sides), MINIMUM_DOCUMENTS
        if len(rows) // 2 < (needed := min(MIN_ITEMS, items // 2)) or few < least:
            each, within = counted(len(rows) // 2, "tokens"), counted(few, "documents")
            found = f"{each} of each class in {within}"
            notes.append(f"{name} left out: {found}, expected at least {needed} in {least}")
            continue
        where = np.stack([number[rows], place[rows]], axis=1)
        what = (name, labels[name][rows] == 1, documents[rows], (), tokens, where)
        tasks.append(Task(*what, is_control=name in CONTROLS))
    return tasks, notes


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
            if name not in known and name not in (every := (*BUILT_IN, *CONTROLS)):
                fault = f"tasks: {name} is not a task{did_you_mean(name, (*every, *known), 0)}"
                hint = "give builtin, controls, a CSV file, sae_probes:NAME or one of "
                raise InputError(f"{fault}; {hint}{', '.join(every)}")
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
    if not rows:
        raise InputError(f"tasks: {name} has no rows; expected some with a prompt and a target")
    if {"prompt", "target"} - rows[0].keys():
        columns = ", ".join(rows[0])
        raise InputError(f"tasks: {name} has the columns {columns}; expected prompt and target")
    values = sorted({row["target"] for row in rows}, key=_in_order)
    if len(values) == 1:
        raise InputError(f"tasks: {name}: every target is {values[0]!r}; a task needs two values")
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
    if blank := sum(not row["prompt"].strip() for row in rows):
        notes.append(f"{name}: {counted(blank, 'texts')} without a token left out")
    if copies := len(rows) - blank - len(texts):
        fault = f"{copies:,} of {len(rows):,} rows are copies"
        notes.append(f"{name}: {fault}; {len(texts):,} texts are left")
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


def read_sae_probes(name: str) -> tuple[list[dict[str, str]], str]:
    """Rows of a set of sae-probes, and the source that its list of sets names."""
    package = find_spec("sae_probes")  # which is not imported
    if package is None or not package.submodule_search_locations:
        remedy = "pip install sae-probes --no-deps, or leave sae_probes:… out"
        raise InputError(f"tasks: sae_probes is not installed; {remedy}")
    folder = Path(next(iter(package.submodule_search_locations))) / "data"
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
