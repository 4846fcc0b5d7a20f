"""Cells of whole maps: a component at every layer, and at positions or heads."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from palinka.errors import InputError, counted, did_you_mean
from palinka.interventions.plan import Intervention, Position, Value
from palinka.interventions.study import Study

# Site in a layer by component, with {} for the layer.
IN_STREAM = {
    "resid": "hidden.{}",
    "resid_mid": "blocks.{}.resid_mid",
    "attn.out": "blocks.{}.attn.write",
    "mlp.out": "blocks.{}.mlp.write",
}
OF_HEADS = {
    "heads": "blocks.{}.attn.z",
    "heads_by_position": "blocks.{}.attn.z",
    "q": "blocks.{}.attn.q",
    "k": "blocks.{}.attn.k",
    "v": "blocks.{}.attn.v",
    "pattern": "blocks.{}.attn.pattern",
}
OF_SITE = ("neurons", "latents")


class Cells(NamedTuple):
    """Cells of one component in the order of its axes, with the labels of each by its name."""

    axes: dict[str, list[Any]]
    cells: list[list[Intervention]]


def cells_of(
    study: Study,
    component: str,
    value: Value,
    positions: Position | Sequence[Position] | None = "roles",
    window: int = 1,
    units: Sequence[int] = (),
) -> Cells:
    """Make the cells of one component.

    Args:
        study: The model, the prompts, and the site of `neurons` and `latents`.
        component: A part of the residual stream, by layer and position; `heads`, `q`, `k`, `v` or
            `pattern` at all positions, by layer and head; `heads_by_position`; `neurons` or
            `latents`.
        value: What the vectors become.
        positions: Roles and indices of tokens; `roles` for all roles, `all` for every token; None
            for all tokens together.
        window: Number of neighboring layers in one cell, around its own.
        units: The units of `neurons` or `latents`, a cell each, at all positions.
    """
    if window < 1:
        raise InputError(f"window: {window} layers in a cell; give 1 or more")
    if component in OF_SITE:
        return _of_site(study, component, value, units)
    if component not in (known := IN_STREAM | OF_HEADS):
        hint = did_you_mean(component, [*known, *OF_SITE])
        raise InputError(f"{component!r} is not a component{hint}")
    layers, heads = study.model.spec.sites.layers, study.model.heads
    axes: dict[str, list[Any]] = {"layer": list(range(layers))}
    if positions is not None and (component in IN_STREAM or component == "heads_by_position"):
        axes["position"] = _positions(study, positions)
    if component in OF_HEADS:
        count = heads.shared if component in ("k", "v") else heads.count
        axes["key-value head" if component in ("k", "v") else "head"] = list(range(count))
    cells = []
    for layer, *rest in product(*axes.values()):
        first = max(0, layer - window // 2)
        together = range(first, min(layers, layer - window // 2 + window))
        head = f".{rest.pop()}" if component in OF_HEADS else ""
        at = rest[0] if rest else "all"
        cells.append([Intervention(known[component].format(i) + head, value, at) for i in together])
    return Cells(axes, cells)


def _of_site(study: Study, component: str, value: Value, units: Sequence[int]) -> Cells:
    if len(study.sites) != 1 or not len(units):
        given = f"{counted(len(study.sites), 'sites')} and {counted(len(units), 'units')}"
        given += f" are given for {component}"
        raise InputError(f"{given}; give one site, and units or a selection")
    (site,) = study.sites
    dictionary = study.of_latents(site) if component == "latents" else None
    study.check_units(site, units, dictionary is not None)
    chosen = [Intervention(site, value, "all", (int(unit),), dictionary) for unit in units]
    return Cells({"site": [site], component.removesuffix("s"): list(units)}, [[c] for c in chosen])


def _positions(study: Study, positions: Position | Sequence[Position]) -> list[Position]:
    if positions == "all":
        pairs = study.prompts
        lengths: Mapping[int, None] = dict.fromkeys(map(len, pairs.clean))
        if len(lengths) > 1:
            given = " and ".join(map(str, sorted(lengths)))
            roles = ", ".join(pairs.roles)
            raise InputError(
                f"positions: all, but templates have {given} tokens; give roles: {roles}"
            )
        return list(range(len(pairs.clean[0])))
    every = [*study.prompts.roles] if positions == "roles" else positions
    return [every] if isinstance(every, (str, int)) else list(every)
