"""Cells of whole maps, a component at every layer, and runs of activation patching."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, product
from typing import Any, NamedTuple

from palinka.errors import InputError, checks_strings, counted, did_you_mean
from palinka.interventions.engine import Outcomes, run
from palinka.interventions.pairs import BASES, Direction
from palinka.interventions.plan import Intervention, Patch, Position, Value
from palinka.interventions.study import Measured, Study

# Site in a layer by component, with {} for the layer.
IN_STREAM = {
    "resid": "hidden.{}", "resid_mid": "blocks.{}.resid_mid", "attn.out": "blocks.{}.attn.write",
    "mlp.out": "blocks.{}.mlp.write",
}  # fmt: skip
OF_HEADS = {"heads": "blocks.{}.attn.z", "heads_by_position": "blocks.{}.attn.z"}
OF_HEADS |= {part: f"blocks.{{}}.attn.{part}" for part in ("q", "k", "v", "pattern")}
OF_SITE = ("neurons", "latents")
COMPONENTS = [*IN_STREAM, *OF_HEADS, *OF_SITE]


class Cells(NamedTuple):
    """Cells of one component in the order of its axes, with the labels of each by its name."""

    axes: dict[str, list[Any]]
    cells: list[list[Intervention]]


Maps = Mapping[str, Cells]  # by component


@checks_strings
def patching(
    study: Study, *, components: Sequence[str] = ("resid", "attn.out", "mlp.out", "heads"),
    positions: str | Sequence[str | int] = "roles", direction: Direction = "denoise",
    window: int = 1, units: Sequence[int] = (), selection: dict[str, str | int] | None = None,
) -> Iterator[Measured]:  # fmt: skip
    """Patch each cell of each component, and measure the outcomes.

    Args:
        study: The model and the prompts.
        components: Names of components, as `cells_of` has them.
        positions: Roles, such as `[subject, end]`; `roles` for all of them, or `all` for every
            position where all prompts are equally long. Not for heads, queries, keys, values,
            neurons and latents, which change at all positions together.
        direction: `denoise` patches activations of the clean into the corrupted run, `noise`
            those of the corrupted into the clean run.
        window: Number of neighboring layers that are patched together.
        units: Units of the components `neurons` and `latents`.
        selection: Or units that an earlier analysis found.
    """
    units = study.selected(selection, components, units)
    maps = {name: cells_of(study, name, Patch(), positions, window, units) for name in components}
    base, metrics = BASES[direction], study.metrics
    found = run(study.model, study.prompts, plan_of(maps), base=base, metrics=metrics)
    for each in measured(study, found, maps):
        yield Measured(each.part, {**each.data, "direction": direction})


def cells_of(
    study: Study, component: str, value: Value,
    positions: Position | Sequence[Position] | None = "roles", window: int = 1,
    units: Sequence[int] = (),
) -> Cells:  # fmt: skip
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
    if component not in COMPONENTS:
        raise InputError(f"{component!r} is not a component{did_you_mean(component, COMPONENTS)}")
    layers, heads = study.model.spec.sites.layers, study.model.heads
    axes: dict[str, list[Any]] = {"layer": list(range(layers))}
    if positions is not None and (component in IN_STREAM or component == "heads_by_position"):
        axes["position"] = _positions(study, positions)
    if component in OF_HEADS:
        shared = component in ("k", "v")
        count = heads.shared if shared else heads.count
        axes["key-value head" if shared else "head"] = list(range(count))
    cells, site = [], (IN_STREAM | OF_HEADS)[component]
    for layer, *rest in product(*axes.values()):
        first = layer - window // 2
        together = range(max(0, first), min(layers, first + window))
        head = f".{rest.pop()}" if component in OF_HEADS else ""
        at = rest[0] if rest else "all"
        cells.append([Intervention(site.format(i) + head, value, at) for i in together])
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
        if len(lengths := sorted(set(map(len, study.prompts.clean)))) > 1:
            given = f"positions: all, but templates have {' and '.join(map(str, lengths))} tokens"
            raise InputError(f"{given}; give roles: {', '.join(study.prompts.roles)}")
        return list(range(lengths[0]))
    every = [*study.prompts.roles] if positions == "roles" else positions
    return [every] if isinstance(every, (str, int)) else list(every)


def plan_of(maps: Maps) -> list[list[Intervention]]:
    """The cells of all maps."""
    return list(chain(*(each.cells for each in maps.values())))


def by_component(values: Any, maps: Maps) -> dict[str, Any]:
    """Values of the cells of all maps, `(cells, …)`, as an array of each map's shape."""
    found, start = {}, 0
    for name, each in maps.items():
        shape = [len(labels) for labels in each.axes.values()]
        found[name] = values[start : start + len(each.cells)].reshape(*shape, *values.shape[1:])
        start += len(each.cells)
    return found


def measured(study: Study, found: Outcomes, maps: Maps) -> Iterator[Measured]:
    """The outcomes of maps, a part for each metric where there are several."""
    for metric in study.metrics:
        data = {
            "patched": by_component(found.values[metric], maps),
            "possible": by_component(found.possible.any(axis=1), maps),
            "axes": {name: each.axes for name, each in maps.items()},
            **study.data(found, metric),
        }
        yield Measured(study.part(metric), data)
