"""Effects of what a component writes on a receiver alone, and through it on the outcome."""

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import product
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from palinka.errors import InputError, checks_strings
from palinka.interventions.engine import Outcomes, run
from palinka.interventions.pairs import BASES, Base, Direction, Pairs
from palinka.interventions.plan import Cell, Intervention, Patch
from palinka.interventions.sources import same_length
from palinka.interventions.study import Measured, Study
from palinka.language_models import LanguageModel

BATCH = 16  # prompts, and senders, of a pass
LOGITS, EMBEDDINGS = "logits", "hidden.0"
Through = Literal["stream", "mlps"]
_RECEIVER = re.compile(r"(blocks\.(\d+)\.(attn\.[qkv]|mlp\.in))(\.\d+)?")


@checks_strings
def paths(
    study: Study, *, receivers: Sequence[str] = ("logits",), through: Through = "stream",
    jointly: bool = False, direction: Direction = "denoise",
) -> Iterator[Measured]:  # fmt: skip
    """Patch what each head and MLP writes, and the embeddings, into receivers alone.

    Args:
        study: The model and the prompts.
        receivers: `logits`, or sites of queries, keys, values and MLPs, such as
            `blocks.4.attn.q.2`, `blocks.4.attn.v` of all heads, and `blocks.4.mlp.in`.
        through: What carries the change to the receivers: the residual `stream` alone, or also
            the `mlps` on the way, while all attention between is that of the patched run.
        jointly: Patch all receivers together, rather than one at a time.
        direction: `denoise` patches what is written in the clean into the corrupted run, `noise`
            the reverse.
    """
    lm = study.model
    groups = [[*receivers]] if jointly else [[name] for name in receivers]
    given: Any = {"through": through, "base": BASES[direction], "metrics": study.metrics}
    found = path_outcomes(lm, study.prompts, groups, **given)
    names = [re.sub(r"blocks\.|attn\.", "", " and ".join(group)) for group in groups]
    layers, count = range(lm.spec.sites.layers), lm.heads.count
    axes: dict[str, dict[str, Sequence[Any]]] = {
        "heads": {"receiver": names, "layer": layers, "head": range(count)},
        "mlp.out": {"layer": layers, "receiver": names},
        "embed": {"receiver": names},
    }
    for metric, values in found.values.items():
        embed, by_head, mlps = np.split(values, (1, 1 + len(layers) * count))
        by_head = np.moveaxis(by_head.reshape(len(layers), count, *values.shape[1:]), 2, 0)
        data = {
            "patched": {"heads": by_head, "mlp.out": mlps, "embed": embed[0]},
            "axes": axes,
            "direction": direction,
            **study.data(found, metric),
        }
        yield Measured(study.part(metric), data, {"through": through})


def senders_of(lm: LanguageModel) -> list[str]:
    """Sites of what is written to the stream: embeddings, then all heads, then all MLPs."""
    layers, heads = range(lm.spec.sites.layers), range(lm.heads.count)
    of_heads = [f"blocks.{i}.attn.z.{h}" for i in layers for h in heads]
    return [EMBEDDINGS, *of_heads, *(f"blocks.{i}.mlp.write" for i in layers)]


@torch.no_grad()
def path_outcomes(
    lm: LanguageModel, pairs: Pairs, receivers: Sequence[Sequence[str]], *,
    through: Through = "stream", base: Base = "corrupted",
    metrics: Sequence[str] = ("logit_difference",),
) -> Outcomes:  # fmt: skip
    """Measure outcomes where receivers read what one sender writes in the other run.

    A receiver reads `r' = r + w' - w` in place of the residual stream `r`, where the sender writes
    `w`, and `w'` in the other run; the norm before the receiver is computed from `r'`. All others
    read the unchanged stream, and then what the receiver makes of it. Receivers are groups of
    sites, or `["logits"]`, each patched together. Of the outcomes, `values` are
    `(senders, receivers, prompts)`, senders as in `senders_of`; those of the base run where the
    receiver comes before the sender.

    Source:
        Wang et al. (2022), appendix B, for `through` `mlps`; Goldowsky-Dill et al. (2023).
    """
    senders = senders_of(lm)
    pairs.check_texts()
    if lm.spec.sites.taps["blocks.0.attn.write"] != lm.spec.sites.taps["blocks.0.attn.out"]:
        fault = f"{lm.spec.sites.family} norms the sum of what heads write to the stream"
        raise InputError(f"{fault}; choose a model without such norms")
    readers = [[_reader(lm, name) for name in group] for group in receivers]
    if any(LOGITS in group and len(group) > 1 for group in receivers):
        given = "the logits cannot be patched together with other receivers"
        raise InputError(f"{given}; list them alone")
    (final, _), sites = _reader(lm, LOGITS), {site for group in readers for site, _ in group}
    # Heads and MLPs themselves need no run to be seen by the logits.
    direct = final in sites and through == "stream"
    order = [pairs.corrupted, pairs.clean][:: 1 if base == "corrupted" else -1]
    starts = np.cumsum([0, *map(len, pairs.clean)])
    ends = run(lm, pairs, [], base=base, metrics=metrics)
    shape = len(senders), len(receivers), len(pairs)
    values = {n: np.broadcast_to(getattr(ends, base)[n], shape).copy() for n in metrics}
    for first in range(0, len(senders), BATCH):
        some, states = senders[first : first + BATCH], dict[tuple[str, str], Tensor]()
        for members in same_length(pairs.clean, BATCH):
            ids = [torch.tensor([of[i] for i in members], device=lm.device) for of in order]
            arrived = _arriving(lm, ids, some, sites - {final} if direct else sites, through)
            if direct:
                written = [sender.replace("attn.z", "attn.result") for sender in some]
                here, there = (lm.read(each, [*written, final]) for each in ids)
                arrived[final] = [here[final] + (there[w] - here[w]) for w in written]
            index = starts[members][:, None] + np.arange(ids[0].shape[1])
            for site, sender in product(sites, some):
                rows = arrived[site][some.index(sender)]
                empty = rows.new_zeros(starts[-1], rows.shape[-1])
                states.setdefault((sender, site), empty)[index] = rows
        plan: dict[tuple[int, int], Cell] = {}
        for (row, sender), (r, group) in product(enumerate(some, first), enumerate(readers)):
            cell = [Intervention(n, Patch(sender)) for _, n in group if _reaches(lm, sender, n)]
            if cell:
                plan[row, r] = cell
        if plan:
            cells, at = [*plan.values()], tuple(np.array([*plan]).T)
            found = run(lm, pairs, cells, base=base, metrics=metrics, states=states)
            for name in metrics:
                values[name][at] += found.values[name] - getattr(found, base)[name]
    return Outcomes(ends.clean, ends.corrupted, values, np.ones(shape, bool))


def _reader(lm: LanguageModel, receiver: str) -> tuple[str, str]:
    """The site of all heads that a receiver is a part of, and its full name."""
    if receiver == LOGITS:
        return (f"blocks.{lm.spec.sites.layers - 1}.resid",) * 2
    name = lm.spec.sites.resolve(receiver)
    if (match := _RECEIVER.fullmatch(name)) is None:
        others = "blocks.{i}.attn.q, .k or .v, of one head too, or blocks.{i}.mlp.in"
        raise InputError(f"{receiver} reads nothing from the stream; give logits, {others}")
    return match[1], name


def _reaches(lm: LanguageModel, sender: str, receiver: str) -> bool:
    """Return whether a receiver comes after a sender."""
    mid = "blocks.0.resid_mid" in lm.spec.sites.taps  # the MLP reads what the block's heads write
    (_, i, *_), (_, j, *_) = sender.split("."), receiver.split(".")
    same = mid and "attn.z" in sender and receiver.endswith("mlp.in")
    return sender == EMBEDDINGS or receiver.endswith(".resid") or int(i) < int(j) + same


def _arriving(
    lm: LanguageModel, ids: Sequence[Tensor], senders: Sequence[str], sites: set[str],
    through: Through,
) -> dict[str, Sequence[Tensor]]:  # fmt: skip
    """States of receivers, `(prompts, tokens, width)`, by sender whose write is exchanged."""
    if not sites:
        return {}
    layers, n = range(lm.spec.sites.layers), len(ids[0])
    heads, mlps = ([f"blocks.{i}.{part}" for i in layers] for part in ("attn.z", "mlp.write"))
    own, other = (lm.read(each, [*heads, *mlps]) for each in ids)

    def exchange(site: str, whole: Tensor) -> Tensor:
        frozen = site in heads or through == "stream"
        new = own[site].repeat(len(senders), 1, 1) if frozen else whole.clone()
        for row, sender in enumerate(senders):
            if sender == site or sender.startswith(f"{site}."):
                tap, rows = lm.spec.sites.tap(sender), new[row * n : (row + 1) * n]
                rows.copy_(tap.put(rows, tap.take(other[site])))
        return new

    rows = torch.cat([ids[sender == EMBEDDINGS] for sender in senders])
    with ExitStack() as stack:
        for site in (*heads, *mlps):
            stack.enter_context(lm.replaced(site, partial(exchange, site)))
        found = lm.read(rows, [*sites], len(rows))
    return {site: list(torch.split(found[site], n)) for site in sites}
