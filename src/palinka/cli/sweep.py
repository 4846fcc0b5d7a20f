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

# Whoever trains more at once has probably multiplied more than was meant.
MOST = 64
_SHARED = frozenset({"optimizer", "lr_scheduler"})
_OF_MODULE = frozenset(inspect.signature(SparseAutoencoderModule.__init__).parameters) - {"self"}
_UNUSUAL = re.compile(r"[^\w.,=+-]+", re.ASCII)
_LONGEST = 120


def expand(variants: Variants) -> dict[str, dict[str, Any]]:
    """The overrides of each variant by its name, such as `k=32,seed=1`.

    Args:
        variants: Overrides one by one, or values of which all combinations are meant. A name is
            an argument of the autoencoder, `autoencoder` for its class, `seed` for what its
            weights are drawn from, or a weight or number of steps of the module.

    Raises:
        InputError: If there are none, too many or equal ones, or one overrides what all share.
    """
    listed = _combinations(variants) if isinstance(variants, dict) else variants
    if not 0 < len(listed) <= MOST:
        raise InputError(f"model.variants gives {len(listed)} variants; expected 1 to {MOST}")
    named: dict[str, dict[str, Any]] = {}
    for overrides in listed:
        for name in overrides:
            if name in _SHARED:
                raise InputError(
                    f"model.variants: the {name} is shared by all variants; give it as model.{name}"
                )
            if not re.fullmatch(r"[A-Za-z_][\w.]*", str(name)):
                raise InputError(f"model.variants: {name!r} is no argument of an autoencoder")
        if overrides in named.values():
            raise InputError(f"model.variants gives {_name(overrides)} twice; leave one out")
        name = _name(overrides)
        if name in named:
            name = f"{name},{len(named)}"
        named[name] = dict(overrides)
    return named


def options(overrides: Mapping[str, Any]) -> list[str]:
    """What a command line of this variant alone would end with.

    Args:
        overrides: One variant's, by name.
    """
    # A class first: what is given before it are arguments of another.
    ordered = sorted(overrides.items(), key=lambda override: override[0] != "autoencoder")
    return [f"--{_key(name)}={_value(value)}" for name, value in ordered]


def _combinations(grid: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def _name(overrides: Mapping[str, Any]) -> str:
    """A name that is one for a folder, too."""
    parts = [f"{name}={_value(value)}" for name, value in overrides.items()]
    return _UNUSUAL.sub("_", ",".join(parts) or "base")[:_LONGEST]


def _key(name: str) -> str:
    if name == "seed":
        return "seed_everything"
    return f"model.{name}" if name in _OF_MODULE else f"model.autoencoder.{name}"


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
