"""Clean and corrupted prompts, with the answers of both."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import Any, Literal, NamedTuple

import numpy as np

from palinka.analyses.stimuli import base
from palinka.errors import InputError, did_you_mean
from palinka.interventions.pairs import Pairs
from palinka.language_models.token_text import bos_id, token_ids, token_texts, tokenize

SLOT = re.compile(r"\{([^{}:]+)(?::([^{}]+))?\}")
END = "end"


@dataclass(frozen=True)
class Noise:
    """Noise on the embeddings of a role's tokens, in place of a corrupted text.

    Attributes:
        noise: The role.
        sigma: Standard deviation, in units of that of the embeddings of the role's tokens.
    """

    noise: str
    sigma: float


@dataclass(frozen=True)
class Template:
    """A clean and a corrupted text with slots, `{slot}` or `{slot:role}`."""

    clean: str
    corrupted: str | Noise

    @property
    def texts(self) -> list[str]:
        """The clean text, and the corrupted one if there is one."""
        return [self.clean, *_listed(self.corrupted if isinstance(self.corrupted, str) else ())]


@dataclass(frozen=True)
class Pair(Template):
    """A pair written out; `{words:role}` gives words a role."""

    answer: str | Sequence[str]
    wrong: str | Sequence[str]
    template: str


class _Prompt(NamedTuple):
    """A text with start and stop of its roles, or token ids with the roles' positions."""

    content: Any
    spans: dict[str, Any]  # a slot without a role is here as `{slot}`

    @property
    def roles(self) -> list[str]:
        return [role for role in self.spans if "{" not in role]


class _Filled(NamedTuple):
    key: str  # place in the file
    template: str
    clean: _Prompt
    corrupted: _Prompt
    noise: Noise | None
    answer: list[str]
    wrong: list[str]


@dataclass(frozen=True)
class Paired(base.Stimuli):
    """Pairs of prompts that differ in the words that decide the answer.

    For analyses without interventions, clean and corrupted prompts are two conditions, and the
    last token of the role `pool` is the item.

    Attributes:
        templates: Texts with slots, all with the same roles. A template is the unit of inference.
        slots: The words of each slot.
        fill: All combinations of the slots' words; the first word of each slot, then the second
            and so on; or all ordered selections from the one list that the slots share.
            Combinations with the same word in two slots are left out, except by `zip`.
        answer: The word, or words, that should follow the clean text; may have slots.
        wrong: The same for the corrupted text.
        both_orders: Add each pair with the first two slots of its texts swapped.
        limit: Maximum number of pairs per template, drawn so that each slot's words, and both
            orders, occur about equally often; None for all.
        seed: Seed of that draw.
        pairs: Pairs written out, instead of templates.
        answers: `one_token`, for which answers must be one token, or `first_token`.
        bos: Put the BOS token before each prompt.
        pool: The role whose token is the item.
    """

    templates: Mapping[str, Template] = field(default_factory=dict)
    slots: Mapping[str, Sequence[str]] = field(default_factory=dict)
    fill: Literal["product", "zip", "permutations"] = "product"
    answer: str | Sequence[str] = ()
    wrong: str | Sequence[str] = ()
    both_orders: bool = False
    limit: int | None = None
    seed: int = 0
    pairs: Sequence[Pair] = ()
    answers: Literal["one_token", "first_token"] = "one_token"
    bos: bool = False
    pool: str = END

    def __post_init__(self) -> None:
        if bool(self.templates) == bool(self.pairs):
            raise InputError("templates, pairs: give exactly one of the two")
        for key in ("slots", "answer", "wrong", "both_orders", "limit"):
            if self.pairs and getattr(self, key):
                raise InputError(f"{key}: belongs to templates; leave it out beside pairs")
            if self.templates and key in ("answer", "wrong") and not getattr(self, key):
                raise InputError(f"{key}: missing; add this key")
        for name, words in self.slots.items():
            base.check_trimmed(words, f"slots.{name}")
        if self.limit is not None and self.limit < 1:
            raise InputError(f"limit: {self.limit}; give at least 1")
        counts = {name: len(words) for name, words in self.slots.items()}
        if self.fill == "zip" and len(set(counts.values())) > 1:
            given = ", ".join(f"{name} has {count}" for name, count in counts.items())
            raise InputError(f"fill: zip needs slots with the same number of words; {given}")
        if self.fill == "permutations" and len(set(map(tuple, self.slots.values()))) > 1:
            raise InputError("fill: permutations needs the same list of words in every slot")
        if problems := [problem for pair in self._pairs for problem in self._problems(pair)]:
            raise InputError(base.join_problems(problems))
        if self.pool not in (roles := self._pairs[0].clean.roles):
            raise InputError(f"pool: no role {self.pool!r}{did_you_mean(self.pool, roles)}")

    @cached_property
    def _pairs(self) -> list[_Filled]:
        """The pairs of all templates, or those written out, with their slots filled."""
        made = [
            _filled(f"pairs[{index}]", pair, {name: name for name in _slots(*pair.texts)})
            for index, pair in enumerate(self.pairs)
        ]
        answers = [*_listed(self.answer), *_listed(self.wrong)]
        given = {f"templates.{name}": each.texts for name, each in self.templates.items()}
        named = {**given, "answer or wrong": answers} if self.templates else {}
        unknown = [
            f"{{{slot}}} in {key} is not in slots"
            for key, texts in named.items()
            for slot in _slots(*texts)
            if slot not in self.slots
        ]
        if unknown:
            there = ", ".join(self.slots) or "none"
            raise InputError(f"{base.join_problems(unknown)}; there are {there}")
        for index, (name, each) in enumerate(self.templates.items()):
            key = f"templates.{name}"
            if self.both_orders and min(len(_slots(text)) for text in each.texts) < 2:
                raise InputError(f"{key}: both_orders swaps two slots; give each text two or more")
            used = [slot for slot in self.slots if slot in _slots(*each.texts, *answers)]
            lists = [self.slots[slot] for slot in used]
            rows = [
                (*row, order)
                for row in (zip(*lists, strict=True) if self.fill == "zip" else product(*lists))
                for order in ((False, True) if self.both_orders else (False,))
                if self.fill == "zip" or len(set(row)) == len(row)
            ]
            if not rows:
                raise InputError(f"{key}: slots {', '.join(used)} have no words that differ")
            pair = Pair(each.clean, each.corrupted, self.answer, self.wrong, name)
            for *row, swap in draw(rows, self.limit, [self.seed, index]):
                made.append(_filled(key, pair, dict(zip(used, row, strict=True)), swap))
        return made

    def _problems(self, pair: _Filled) -> list[str]:
        """Reasons why a pair cannot be used with any tokenizer."""
        first = self._pairs[0]
        clean, corrupted, expected = pair.clean.roles, pair.corrupted.roles, first.clean.roles
        found = [f"role {r} is in clean but not in corrupted" for r in clean if r not in corrupted]
        found += [f"role {r} is in corrupted but not in clean" for r in corrupted if r not in clean]
        if not found and set(clean) != set(expected):
            found.append(f"roles {', '.join(clean)}; {first.key} has {', '.join(expected)}")
        if pair.noise != first.noise:
            found.append(f"corrupted: give all pairs a text, or the noise of {first.key}")
        elif pair.noise and pair.noise.noise not in clean:
            found.append(f"noise: no role {pair.noise.noise!r}{did_you_mean('', clean)}")
        elif not pair.noise and pair.clean.content == pair.corrupted.content:
            found.append("clean and corrupted are the same text; nothing to patch")
        return [f"{pair.key}: {problem}" for problem in found]

    def prepare_pairs(self, tokenizer: base.Tokenizer) -> Pairs:
        """Tokenize the pairs and their answers, and find the positions of the roles.

        An `InputError` names the pairs whose prompts differ in the number of tokens or the position
        of a role, and answers that are more than one token or both right and wrong.
        """
        with self._checked(tokenizer):
            clean, corrupted = self._tokens(tokenizer, [bos_id(tokenizer)] if self.bos else [])
            answers, wrong = self._answers(tokenizer)
        noise = self._pairs[0].noise
        ids = [[prompt.content for prompt in side] for side in (clean, corrupted)]
        roles = {role: [prompt.spans[role][-1] for prompt in clean] for role in clean[0].roles}
        templates = [pair.template for pair in self._pairs]
        pairs = Pairs(ids[0], ids[1], answers, wrong, templates, roles)
        if noise is None:
            return pairs
        return replace(pairs, noise=[p.spans[noise.noise] for p in clean], sigma=noise.sigma)

    def _prepare(self, tokenizer: base.Tokenizer) -> base.Prepared:
        clean, corrupted = self._tokens(tokenizer, [])
        paired = self._pairs[0].noise is None
        prompts = [*clean, *corrupted] if paired else clean
        names = ["clean"] * len(clean) + ["corrupted"] * (len(prompts) - len(clean))
        ids, pool = [p.content for p in prompts], [p.spans[self.pool][-1:] for p in prompts]
        labels = [base.marked(tokenizer, each, at[0]) for each, at in zip(ids, pool, strict=True)]
        return base.prepared_items(self.kind, tokenizer, ids, pool, labels, names, paired)

    def _tokens(
        self, tokenizer: base.Tokenizer, start: list[int]
    ) -> tuple[list[_Prompt], list[_Prompt]]:
        """The token ids of the clean and of the corrupted prompts, after the ids of `start`."""
        clean = _tokenized(tokenizer, [pair.clean for pair in self._pairs], start)
        corrupted = _tokenized(tokenizer, [pair.corrupted for pair in self._pairs], start)
        problems = []
        for pair, one, two in zip(self._pairs, clean, corrupted, strict=True):
            counts = len(one.content), len(two.content)
            found = [
                f"role {role} is token {one.spans[role][-1]} of clean and {at[-1]} of corrupted"
                for role, at in two.spans.items()
                if role in one.roles and one.spans[role][-1] != at[-1]
            ]
            if counts[0] != counts[1]:
                longer = max(one, two, key=lambda prompt: len(prompt.content))
                ids = [longer.content[i] for i in max(longer.spans.values(), key=len)]
                pieces = token_texts(tokenizer, ids)
                word = f" ({''.join(pieces).strip()!r} is {pieces})" if len(pieces) > 1 else ""
                found = [f"clean has {counts[0]} tokens and corrupted {counts[1]}{word}"]
            problems += [f"{pair.key}: {each}" for each in found]
        if problems:
            fix = "positions cannot be aligned: choose words of as many tokens"
            raise InputError(f"{base.join_problems(problems)}; {fix}")
        return clean, corrupted

    def _answers(self, tokenizer: base.Tokenizer) -> list[list[list[int]]]:
        """The first token of each answer of each pair, and of each wrong one."""
        words: list[list[list[str]]] = [[], []]
        for pair in self._pairs:
            space = "" if pair.clean.content[-1:].isspace() else " "
            for side, given in zip(words, (pair.answer, pair.wrong), strict=True):
                side.append([f"{space}{word}" for word in given])
        ids = {word: _following(tokenizer, word) for each in words[0] + words[1] for word in each}
        long = [f"answer {word!r} is {len(i)} tokens" for word, i in ids.items() if len(i) != 1]
        if long and self.answers == "one_token":
            fix = "give one that is one, or set answers: first_token"
            raise InputError(f"{base.join_problems(long)}; {fix}")
        answers, wrong = ([[ids[word][0] for word in each] for each in side] for side in words)
        both = Counter(i for a, b in zip(answers, wrong, strict=True) for i in {*a} & {*b})
        if both:
            names = token_texts(tokenizer, list(both))
            given = [f"{t!r} in {n} pairs" for t, n in zip(names, both.values(), strict=True)]
            same = f"answer and wrong are both {base.join_problems(given)}"
            raise InputError(f"{same}; leave those fillers out")
        return [answers, wrong]


def draw(
    rows: Sequence[tuple[Any, ...]], limit: int | None, seed: Sequence[int]
) -> list[tuple[Any, ...]]:
    """Draw rows one by one, each time one whose entries occur least often among those drawn."""
    left = np.random.default_rng(seed).permutation(len(rows)).tolist()
    drawn: list[int] = []
    times: Counter[tuple[int, Any]] = Counter()
    while limit is not None and left and len(drawn) < limit:
        drawn.append(min(left, key=lambda row: sum(times[entry] for entry in enumerate(rows[row]))))
        left.remove(drawn[-1])
        times.update(enumerate(rows[drawn[-1]]))
    return list(rows) if limit is None else [rows[row] for row in sorted(drawn)]


def _listed(words: str | Sequence[str]) -> list[str]:
    return [words] if isinstance(words, str) else list(words)


def _slots(*texts: str) -> list[str]:
    return [match[1] for text in texts for match in SLOT.finditer(text)]


def _filled(key: str, pair: Pair, words: Mapping[str, str], swap: bool = False) -> _Filled:
    """A pair with words in its slots, the first two of which may be swapped in the texts."""

    def fill(text: str) -> _Prompt:
        pieces = SLOT.split(text)  # text, slot, role, text, slot, role, ..., text
        slots = list(zip(pieces[1::3], pieces[2::3], strict=True))
        if swap:
            slots[:2] = slots[1::-1]
        made = pieces[0]
        spans: dict[str, tuple[int, int]] = {}
        for (slot, role), after in zip(slots, pieces[3::3], strict=True):
            if role in (*spans, END):
                other = "the last token of every prompt" if role == END else "there twice"
                raise InputError(f"{key}: role {role} is {other}; give another name")
            spans[role or f"{{{slot}}}"] = len(made), len(made) + len(words[slot])
            made += words[slot] + after
        return _Prompt(made, {**spans, END: (len(made) - 1, len(made))})

    noise = None if isinstance(pair.corrupted, str) else pair.corrupted
    answer, wrong = (
        [SLOT.sub(lambda slot: words[slot[1]], word) for word in _listed(each)]
        for each in (pair.answer, pair.wrong)
    )
    clean, corrupted = fill(pair.texts[0]), fill(pair.texts[-1])
    return _Filled(key, pair.template, clean, corrupted, noise, answer, wrong)


def _tokenized(
    tokenizer: base.Tokenizer, prompts: Sequence[_Prompt], start: list[int]
) -> list[_Prompt]:
    encoded, made = tokenize(tokenizer, [prompt.content for prompt in prompts], offsets=True), []
    parts = zip(prompts, encoded["input_ids"], encoded["offset_mapping"], strict=True)
    for prompt, ids, places in parts:
        spans = {
            role: [i for i, (a, b) in enumerate(places, len(start)) if a < stop and b > first]
            for role, (first, stop) in prompt.spans.items()
        }
        made.append(_Prompt([*start, *ids], spans))
    return made


def _following(tokenizer: base.Tokenizer, word: str) -> list[int]:
    """Token ids of a word within a text, with the space that it may begin with."""
    if not word.startswith(" "):
        return token_ids(tokenizer, [word])[0]
    text = f"a{word}"  # SentencePiece puts a space of its own before a text
    (ids,), (at,), _ = base.tokens_at(tokenizer, [text], [(1, len(text))])
    return [ids[i] for i in at]
