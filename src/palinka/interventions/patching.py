"""Runs of activation patching."""

from collections.abc import Iterator, Sequence
from typing import Any

from palinka.interventions.cells import Cells, cells_of
from palinka.interventions.engine import Outcomes, run
from palinka.interventions.pairs import BASES, Direction
from palinka.interventions.plan import Patch
from palinka.interventions.study import Measured, Study


def patching(
    study: Study,
    *,
    components: Sequence[str] = ("resid", "attn.out", "mlp.out", "heads"),
    positions: str | Sequence[str | int] = "roles",
    direction: Direction = "denoise",
    window: int = 1,
    units: Sequence[int] = (),
    selection: dict[str, str | int] | None = None,
) -> Iterator[Measured]:
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
    plan = [cell for each in maps.values() for cell in each.cells]
    base, metrics = BASES[direction], study.metrics
    found = run(study.model, study.prompts, plan, base=base, metrics=metrics)
    for each in measured(study, found, maps):
        yield Measured(each.part, {**each.data, "direction": direction})


def by_component(values: Any, maps: dict[str, Cells]) -> dict[str, Any]:
    """Values of the cells of all maps, `(cells, …)`, as an array of each map's shape."""
    found, start = {}, 0
    for name, each in maps.items():
        shape = [len(labels) for labels in each.axes.values()]
        found[name] = values[start : start + len(each.cells)].reshape(*shape, *values.shape[1:])
        start += len(each.cells)
    return found


def measured(study: Study, found: Outcomes, maps: dict[str, Cells]) -> Iterator[Measured]:
    """The outcomes of maps, a part for each metric where there are several."""
    for metric in study.metrics:
        data = {
            "patched": by_component(found.values[metric], maps),
            "possible": by_component(found.possible.any(axis=1), maps),
            "axes": {name: each.axes for name, each in maps.items()},
            **study.data(found, metric),
        }
        yield Measured(study.part(metric), data)
