"""States of other runs, and summaries of them, that take the place of a run's own."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial, wraps
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from palinka.errors import InputError, did_you_mean
from palinka.interventions.pairs import Pairs
from palinka.interventions.plan import (
    Cell,
    FromReference,
    Intervention,
    Noise,
    Patch,
    Position,
    Resample,
    ScaleContribution,
    Value,
)
from palinka.language_models import LanguageModel
from palinka.language_models.attention import attending, attention_module
from palinka.language_models.edits import EncodesAndDecodes, latents_of
from palinka.language_models.sites import Tap, hook, reading

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Dictionary = EncodesAndDecodes | None
F = TypeVar("F", bound=Callable[..., Any])
# Rows of later parts of a block skip what comes before: the attention, or the first half of the
# MLP, too. Parallel MLPs do not read the attention, which makes no difference.
_PART = {
    "attn.q": 0, "attn.k": 0, "attn.v": 0, "attn.pattern": 0, "attn.z": 1, "attn.out": 1,
    "attn.write": 1, "resid_mid": 1, "mlp.in": 1, "mlp.pre": 1, "mlp.post": 2, "mlp.out": 2,
    "mlp.write": 2,
}  # fmt: skip
_SITE = re.compile(r"(?:hidden|blocks)\.(\d+)(?:\.(.+?))?(?:\.(\d+))?")
BATCH = 64  # prompts that run together


class Edit(NamedTuple):
    """An intervention at one place of each prompt."""

    given: Intervention
    site: str  # a named tap; the output of a block is the input of the next
    joins: int  # 3 * block + part: where a row must have joined the batch
    units: tuple[int, ...] | None
    place: Position
    at: Bools  # (prompts, tokens): where it acts
    nth: int  # number of earlier edits of the cell at this site


def same_length(ids: Sequence[Sequence[int]], most: int) -> Iterator[Ints]:
    """Indices of prompts of one length, at most `most` at a time."""
    lengths = np.array([len(prompt) for prompt in ids])
    for tokens in np.unique(lengths):
        members = np.flatnonzero(lengths == tokens)
        for start in range(0, len(members), most):
            yield members[start : start + most]


def exact(x: Tensor) -> Tensor:
    """Vectors in float32 at least."""
    return x.float() if x.dtype.itemsize < 4 else x


def kept(method: F) -> F:
    """Keep what a method of `Sources` returns, by its arguments."""

    @wraps(method)
    def once(sources: "Sources", *key: Any) -> Any:
        if (whole := (method.__name__, key)) not in sources.kept:
            sources.kept[whole] = method(sources, *key)
        return sources.kept[whole]

    return cast("F", once)


class Base(NamedTuple):
    """Prompts of one length of the base run, of which rows are copies.

    Without a cache, both runs are rows of the sweep itself: first the base, then the other.
    """

    members: Ints  # their numbers
    ids: Tensor
    first: int = 0  # the block in which rows begin
    states: Tensor = torch.empty(0)  # its input
    cache: DynamicCache | None = None  # keys and values of all tokens, in rows from `offset` on
    offset: int = 0


class Prefix(DynamicCache):
    """Keys and values of the first tokens of the base prompts, the same for all rows of one."""

    def __init__(self, base: Base, tokens: int, prompts: Tensor) -> None:
        super().__init__()
        self._cache: Any = base.cache
        self._tokens, self._prompts = tokens, base.offset + prompts

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Prepend the prefix of each row, and keep nothing."""
        layer = self._cache.layers[layer_idx]
        prompts = self._prompts[: len(key_states)]
        keys, values = (x[:, :, : self._tokens][prompts] for x in (layer.keys, layer.values))
        return torch.cat((keys, key_states), 2), torch.cat((values, value_states), 2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of tokens before those of the rows."""
        return self._tokens

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Number of keys, and of those that are left out at the start."""
        return self._tokens + query_length, 0


def acting_on_patterns(
    lm: LanguageModel, sites: Iterable[str], act: Callable[[str, Tensor], Tensor | None]
) -> AbstractContextManager[None]:
    """Call a function with each of the sites that is one of patterns, and its pattern."""
    every, model = lm.spec.sites, lm.model
    taps = [
        (attention_module(model, every, place[0]), place[1], partial(act, site))
        for site in sites
        if (place := every.attention(site))
    ]
    return attending(lm.model, taps) if taps else nullcontext()


def by_query(pattern: Tensor, keys: int) -> Tensor:
    """A vector for each query, `(texts, queries, heads * keys)`, padded to a number of keys."""
    padded = functional.pad(pattern, (0, keys - pattern.shape[-1]))
    return padded.transpose(1, 2).flatten(2)


class Sources:
    """Runs of clean, corrupted and reference prompts, and what edits take from them.

    `base` is the name of the run that is changed, and `draws` the number of rows of each prompt,
    one for each draw of the noise on its embeddings.
    """

    def __init__(
        self, lm: LanguageModel, pairs: Pairs, base: str,
        reference: Sequence[Sequence[int]] | None = None,
        states: Mapping[tuple[str, str], Tensor] | None = None, draws: int = 1,
    ) -> None:  # fmt: skip
        given = {"reference": reference, "corrupted": pairs.corrupted, "clean": pairs.clean}
        self.base, self.ids = base, {run: ids for run, ids in given.items() if ids}
        self._reference = next(iter(self.ids))
        self.lengths = {run: np.array([len(i) for i in ids]) for run, ids in self.ids.items()}
        self.longest = max(int(lengths.max()) for lengths in self.lengths.values())
        self.whole, self.draws = not pairs.answers, draws  # whole: outcomes are of whole texts
        self._starts = {run: np.cumsum([0, *n]) for run, n in self.lengths.items()}
        self._lm, self._pairs = lm, pairs
        # The base run, and the other one, if there is one.
        self.runs = sorted(self.ids.keys() - {"reference"}, key=lambda run: run != base)
        shape = len(pairs), len(lm.unembedding.weight)  # of logits at the last token
        dtype = torch.promote_types(lm.model.dtype, torch.float32)
        self.logits = {run: torch.empty(shape, dtype=dtype, device=lm.device) for run in self.runs}
        self._states = dict(states or {})  # (tokens of all prompts, width)
        self.kept: dict[Any, Any] = {}

    def read(self, edits: Sequence[Edit], first: int | None) -> list[Base]:
        """Read what edits need and the logits of all runs, and what rows are copies of.

        Rows run from the block `first` on; None leaves all of it to the sweeps.
        """
        if first is None:
            groups = [*same_length(self.ids["clean"], BATCH)]
            return [Base(m, torch.cat([self._rows(run, m) for run in self.runs])) for m in groups]
        wanted = {(self.run_of(edit), edit.site) for edit in edits}
        given = {site for run, site in wanted if run == "reference"}
        for members in same_length(self.ids.get("reference", ()), BATCH) if given else ():
            with self._reading(given) as found:
                self._lm.model(self._rows("reference", members), use_cache=False)
            for site, states in found.items():
                self._keep("reference", site, members, states)
        begin = {"start": self._lm.spec.sites.given_to(first)}
        sites = {site for run, site in wanted if run}
        runs = [run for run in ("clean", "corrupted") if run in self.ids]
        bases = []
        for members in same_length(self.ids["clean"], BATCH):
            rows = torch.cat([self._rows(run, members) for run in runs])
            cache = DynamicCache()
            with self.noisy(members), self._reading(sites, begin) as found:
                how: Any = {"past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
                output = self._lm.model(rows, **how)
            count = len(members)
            for run, part in zip(runs, (slice(count), slice(count, None)), strict=False):
                self.logits[run][members] = exact(output.logits[part, -1])
                for site in found.keys() - {"start"}:
                    if (run, site) in wanted:
                        self._keep(run, site, members, found[site][part])
                if run == self.base:
                    start = found["start"][part]
                    bases.append(Base(members, rows[part], first, start, cache, part.start or 0))
        return bases

    @contextmanager
    def _reading(
        self, sites: Iterable[str], more: Mapping[str, Tap] | None = None
    ) -> Iterator[dict[str, Tensor]]:
        """Collect the states at sites by name while the model runs in the body of the `with`."""
        every = self._lm.spec.sites
        taps = {site: every.tap(site) for site in sites if not every.attention(site)}

        def keep(site: str, pattern: Tensor) -> None:
            found[site] = by_query(pattern, self.longest)

        patterns = acting_on_patterns(self._lm, sites, keep)
        with reading(self._lm.model, {**taps, **(more or {})}, stop=False) as found, patterns:
            yield found

    def noisy(self, members: Ints) -> AbstractContextManager[Any]:
        """Add noise to the embeddings of the last rows, corrupted prompts that have no own text."""
        ids, noise, model = self._pairs.clean, self._pairs.noise, self._lm.model
        if not noise:
            return nullcontext()
        own = [ids[i][at] for i in range(0, len(ids), self.draws) for at in noise[i]]
        embedded = model.get_input_embeddings()(torch.tensor(own, device=self._lm.device))
        eps = np.zeros((len(members), len(ids[members[0]]), embedded.shape[1]))
        for row, i in zip(eps, members, strict=True):
            random = np.random.default_rng([0, *divmod(int(i), self.draws)])
            row[list(noise[i])] = random.standard_normal(row.shape)[list(noise[i])]
        added = torch.as_tensor(eps).to(embedded) * self._pairs.sigma * embedded.double().std()

        def add(whole: Tensor) -> Tensor:
            return torch.cat((whole[: -len(eps)], whole[-len(eps) :] + added.to(whole)))

        return hook(model, self._lm.spec.sites.taps["embed"], add)

    def _rows(self, run: str, members: Ints) -> Tensor:
        return torch.tensor([self.ids[run][i] for i in members], device=self._lm.device)

    def _keep(self, run: str, site: str, members: Ints, states: Tensor) -> None:
        index = self._starts[run][members][:, None] + np.arange(states.shape[1])
        empty = states.new_empty(self._starts[run][-1], states.shape[-1])
        self._states.setdefault((run, site), empty)[index] = states

    @kept
    def places(self, place: Position, run: str) -> Ints | None:
        """Positions in each prompt of a run, or None for all tokens."""
        lengths = self.lengths[run]
        if isinstance(place, int):
            found = np.where(np.array(place) < 0, lengths + place, place)
            if ((found < 0) | (found >= lengths)).any():
                raise InputError(f"no position {place} in prompts of {lengths.min()} tokens")
            return found
        roles = self._pairs.roles
        if place in roles and run != "reference":
            return np.asarray(roles[place])
        if place == "end":
            return lengths - 1
        if place != "all" and place not in roles:
            raise InputError(f"no role {place!r}{did_you_mean(place, [*roles, 'end', 'all'])}")
        return None

    @kept
    def differ(self, by_token: bool) -> Bools:
        """Tokens of clean and corrupted prompts that differ, and those after, unless `by_token`."""
        clean, corrupted = self._pairs.clean, self._pairs.corrupted
        found = np.zeros((len(clean), max(map(len, clean))), bool)
        for i, (a, b) in enumerate(zip(clean, corrupted, strict=True)):
            found[i, : len(a)] = np.asarray(a) != np.asarray(b)
            found[i, list(self._pairs.noise[i]) if self._pairs.noise else []] = True
        return found if by_token else np.logical_or.accumulate(found, 1)

    def fetch(self, edit: Edit, prompts: Ints, repeats: Ints, at: Ints, width: int) -> Tensor:
        """Sources of an edit for each prompt, repeat and position, `(rows, width)`.

        Of a summary, the width is its own.
        """
        value, run, dictionary = edit.given.value, self.run_of(edit), edit.given.dictionary
        starts = self._starts.get(run, self._starts[self.base])
        if isinstance(value, Noise):
            of_prompt = value.repeats * starts[prompts] + repeats * self.lengths[self.base][prompts]
            return self._noise(value.seed, value.repeats, width)[of_prompt + at]
        if isinstance(value, FromReference):
            place = edit.place, edit.units
            return self._summaries(value, run, edit.site, dictionary, *place)[prompts]
        if isinstance(value, Resample):
            fixed = isinstance(edit.place, int) or "attn.pattern" in edit.site  # queries read keys
            places = None if fixed else self.places(edit.place, run)
            every = self._others(value.seed, value.repeats, run, places is not None)
            prompts = every[prompts, repeats]
            at = at if places is None else places[prompts]
        return self._vectors(edit.site, dictionary, run, starts[prompts] + at)

    def run_of(self, edit: Edit) -> str:
        """Name of the run that an edit takes states from, if it takes any."""
        value = edit.given.value
        if isinstance(value, Patch):
            other = {"clean": "corrupted", "corrupted": "clean"}[self.base]
            return other if value.run == "paired" else value.run
        if isinstance(value, FromReference) and value.over == "text":
            return self.base
        return self._reference if isinstance(value, FromReference | Resample) else ""

    def _vectors(self, site: str, dictionary: Dictionary, run: str, index: Ints) -> Tensor:
        """Vectors at a site by the number of the token in the run, or their latents."""
        vectors = exact(self._states[run, site][index])
        return vectors if dictionary is None else latents_of(dictionary, vectors)

    @kept
    def _noise(self, seed: int, repeats: int, width: int) -> Tensor:
        draws = [
            np.random.default_rng([seed, prompt, repeat]).standard_normal((tokens, width))
            for prompt, tokens in enumerate(self.lengths[self.base])
            for repeat in range(repeats)
        ]
        return torch.as_tensor(np.concatenate(draws), device=self._lm.device)

    @kept
    def _others(self, seed: int, repeats: int, run: str, by_role: bool) -> Ints:
        """Another prompt of the reference for each prompt and repeat."""
        every, chosen = np.arange(len(self.lengths[run])), []
        for prompt, tokens in enumerate(self.lengths[self.base]):
            own = every // self.draws == prompt // self.draws
            others = every[~own | (run == "reference")]
            fits = others[self.lengths[run][others] == tokens]  # for roles, too: the same draws
            if by_role and not len(fits):
                fits = others
            if not len(fits):
                fault = f"no other prompt of {tokens} tokens to resample prompt {prompt} from"
                raise InputError(f"{fault}; give a reference, or a role in place of positions")
            random = np.random.default_rng([seed, prompt])
            chosen.append(random.choice(fits, repeats, replace=len(fits) < repeats))
        return np.array(chosen)

    @kept
    def _summaries(
        self, value: FromReference, run: str, site: str, dictionary: Dictionary, place: Position,
        units: tuple[int, ...] | None,
    ) -> Tensor:  # fmt: skip
        """Summary of the reference for each prompt."""
        labels: Sequence[Any] = {
            "stimuli": [0] * len(self.ids[self.base]),
            "template": self._pairs.templates,
            "text": range(len(self.ids[self.base])),
        }[value.over]
        pooled = value.pooled or value.over == "text"
        places = None if pooled else self.places(place, run)
        found, own_units = {}, slice(None) if units is None else list(units)
        for label in dict.fromkeys(labels):
            every = range(len(self.ids[run]))
            members = [i for i in every if value.over == "stimuli" or labels[i] == label]
            if len(members) == 1 and not pooled:
                name = type(value).__name__.lower()
                raise InputError(f"{name} over a reference of 1 prompt; give at least 2")
            index = []
            for i in members:
                n = self.lengths[run][i]
                own = np.arange(min(value.skip, n - 1), n) if places is None else places[[i]]
                index.append(self._starts[run][i] + own)
            vectors = self._vectors(site, dictionary, run, np.concatenate(index))
            found[label] = value.summary(vectors[:, own_units])
        return torch.stack([found[label] for label in labels])

    @kept
    def located(
        self, site: str, units: tuple[int, ...] | None, of_units: bool, value: type[Value]
    ) -> tuple[str, int, tuple[int, ...] | None]:
        """Canonical name of a site, the place 3 * block + part where it lies, and units there.

        A head's units are those of all heads, which change together; of a pattern, its keys.
        """
        sites = self._lm.spec.sites
        name = sites.resolve(site.replace("attn.pattern", "attn.z"))
        size = sites.heads.size if sites.heads else 0
        if "attn.pattern" in site:
            if issubclass(value, FromReference):
                fault = f"{site}: a {value.__name__.lower()} over queries attends to later tokens"
                raise InputError(f"{fault}; give zero or resample, or heads")
            name, size = name.replace("attn.z", "attn.pattern"), self.longest
        match = _SITE.fullmatch(name)
        block, kind, head = (int(match[1]), match[2] or "", match[3]) if match else (0, "", None)
        if value is ScaleContribution and kind != "resid":
            given = "a block's contribution is scaled at blocks.{i}.resid"
            raise InputError(f"{given}, not at {name}")
        if kind in _PART:
            if head and of_units:
                if unknown := [unit for unit in units or () if not 0 <= unit < size]:
                    some = ", ".join(map(str, unknown[:8]))
                    raise InputError(f"{name} has units 0 to {size - 1}, and {some} are given")
                name, first = f"blocks.{block}.{kind}", int(head) * size
                own = range(first, first + size)
                units = tuple(own if units is None else (own[unit] for unit in units))
            return name, 3 * block + _PART[kind], units
        if kind not in ("", "resid") or (match is None and name != "embed"):
            raise InputError(f"{site} cannot be changed here; give a named site")
        after = block + (kind == "resid")
        return name if after >= sites.layers or not match else f"hidden.{after}", 3 * after, units

    @kept
    def free(self, site: str, acts: int, paired: bool, nothing: bool) -> Bools:
        """Tokens at which an edit may have an effect, `(prompts, tokens)`."""
        sites, lengths = self._lm.spec.sites, self.lengths[self.base][:, None]
        tokens, last = np.arange(lengths.max()), f"blocks.{sites.layers - 1}.attn."
        free = (tokens < lengths) & (not nothing)
        if paired:  # some sites depend on no other token
            inputs = {"embed", "hidden.0", *(f"blocks.0.attn.{part}" for part in "qkv")}
            parallel = "blocks.0.resid_mid" not in sites.taps and site.startswith("blocks.0.mlp")
            free = free & self.differ(site in inputs or parallel)
        in_last = acts > 3 * (sites.layers - 1) or site in (last + "q", last + "pattern")
        if in_last and not self.whole:
            free = free & (tokens == lengths - 1)  # no other token's outputs are read any more
        return np.asarray(free)


def edits_of(sources: Sources, cell: Cell) -> list[Edit]:
    """The edits of a cell, one for each place, without positions where they have no effect."""
    base, edits = sources.base, list[Edit]()
    # Until something else has changed, another run agrees with the base before their difference.
    paired = all(isinstance(i.value, Patch) and i.value.run != base for i in cell)
    for given in cell:
        own = None if given.units is None else tuple(given.units)
        kind = type(given.value)
        site, acts, units = sources.located(given.site, own, given.dictionary is None, kind)
        joins = acts - 3 if kind is ScaleContribution else acts
        free = sources.free(site, acts, paired, units == ())
        where, tokens = given.positions, np.arange(free.shape[1])
        for place in [where] if isinstance(where, str | int) else where:
            places = sources.places(place, base)
            at = free if places is None else free & (tokens == places[:, None])
            nth = sum(edit.site == site for edit in edits)
            edits.append(Edit(given, site, joins, units, place, at, nth))
            free = free & ~at  # a token of two places changes once
    return edits


def check_change(
    plan: Sequence[Cell], cells: Sequence[Sequence[Edit]], acts: Bools,
    changed: Bools,
) -> None:  # fmt: skip
    """Reject a patch of whole vectors that found the same ones in every prompt.

    Single latents may be idle in all prompts, but not all latents of a plan.
    """
    of_latents = plan and all(i.dictionary for cell in plan for i in cell)
    if of_latents and acts.any() and not changed.any():
        fault = f"interventions on latents of {plan[0][0].site} changed nothing"
        count = f"in {acts.shape[1]} of {acts.shape[1]} prompts"
        raise InputError(f"{fault} {count}; choose latents that are active there")
    for cell, edits, possible, has_changed in zip(plan, cells, acts, changed, strict=True):
        paired = all(i.value == Patch() and not i.units and not i.dictionary for i in cell)
        if paired and possible.any() and not has_changed:
            count = f"nothing in {possible.sum()} of {len(possible)} prompts"
            fault = f"an intervention at {edits[0].given.site} changed {count}"
            raise InputError(f"{fault}; clean and corrupted agree there")
