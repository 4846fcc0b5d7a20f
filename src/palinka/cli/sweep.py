"""Variants of a sweep."""

import inspect
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from palinka.errors import InputError
from palinka.training import SparseAutoencoderModule

Variants = list[dict[str, Any]] | dict[str, list[Any]]

# More are probably a grid with one dimension too many.
MAX_VARIANTS = 64
_SHARED = frozenset({"optimizer", "lr_scheduler"})
_OF_MODULE = frozenset(inspect.signature(SparseAutoencoderModule.__init__).parameters) - {"self"}
_UNUSUAL = re.compile(r"[^\w.,=+-]+", re.ASCII)
MAX_NAME = 120


def expand(variants: Variants) -> dict[str, dict[str, Any]]:
    """Expand variants to overrides by name, such as `k=32,seed=1`.

    Args:
        variants: A list of overrides, or a grid of values. A name is an argument of the
            autoencoder, `autoencoder` for its class, `seed` for that of its weights, or a weight
            or number of steps of the module.
    """
    listed = _combinations(variants) if isinstance(variants, dict) else variants
    if not 0 < len(listed) <= MAX_VARIANTS:
        raise InputError(
            f"model.variants gives {len(listed)} variants; expected 1 to {MAX_VARIANTS}"
        )
    named: dict[str, dict[str, Any]] = {}
    for overrides in listed:
        for name in overrides:
            if name in _SHARED:
                raise InputError(
                    f"model.variants: the {name} is shared by all variants; give it as model.{name}"
                )
            if not re.fullmatch(r"[A-Za-z_][\w.]*", str(name)):
                raise InputError(f"model.variants: {name!r} is not an argument of an autoencoder")
        if overrides in named.values():
            raise InputError(f"model.variants gives {_name(overrides)} twice; leave one out")
        name = _name(overrides)
        if name in named:
            name = f"{name},{len(named)}"
        named[name] = dict(overrides)
    return named


def options(overrides: Mapping[str, Any]) -> list[str]:
    """Options of a command line of one variant.

    Args:
        overrides: The variant's overrides by name.
    """
    # The class first: arguments before it would be another's.
    ordered = sorted(overrides.items(), key=lambda override: override[0] != "autoencoder")
    return [f"--{_key(name)}={_value(value)}" for name, value in ordered]


def _combinations(grid: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def _name(overrides: Mapping[str, Any]) -> str:
    """Name of a variant and of its folder."""
    parts = [f"{name}={_value(value)}" for name, value in overrides.items()]
    return _UNUSUAL.sub("_", ",".join(parts) or "base")[:MAX_NAME]


def _key(name: str) -> str:
    if name == "seed":
        return "seed_everything"
    return f"model.{name}" if name in _OF_MODULE else f"model.autoencoder.{name}"


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
