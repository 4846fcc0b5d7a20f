"""A sweep's checkpoint, as the checkpoints that its variants would have in runs of their own."""

from collections.abc import Mapping
from typing import Any

from palinka.training.checkpoint import VARIANTS


def variant_prefix(index: int) -> str:
    """What the names of a variant's parameters and buffers begin with."""
    return f"members.{index}."


def of_variant(checkpoint: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What a checkpoint of a sweep holds of one variant, as an ordinary checkpoint.

    Lightning loads it, and a run of this variant alone goes on from it.

    Args:
        checkpoint: The sweep's, or those parts of it that there are.
        name: The variant.
    """
    settings = checkpoint["hyper_parameters"][VARIANTS]
    index = list(settings).index(name)
    prefix = variant_prefix(index)
    kept = {k: v for k, v in checkpoint.items() if k not in (VARIANTS, "hparams_name")}
    own: dict[str, Any] = {
        **kept,
        "hyper_parameters": settings[name],
        **checkpoint.get(VARIANTS, {}).get(name, {}),
    }
    if "state_dict" in checkpoint:
        own["state_dict"] = below(checkpoint["state_dict"], prefix)
    if "optimizer_states" in checkpoint:
        own["optimizer_states"] = [_of_group(s, index) for s in checkpoint["optimizer_states"]]
    if "lr_schedulers" in checkpoint:
        schedules = checkpoint["lr_schedulers"]
        own["lr_schedulers"] = [_of_schedule(state, index, len(settings)) for state in schedules]
    if "run" in checkpoint:
        own["run"] = {
            key: below(value, f"{name}/") if isinstance(value, Mapping) else value
            for key, value in checkpoint["run"].items()
        }
    return own


def below(named: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The entries whose names begin with a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in named.items() if k.startswith(prefix)}


def _of_group(state: Mapping[str, Any], index: int) -> dict[str, Any]:
    """An optimizer's state for the parameters of one group, which it counts from zero."""
    group = state["param_groups"][index]
    values = state["state"]
    return {
        "state": {new: values[old] for new, old in enumerate(group["params"]) if old in values},
        "param_groups": [{**group, "params": list(range(len(group["params"])))}],
    }


def _of_schedule(state: Any, index: int, groups: int) -> Any:
    """A schedule's state, in which lists as long as there are groups have an entry for each."""
    if isinstance(state, Mapping):
        return {
            key: [value[index]]
            if key in ("base_lrs", "_last_lr", "lr_lambdas", "min_lrs") and len(value) == groups
            else _of_schedule(value, index, groups)
            for key, value in state.items()
        }
    if isinstance(state, list):
        return [_of_schedule(value, index, groups) for value in state]
    return state
