"""Outcomes of interventions: all cells of a plan in few passes of a growing batch.

The base prompts run once, and the rows of a cell join them where its first intervention lies, as
copies of the base rows' states. A row carries only the tokens from its first changed one on, and
reads the keys and values of those before from the base run.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from palinka.errors import InputError
from palinka.interventions.metrics import Targets, Text, find_metrics, rounding_of
from palinka.interventions.pairs import Pairs
from palinka.interventions.plan import Cell, FromReference, Patch, Resample
from palinka.interventions.sources import (
    Base,
    Edit,
    Prefix,
    Sources,
    acting_on_patterns,
    by_query,
    check_change,
    edits_of,
    exact,
)
from palinka.language_models import LanguageModel
from palinka.language_models.attention import attending
from palinka.language_models.edits import as_function, latents_of
from palinka.language_models.sites import Tap, computing, hook, reading

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Watch = Callable[[str, Ints, Ints, Tensor], None]
_CALLS = 1e7  # multiplications of one token that take as long as the calls of a pass do
NOISE_DRAWS = 10  # of noise that takes the place of corrupted prompts


@dataclass(frozen=True)
class Outcomes:
    """Outcomes of the cells of a plan, in float64.

    Attributes:
        clean: By metric, outcomes of the clean prompts, `(prompts,)`; of prompts with answers
            always of the logit difference, too.
        corrupted: Those of the corrupted prompts; empty for texts.
        values: Those of the base prompts with each cell's interventions, `(cells, prompts)`.
        possible: `(cells, prompts)`, false where a cell cannot have an effect, whatever the model
            computes; its values are those of the base.
    """

    clean: dict[str, Floats]
    corrupted: dict[str, Floats]
    values: dict[str, Floats]
    possible: NDArray[np.bool_]

    def gap(self, metric: str = "logit_difference") -> Floats:
        """Outcome of clean minus corrupted prompts, `(prompts,)`."""
        return self.clean[metric] - self.corrupted[metric]

    @property
    def solved(self) -> Bools | None:
        """Prompts with a positive clean and a negative corrupted logit difference."""
        if "logit_difference" not in self.corrupted:
            return None
        return (self.clean["logit_difference"] > 0) & (self.corrupted["logit_difference"] < 0)


class _Rows(NamedTuple):
    cell: Ints
    prompt: Ints
    repeat: Ints
    joins: Ints

    def of(self, index: Any) -> "_Rows":
        return _Rows(*(array[index] for array in self))


@torch.inference_mode()
def run(
    lm: LanguageModel,
    pairs: Pairs,
    plan: Sequence[Cell],
    *,
    base: Literal["clean", "corrupted"] = "corrupted",
    metrics: Sequence[str] = ("logit_difference",),
    reference: Sequence[Sequence[int]] | None = None,
    states: Mapping[tuple[str, str], Tensor] | None = None,
    rows_bytes: int = 1 << 30,
    watch: Watch | None = None,
) -> Outcomes:
    """Measure the outcomes of every cell of a plan on every pair.

    Where noise takes the place of corrupted prompts, outcomes are means over its draws, which all
    cells share. With patterns in the plan, all runs have the rounding of eager attention.

    Args:
        lm: The model, of a family whose sites have names.
        pairs: The prompts, or texts; those of one length run together, without padding.
        plan: Cells, each of one or more interventions that act in one run.
        base: The prompts that are changed.
        metrics: Names of outcomes in `palinka.interventions.metrics`.
        reference: Token ids of the prompts that means, medians and resampled vectors are of;
            default the corrupted ones.
        states: By names of other runs and sites, such as `Patch` takes from them, states of all
            tokens of all prompts, `(tokens, width)`.
        rows_bytes: Approximate memory of the widest tensors of a pass.
        watch: Called with each site, the numbers of the cells and prompts of its rows there, and
            the changes of their vectors at the last token, `(rows, width)`.

    Returns:
        Outcomes, of which an effect that is within the rounding of logits is exactly 0.
    """
    functions, times = find_metrics(metrics, not pairs.answers), NOISE_DRAWS if pairs.noise else 1
    if states:
        pairs.check_texts()
    pairs = pairs.of(np.repeat(np.arange(len(pairs)), times))
    sources = Sources(lm, pairs, base, reference, states, times)
    if sources.whole and min(map(len, pairs.clean)) < 3:
        raise InputError("a text has fewer than 3 tokens, which is too short for outcomes of texts")
    cells = [edits_of(sources, cell) for cell in plan]
    every = [edit for edits in cells for edit in edits]
    shape, never = (len(plan), len(pairs)), np.iinfo(np.int64).max
    acts, first, joins = np.zeros(shape, bool), np.full(shape, never), np.full(shape, never)
    if every:
        of = np.repeat(np.arange(len(cells)), [*map(len, cells)])
        at = np.stack([edit.at for edit in every])
        where, places = at.any(2), np.array([[edit.joins] for edit in every])
        np.logical_or.at(acts, of, where)
        np.minimum.at(first, of, np.where(where, at.argmax(2), never))
        np.minimum.at(joins, of, np.where(where, places, never))
    if sources.whole:
        first[:] = 0  # outcomes are of all tokens
    draws = np.array([max(i.value.repeats for i in cell) for cell in plan], int)
    effects = {name: np.zeros(shape) for name in functions}
    ends: dict[str, dict[str, Floats]] = {"clean": {}, "corrupted": {}}
    changed = np.zeros(len(plan), bool)
    of_patterns = any(lm.spec.sites.attention(edit.site) for edit in every)
    with attending(lm.model) if of_patterns else nullcontext():
        paired = bool(pairs.corrupted) and not pairs.noise
        joint = paired and _fit_one_pass(lm, every, first[acts])
        begin = None if joint else min((edit.joins for edit in every), default=0) // 3
        bases, targets = sources.read(every, begin), None
        if sources.whole:
            ends["clean"] = {name: np.full(len(pairs), np.nan) for name in functions}
        else:
            targets = Targets.of(pairs.answers, pairs.wrong, sources.logits["clean"])
        for own in bases:
            cell, prompt = np.nonzero(acts[:, own.members])
            prompt, repeats = own.members[prompt], draws[cell]
            repeat = np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
            cell, prompt = cell.repeat(repeats), prompt.repeat(repeats)
            rows = _Rows(cell, prompt, repeat, joins[cell, prompt])
            sweeps = [(0, rows)]
            if not joint:
                sweeps = _sweeps(lm, rows, first[cell, prompt], own.ids.shape[1], rows_bytes)
            for start, part in sweeps:
                sweep = _Sweep(lm, sources, cells, part, own, start, watch)
                for name, found in sweep.outcomes(functions, targets).items():
                    if sources.whole:
                        ends["clean"][name][sweep.prompts[: sweep.bases]] = found[: sweep.bases]
                    effect = (found - found[sweep.origin])[sweep.bases :]
                    np.add.at(effects[name], (sweep.rows.cell, sweep.rows.prompt), effect)
                changed |= sweep.changed
    for run_, end in ends.items() if targets else ():
        for name, function in find_metrics(["logit_difference", *metrics]).items():
            end[name] = function(sources.logits[run_], targets).cpu().numpy()
    check_change(plan, cells, acts, changed)
    values = {}
    for name in functions:
        unchanged, effect = ends[base][name], effects[name] / draws[:, None]
        rounding = rounding_of(name, unchanged, sources.logits[base])
        values[name] = unchanged + np.where(np.abs(effect) <= rounding, 0.0, effect)

    split = len(pairs) // times, times

    def means(outcomes: dict[str, Floats]) -> dict[str, Floats]:
        """Means over the draws of noise."""
        return {n: x.reshape(*x.shape[:-1], *split).mean(-1) for n, x in outcomes.items()}

    possible: Bools = acts.reshape(len(plan), *split).max(axis=2)
    return Outcomes(means(ends["clean"]), means(ends["corrupted"]), means(values), possible)


def _sweeps(
    lm: LanguageModel, rows: _Rows, first: Ints, tokens: int, rows_bytes: int
) -> list[tuple[int, _Rows]]:
    """Rows that run together, each with the token from which on they run."""
    sweeps = []
    for start, stop in _partition(np.bincount(first, minlength=tokens), lm.model.config):
        part = rows.of((first >= start) & (first < stop))
        part = part.of(np.argsort(part.prompt, kind="stable"))
        most = max(1, rows_bytes // _row_bytes(lm, tokens - start, start))
        for begin in range(0, len(part.cell), most):
            sweeps.append((start, part.of(slice(begin, begin + most))))
    return sweeps


def _fit_one_pass(lm: LanguageModel, edits: Sequence[Edit], first: Ints) -> bool:
    """Return whether rows run in one pass with the runs that their patches are from.

    That saves the calls of a pass, and runs the tokens before the `first` of each row in vain.
    """
    config = lm.model.config
    logits = config.vocab_size / (6 * config.num_hidden_layers * config.hidden_size)
    work = (first + logits).sum() * config.hidden_size**2
    return 0 < work < _CALLS / 2 and all(isinstance(edit.given.value, Patch) for edit in edits)


def _row_bytes(lm: LanguageModel, tokens: int, start: int) -> int:
    config, heads = lm.model.config, lm.spec.sites.heads
    wide = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    pair = 2 * heads.shared * heads.size if heads else 0  # a key and a value of all heads
    # Keys and values of the tokens before are copied for each row.
    keys = 2 * (start + tokens) * pair
    widest = max(tokens * max(wide, 3 * config.hidden_size), 3 * config.vocab_size, keys)
    return int(2 * widest * lm.model.dtype.itemsize)


def _partition(counts: Ints, config: Any) -> list[tuple[int, int]]:
    """Ranges of first changed tokens whose rows run together, for the least work."""
    overhead, tokens = _CALLS / config.hidden_size**2, len(counts)
    best: list[tuple[float, list[tuple[int, int]]]] = [(0.0, [])]
    for stop in range(1, tokens + 1):
        options = [best[-1]] if counts[stop - 1] == 0 else []
        for start in range(stop if not options else 0):
            work = overhead + counts[start:stop].sum() * (tokens - start)
            options.append((best[start][0] + work, [*best[start][1], (start, stop)]))
        best.append(min(options, key=lambda option: option[0]))
    return best[-1][1]


class _Batch(NamedTuple):
    """Edits of many rows by one value."""

    edit: Edit
    rows: Ints
    at: Ints
    units: Ints | None  # (edits, units)


class _Sweep:
    """One pass of base rows, and of rows that join them where their first edit is."""

    def __init__(
        self, lm: LanguageModel, sources: Sources, cells: Sequence[Sequence[Edit]], rows: _Rows,
        base: Base, start: int, watch: Watch | None,
    ) -> None:  # fmt: skip
        self.lm, self.sources, self.base, self.start, self.watch = lm, sources, base, start, watch
        rows = rows.of(np.argsort(rows.joins, kind="stable"))
        self.joint = base.cache is None
        own = base.members if self.joint else np.unique(rows.prompt)
        before = np.concatenate([own] * (len(sources.runs) if self.joint else 1))
        self.rows, self.bases = rows, len(before)
        self.prompts = np.concatenate([before, rows.prompt])  # of each row of the batch
        self.repeats = np.concatenate([np.zeros_like(before), rows.repeat])
        self.origin = np.concatenate([np.arange(self.bases), np.searchsorted(own, rows.prompt)])
        self.local = self.origin if self.joint else np.searchsorted(base.members, self.prompts)
        self.changed, layers = np.zeros(len(cells), bool), lm.spec.sites.layers
        joined = np.searchsorted(rows.joins, np.arange(3 * layers + 3), side="right")
        self.counts = (self.bases + joined).tolist()  # of rows at each place
        # The residual stream before each block and before the final norm.
        self.streams = [*(f"hidden.{i}" for i in range(layers)), f"blocks.{layers - 1}.resid"]
        self.batches = self._batches(cells)

    def _batches(self, cells: Sequence[Sequence[Edit]]) -> dict[str, list[_Batch]]:
        """Edits by site, those of one value together, in the order of their cells."""
        found: dict[str, dict[Any, list[tuple[Edit, Ints, Ints]]]] = {}
        for cell in np.unique(self.rows.cell):
            rows = np.flatnonzero(self.rows.cell == cell)
            for edit in cells[cell]:
                of, at = np.nonzero(edit.at[self.rows.prompt[rows]])
                if not len(of):
                    continue
                given = edit.given
                shared = isinstance(given.value, FromReference | Resample)
                own = (edit.place, edit.units) if shared else len(edit.units or ())
                key = (edit.nth, given.value, own, given.dictionary)
                entry = found.setdefault(edit.site, {}).setdefault(key, [])
                entry.append((edit, self.bases + rows[of], at))
        batches: dict[str, list[_Batch]] = {site: [] for site in found}
        for site, by_key in found.items():
            for _, entries in sorted(by_key.items(), key=lambda item: item[0][0]):
                edits, of_rows, ats = (list(part) for part in zip(*entries, strict=True))
                units = None
                if edits[0].units is not None:
                    units = np.repeat([e.units for e in edits], [*map(len, ats)], axis=0)
                joined = np.concatenate(of_rows), np.concatenate(ats)
                batches[site].append(_Batch(edits[0], *joined, units))
        return batches

    def outcomes(
        self, functions: Mapping[str, Callable[..., Tensor]], targets: Targets | None
    ) -> dict[str, Floats]:
        """Outcomes of all rows, base rows first."""
        device = self.lm.device
        if targets is None:
            logits = self.logits(None)  # and the final states
            texts = list(map(Text, self.base.ids[self.local], logits, self.final))
            both = [(text, texts[i]) for text, i in zip(texts, self.origin, strict=True)]
            found = {n: torch.stack([f(*each) for each in both]) for n, f in functions.items()}
        else:
            asked, ids = targets.of_prompts(torch.as_tensor(self.prompts, device=device)), None
            if [*functions] == ["logit_difference"]:  # then no other logits are computed
                ids, asked = asked.columns()
            logits = self.logits(ids)
            found = {name: function(logits, asked) for name, function in functions.items()}
        return {name: outcome.cpu().numpy() for name, outcome in found.items()}

    def logits(self, ids: Tensor | None) -> Tensor:
        """Logits at the last token, base rows first: all, or those of ids, `(rows, ids)`.

        Of texts, those at all tokens.
        """
        model, sites, batches = self.lm.model, self.lm.spec.sites, self.batches
        layers, first, whole = sites.layers, self.base.first, self.sources.whole
        untyped: Any = model
        head = untyped.get_output_embeddings()
        self.embedded = self._embedded() if self.joint or "embed" in batches else None
        self.final = self.given = torch.empty(0)
        with ExitStack() as stack:
            stack.enter_context(computing({head: partial(self._unembed, head, ids)}))
            stack.enter_context(sites.starting(model, first, partial(self._enter, first, True)))

            def act(tap: Tap, function: Callable[[Tensor], Tensor]) -> None:
                stack.enter_context(hook(model, tap, function))

            for block in range(first + 1, layers + 1):
                act(sites.given_to(block), partial(self._enter, block, False))
            for block in range(first, layers):
                site = f"blocks.{block}."
                counts = self.counts[3 * block : 3 * block + 3]
                # In the last block the last token's alone.
                last = -1 if block == layers - 1 and not whole else 0
                z = sites.taps[site + "attn.z"]
                attention = replace(z, module=z.module.rpartition(".")[0])
                if counts[0] < counts[2]:
                    act(attention, itemgetter(slice(counts[0])))
                if counts[0] < counts[2] or last:
                    act(z, partial(self._grow, counts[2], last))
                if counts[1] < counts[2] or last:
                    begun = slice(counts[1]), slice(last, None)
                    act(sites.taps[site + "mlp.in"], itemgetter(begun))
                if counts[1] < counts[2]:
                    act(sites.taps[site + "mlp.post"], partial(self._grow, counts[2], 0))
            stack.enter_context(acting_on_patterns(self.lm, batches, self._edit_pattern))
            entered = {*self.streams}
            # The stream first: an MLP that is given the stream itself may be given something else.
            inside = sorted(batches.keys() - entered - {"embed"})
            for site in sorted(inside, key=lambda name: not name.endswith("resid_mid")):
                if not sites.attention(site):
                    tap = sites.tap(site)
                    act(tap, partial(self._edit, site, tap))
            cache = None
            if self.start:
                cache = Prefix(self.base, self.start, torch.as_tensor(self.local))
            # One row, so that masks and embeddings of positions fit batches of any size.
            row = self.base.ids[:1, self.start :]
            keep = 0 if whole else 1
            output = model(
                row, past_key_values=cache, use_cache=cache is not None, logits_to_keep=keep
            )
        logits: Tensor = output.logits if whole else output.logits[:, -1]
        if ids is not None:
            asked, logits = logits[0].tensor_split([ids.numel()])
            logits = logits.view(-1, len(head.weight))
        for run_, part in self._of_runs(logits):
            self.sources.logits[run_][self.base.members] = exact(part)
        return logits if ids is None else asked.view(ids.shape)

    def _unembed(self, head: nn.Linear, ids: Tensor | None, states: Tensor) -> Tensor:
        """Logits of all tokens, `(rows, 1, vocabulary)`.

        Or those of each row's ids, and after them all of whole runs, as one row.
        """
        self.final = states
        some = states if ids is None else states[: self.joint * self.bases]
        logits = nn.functional.linear(some.contiguous(), head.weight, head.bias)
        if ids is None:
            return logits
        asked = states @ head.weight[ids].mT
        asked = asked if head.bias is None else asked + head.bias[ids][:, None]
        return torch.cat((asked.flatten(), logits.flatten()))[None, None]

    def _enter(self, block: int, first: bool, whole: Tensor) -> Tensor:
        """Supply the rows of a block, or of the final norm, and edit them."""
        site, count = self.streams[block], self.counts[3 * block + 2]
        if first and self.embedded is None:
            states = self.base.states[self.local[:count], self.start :]
        else:
            begun = whole if self.embedded is None or not first else self.embedded[:, self.start :]
            states = self._grow(count, 0, begun)
        for batch in self.batches.get(site, ()):
            self._apply(batch, states)
        self.given = states
        return states

    def _grow(self, count: int, last: int, whole: Tensor) -> Tensor:
        """Append rows that begin here, and keep the tokens from `last` on."""
        kept = whole[:, last:]
        if count == len(whole):
            return kept
        rows = np.append(np.arange(len(whole)), self.origin[len(whole) : count])
        return kept.index_select(0, torch.as_tensor(rows, device=kept.device))

    def _embedded(self) -> Tensor:
        """Inputs of the first block in rows that are there from the embeddings on."""
        model, taps = self.lm.model, self.lm.spec.sites.taps
        rows = self.local[: self.counts[0]]
        ids = self.base.ids[rows]
        corrupted = self.sources.base == "corrupted"
        noise = self.sources.noisy(self.prompts[: len(rows)]) if corrupted else nullcontext()
        edits = hook(model, taps["embed"], partial(self._edit, "embed", taps["embed"]))
        with noise, edits, reading(model, {"hidden.0": taps["hidden.0"]}) as found:
            model(ids, use_cache=False)
        return found["hidden.0"]

    def _edit(self, site: str, tap: Tap, whole: Tensor) -> Tensor:
        edited = whole if tap.in_place else tap.take(whole).clone()
        for batch in self.batches.get(site, ()):
            self._apply(batch, edited)
        return whole if tap.in_place else tap.put(whole, edited)

    def _edit_pattern(self, site: str, pattern: Tensor) -> Tensor:
        vectors = by_query(pattern, self.sources.longest)
        for batch in self.batches[site]:
            self._apply(batch, vectors)
        changed: Tensor = torch.unflatten(vectors, 2, (pattern.shape[1], -1)).transpose(1, 2)
        return changed[..., : pattern.shape[-1]]

    def _of_runs(self, states: Tensor) -> Iterable[tuple[str, Tensor]]:
        """The rows of whole runs, by the run, where they are run with the others."""
        runs = self.sources.runs if self.joint else ()
        return zip(runs, states[: self.bases].chunk(len(runs) or 1), strict=False)

    def _apply(self, batch: _Batch, states: Tensor) -> None:
        """Change the vectors of a batch in place."""
        given = batch.edit.given
        value, dictionary = given.value, given.dictionary
        at = batch.at - self.base.ids.shape[1]  # also of a few last tokens
        place = torch.as_tensor(batch.rows), torch.as_tensor(at)

        def change(vectors: Tensor) -> Tensor:
            if batch.units is None:
                return value(vectors, source(vectors))
            units = torch.as_tensor(batch.units, device=vectors.device)
            if (most := int(batch.units.max())) >= vectors.shape[1]:
                raise InputError(f"{given.site} has {vectors.shape[1]} units, and no unit {most}")
            new = value(vectors.gather(1, units), source(vectors, units))
            return vectors.scatter(1, units, new)

        def source(vectors: Tensor, units: Tensor | None = None) -> Tensor | None:
            if value.needs is None:
                return None
            if value.needs == "block":
                found = self.given[place]
            elif self.joint and (run_ := self.sources.run_of(batch.edit)) in self.sources.runs:
                rows = self.origin[batch.rows] + self.bases // 2 * self.sources.runs.index(run_)
                found = exact(states[torch.as_tensor(rows), place[1]])
                found = found if dictionary is None else latents_of(dictionary, found)
            else:
                prompts, repeats = self.prompts[batch.rows], self.repeats[batch.rows]
                width = vectors.shape[1]
                found = self.sources.fetch(batch.edit, prompts, repeats, batch.at, width)
            found = found.to(vectors)
            return found if units is None or value.needs == "reference" else found.gather(1, units)

        old = states[place]
        if dictionary is None:
            new = change(exact(old)).to(old)
        else:
            new = as_function(dictionary, change, keep_error=True)(exact(old)).to(old)
        eps = torch.finfo(torch.promote_types(old.dtype, torch.float32)).eps
        rounding = 64 * eps * old.abs().amax()
        has_changed = ((new - old).abs() > rounding).any(1).cpu().numpy()
        self.changed[self.rows.cell[batch.rows[has_changed] - self.bases]] = True
        states[place] = new
        if self.watch is not None:
            last = batch.at == self.base.ids.shape[1] - 1
            own = batch.rows[last] - self.bases
            cells, prompts = self.rows.cell[own], self.rows.prompt[own]
            times = self.sources.draws
            moved = (new - old)[torch.as_tensor(last)] / times
            self.watch(batch.edit.site, cells, prompts // times, moved)
