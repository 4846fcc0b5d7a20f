"""Outcomes of interventions: all cells of a plan in few passes of a growing batch.

The base prompts run once, and the rows of a cell join them where its first intervention lies, as
copies of the base rows' states. A row carries only the tokens from its first changed one on, and
reads the keys and values of those before from the base run.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import DynamicCache

from palinka.errors import InputError
from palinka.interventions.metrics import Targets, find_metrics
from palinka.interventions.pairs import Pairs
from palinka.interventions.plan import (
    Cell,
    FromReference,
    Patch,
    Resample,
)
from palinka.interventions.sources import Base, Edit, Sources, edits_of, exact, given_to
from palinka.language_models import LanguageModel
from palinka.language_models.edits import as_function
from palinka.language_models.sites import Tap, hook, reading

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Watch = Callable[[str, Ints, Ints, Tensor], None]
_CALLS = 1e7  # multiplications of one token that take as long as the calls of a pass do
_TUPLES = {"gpt_neo"}  # families whose blocks return more than the residual stream


@dataclass(frozen=True)
class Outcomes:
    """Outcomes of the cells of a plan, in float64.

    Attributes:
        clean: By metric, outcomes of the clean prompts, `(prompts,)`; always of the logit
            difference, too.
        corrupted: Those of the corrupted prompts.
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
    def solved(self) -> Bools:
        """Prompts with a positive clean and a negative corrupted logit difference."""
        return (self.clean["logit_difference"] > 0) & (self.corrupted["logit_difference"] < 0)


class _Rows(NamedTuple):
    cell: Ints
    prompt: Ints
    repeat: Ints
    joins: Ints

    def of(self, index: Any) -> "_Rows":
        return _Rows(*(array[index] for array in self))


@torch.no_grad()
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

    Args:
        lm: The model, of a family whose sites have names.
        pairs: The prompts; those of one length run together, without padding.
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
    functions = find_metrics(metrics)
    sources = Sources(lm, pairs, base, reference, states)
    cells = [edits_of(lm, sources, cell) for cell in plan]
    every = [edit for edits in cells for edit in edits]
    bases = sources.read(every, min((edit.joins for edit in every), default=0) // 3)
    targets = Targets.of(pairs.answers, pairs.wrong, sources.logits["clean"])
    shape, never = (len(plan), len(pairs)), np.iinfo(np.int64).max
    acts, first, joins = np.zeros(shape, bool), np.full(shape, never), np.full(shape, never)
    for c, edits in enumerate(cells):
        for edit in edits:
            where = edit.at.any(1)
            acts[c] |= where
            first[c, where] = np.minimum(first[c, where], edit.at.argmax(1)[where])
            joins[c, where] = np.minimum(joins[c, where], edit.joins)
    draws = np.array([max(i.value.draws for i in cell) for cell in plan], int)
    effects = {name: np.zeros(shape) for name in functions}
    changed = np.zeros(len(plan), bool)
    narrow = list(functions) == ["logit_difference"]  # then no other logits are computed
    for own in bases:
        cell, prompt = np.nonzero(acts[:, own.members])
        prompt, times = own.members[prompt], draws[cell]
        repeat = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
        cell, prompt = cell.repeat(times), prompt.repeat(times)
        rows = _Rows(cell, prompt, repeat, joins[cell, prompt])
        sweeps = _sweeps(lm, rows, first[cell, prompt], own.ids.shape[1], rows_bytes)
        for start, part in sweeps:
            sweep = _Sweep(lm, sources, cells, part, own, start)
            sweep.watch = watch
            asked = targets.of_prompts(torch.as_tensor(sweep.prompts, device=lm.device))
            ids, asked = asked.columns() if narrow else (None, asked)
            logits = sweep.logits(ids)
            for name, function in functions.items():
                found = function(logits, asked)
                effect = (found - found[sweep.origin])[sweep.bases :].cpu().numpy()
                np.add.at(effects[name], (sweep.rows.cell, sweep.rows.prompt), effect)
            changed |= sweep.changed
    _check_change(plan, cells, acts, changed)
    ends = {
        run: {
            name: function(sources.logits[run], targets).cpu().numpy()
            for name, function in find_metrics(["logit_difference", *metrics]).items()
        }
        for run in ("clean", "corrupted")
    }
    values = {}
    for name in functions:
        unchanged, effect = ends[base][name], effects[name] / draws[:, None]
        rounding = rounding_of(name, unchanged, sources.logits[base])
        values[name] = unchanged + np.where(np.abs(effect) <= rounding, 0.0, effect)
    return Outcomes(ends["clean"], ends["corrupted"], values, acts)


def rounding_of(metric: str, unchanged: Floats, logits: Tensor) -> Floats:
    """Largest effect, `(prompts,)`, that the rounding of the logits of the base may make."""
    eps = torch.finfo(torch.promote_types(logits.dtype, torch.float32)).eps
    rounding: Floats = 16 * eps * logits.abs().amax(1).double().cpu().numpy()
    if metric == "probability":  # rounded as its logarithm is
        return rounding * unchanged
    if metric == "kl":  # from the base itself, of second order, and computed in float64
        second = np.maximum(rounding, np.finfo(np.float64).eps / eps)
        return rounding * np.where(unchanged == 0, second, 1.0)
    return rounding


def _check_change(
    plan: Sequence[Cell], cells: Sequence[Sequence[Edit]], acts: Bools, changed: Bools
) -> None:
    """Reject a patch of whole vectors that found the same ones in every prompt.

    Single latents may be idle in all prompts, but not all latents of a plan.
    """
    of_latents = plan and all(i.dictionary for cell in plan for i in cell)
    if of_latents and acts.any() and not changed.any():
        count, site = acts.shape[1], plan[0][0].site
        fault = f"interventions on latents of {site} changed nothing in {count} of {count} prompts"
        raise InputError(f"{fault}; choose latents that are active there")
    for cell, edits, possible, has_changed in zip(plan, cells, acts, changed, strict=True):
        paired = all(i.value == Patch() and not i.units and not i.dictionary for i in cell)
        if paired and possible.any() and not has_changed:
            count = f"nothing in {possible.sum()} of {len(possible)} prompts"
            fault = f"an intervention at {edits[0].given.site} changed {count}"
            raise InputError(f"{fault}; clean and corrupted agree there")


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
        for start in range(stop):
            work = overhead + counts[start:stop].sum() * (tokens - start)
            options.append((best[start][0] + work, [*best[start][1], (start, stop)]))
        best.append(min(options, key=lambda option: option[0]))
    return best[-1][1]


class _Prefix(DynamicCache):
    """Keys and values of the first tokens of the base prompts, the same for all rows of one."""

    def __init__(self, base: Base, tokens: int, prompts: Tensor) -> None:
        super().__init__()
        self._cache, self._tokens, self._prompts = base.cache, tokens, base.offset + prompts

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Prepend the prefix of each row, and keep nothing."""
        layer: Any = self._cache.layers[layer_idx]
        prompts = self._prompts[: len(key_states)]
        keys, values = (x[:, :, : self._tokens][prompts] for x in (layer.keys, layer.values))
        return torch.cat((keys, key_states), 2), torch.cat((values, value_states), 2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of tokens before those of the rows."""
        return self._tokens

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Number of keys, and of those that are left out at the start."""
        return self._tokens + query_length, 0


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
        base: Base, start: int,
    ) -> None:  # fmt: skip
        self.lm, self.sources, self.base, self.start = lm, sources, base, start
        rows = rows.of(np.argsort(rows.joins, kind="stable"))
        own = np.unique(rows.prompt)
        self.rows, self.bases = rows, len(own)
        self.prompts = np.concatenate([own, rows.prompt])  # of each row of the batch
        self.repeats = np.concatenate([np.zeros_like(own), rows.repeat])
        self.origin = np.concatenate([np.arange(len(own)), np.searchsorted(own, rows.prompt)])
        self.local = np.searchsorted(base.members, self.prompts)
        self.changed = np.zeros(len(cells), bool)
        self.watch: Watch | None = None
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
                given, count = edit.given, len(edit.units or ())
                own = (
                    (edit.place, edit.units)
                    if isinstance(given.value, FromReference | Resample)
                    else count
                )
                key = (edit.nth, given.value, own, given.dictionary)
                entry = found.setdefault(edit.site, {}).setdefault(key, [])
                entry.append((edit, self.bases + rows[of], at))
        return {
            site: [
                _Batch(
                    entries[0][0],
                    np.concatenate([rows for _, rows, _ in entries]),
                    np.concatenate([at for *_, at in entries]),
                    None if entries[0][0].units is None else np.concatenate(
                        [np.tile(np.array(edit.units), (len(at), 1)) for edit, _, at in entries]
                    ),
                )
                for _, entries in sorted(by_key.items(), key=lambda item: item[0][0])
            ]
            for site, by_key in found.items()
        }  # fmt: skip

    def _count(self, place: int) -> int:
        """Number of rows that have joined at a place."""
        return self.bases + int(np.searchsorted(self.rows.joins, place, side="right"))

    def logits(self, ids: Tensor | None) -> Tensor:
        """Logits at the last token, base rows first: all, or those of ids, `(rows, ids)`."""
        model, sites, batches = self.lm.model, self.lm.spec.sites, self.batches
        layers, first = sites.layers, self.base.first
        untyped: Any = model
        head = untyped.get_output_embeddings()
        skip = _skip_in_tuple if model.config.model_type in _TUPLES else _skip
        blocks = [sites.taps[f"blocks.{i}.resid"].module for i in range(first)]
        forwards: dict[nn.Module, Any] = {model.get_submodule(path): skip for path in blocks}
        self.embedded = self._embedded() if "embed" in batches else None
        self.given = torch.empty(0)
        with ExitStack() as stack:
            stack.enter_context(_forwards(forwards | {head: partial(_unembed, head, ids)}))

            def act(tap: Tap, function: Callable[[Tensor], Tensor]) -> None:
                stack.enter_context(hook(model, tap, function))

            for block in range(first, layers + 1):
                act(given_to(self.lm, block), partial(self._enter, block, block == first))
            for block in range(first, layers):
                site = f"blocks.{block}."
                counts = [self._count(3 * block + part) for part in range(3)]
                last = -1 if block == layers - 1 else 0  # the last token's alone in the last block
                z = sites.taps[site + "attn.z"]
                attention = replace(z, module=z.module.rpartition(".")[0])
                act(attention, partial(_shrink, counts[0], 0))
                act(z, partial(self._grow, counts[2], last))
                act(sites.taps[site + "mlp.in"], partial(_shrink, counts[1], last))
                act(sites.taps[site + "mlp.post"], partial(self._grow, counts[2], 0))
            entered = {self._stream(block) for block in range(layers + 1)}
            # The stream first: an MLP that is given the stream itself may be given something else.
            for site in sorted(batches.keys() - entered - {"embed"}, key=_after_the_stream):
                act(sites.tap(site), partial(self._edit, site))
            cache = None
            if self.start:
                cache = _Prefix(self.base, self.start, torch.as_tensor(self.local))
            # One row, so that masks and embeddings of positions fit batches of any size.
            row = self.base.ids[:1, self.start :]
            output = model(
                row, past_key_values=cache, use_cache=cache is not None, logits_to_keep=1
            )
            logits: Tensor = output.logits[:, -1]
            return logits

    def _enter(self, block: int, first: bool, whole: Tensor) -> Tensor:
        """Supply the rows of a block, or of the final norm, and edit them."""
        site, count = self._stream(block), self._count(3 * block + 2)
        if first:
            states = self.base.states[self.local[:count], self.start :]
            if self.embedded is not None:
                states[: len(self.embedded)] = self.embedded[:, self.start :]
        else:
            states = self._grow(count, 0, whole)
        for batch in self.batches.get(site, ()):
            self._apply(batch, states)
        self.given = states
        return states

    def _stream(self, block: int) -> str:
        """Name of the residual stream before a block, or before the final norm."""
        layers = self.lm.spec.sites.layers
        return f"hidden.{block}" if block < layers else f"blocks.{layers - 1}.resid"

    def _grow(self, count: int, last: int, whole: Tensor) -> Tensor:
        """Append rows that begin here, and keep the tokens from `last` on."""
        new = self.origin[len(whole) : count]
        return (torch.cat((whole, whole[new])) if len(new) else whole)[:, last:]

    def _embedded(self) -> Tensor:
        """Inputs of the first block in rows whose token embeddings are edited."""
        model, taps = self.lm.model, self.lm.spec.sites.taps
        ids = self.base.ids[self.local[: self._count(0)]]
        edits = hook(model, taps["embed"], partial(self._edit, "embed"))
        with edits, reading(model, {"hidden.0": taps["hidden.0"]}) as found:
            model(ids, use_cache=False)
        return found["hidden.0"]

    def _edit(self, site: str, whole: Tensor) -> Tensor:
        tap = self.lm.spec.sites.tap(site)
        edited = whole if tap.in_place else tap.take(whole).clone()
        for batch in self.batches[site]:
            self._apply(batch, edited)
        return whole if tap.in_place else tap.put(whole, edited)

    def _apply(self, batch: _Batch, states: Tensor) -> None:
        """Change the vectors of a batch in place."""
        given = batch.edit.given
        value, dictionary = given.value, given.dictionary
        place = (
            batch.rows,
            batch.at - self.base.ids.shape[1],
        )  # from the end, also of a few last tokens

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
            self.watch(batch.edit.site, cells, prompts, (new - old)[torch.as_tensor(last)])


def _shrink(count: int, last: int, whole: Tensor) -> Tensor:
    """Leave out the rows that begin later, and the tokens before `last`."""
    return whole[:count, last:]


@contextmanager
def _forwards(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Let modules compute something else."""
    before = {module: module.__dict__.get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module, earlier in before.items():
            if earlier is None:
                del module.forward
            else:
                module.forward = earlier


def _after_the_stream(site: str) -> tuple[bool, str]:
    return not site.endswith("resid_mid"), site


def _skip(states: Tensor, *_: Any, **__: Any) -> Tensor:
    return states


def _skip_in_tuple(states: Tensor, *_: Any, **__: Any) -> tuple[Tensor]:
    return (states,)


def _unembed(head: nn.Linear, ids: Tensor | None, states: Tensor) -> Tensor:
    """Logits of all tokens, or of those of each row, `(rows, 1, …)`."""
    if ids is None:
        return nn.functional.linear(states.contiguous(), head.weight, head.bias)
    logits = states @ head.weight[ids].mT
    return logits if head.bias is None else logits + head.bias[ids][:, None]
