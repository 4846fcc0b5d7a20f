"""Variants of a sweep."""

import inspect
import itertools
import json
import re
from collections.abc import Mapping
from typing import Any

from palinka.errors import InputError
from palinka.training import SparseAutoencoderModule

Variants = dict[str, list[Any]] | list[dict[str, Any]]

MAX_VARIANTS = 64  # more are probably a grid with one dimension too many
MAX_NAME = 120
_OF_MODULE = frozenset(inspect.signature(SparseAutoencoderModule.__init__).parameters) - {"self"}


def expand(variants: Variants) -> dict[str, dict[str, Any]]:
    """Expand a list of overrides, or a grid of values, to overrides by name: `k=32,seed=1`.

    They are arguments of the autoencoder, `autoencoder` for its class, `seed` for that of its
    weights, or a weight or number of steps of the module.
    """
    if isinstance(variants, dict):
        grid = itertools.product(*variants.values())
        variants = [dict(zip(variants, values, strict=True)) for values in grid]
    if not 0 < len(variants) <= MAX_VARIANTS:
        count = len(variants)
        raise InputError(f"model.variants gives {count} variants; expected 1 to {MAX_VARIANTS}")
    named: dict[str, dict[str, Any]] = {}
    for overrides in variants:
        for given in overrides:
            if given in ("optimizer", "lr_scheduler"):
                shared = f"the {given} is shared by all variants; give it as model.{given}"
                raise InputError(f"model.variants: {shared}")
        words = ",".join(f"{name}={_value(value)}" for name, value in overrides.items())
        name = re.sub(r"[^\w.,=+-]+", "_", words or "base", flags=re.ASCII)[:MAX_NAME]
        if overrides in named.values():
            raise InputError(f"model.variants gives {name} twice; leave one out")
        named[f"{name},{len(named)}" if name in named else name] = dict(overrides)
    return named


def options(overrides: Mapping[str, Any]) -> list[str]:
    """Command-line options of one variant."""
    # The class first: arguments before it would be those of another class.
    ordered = sorted(overrides.items(), key=lambda override: override[0] != "autoencoder")
    return [f"--{_key(name)}={_value(value)}" for name, value in ordered]


def _key(name: str) -> str:
    if name == "seed":
        return "seed_everything"
    return f"model.{name}" if name in _OF_MODULE else f"model.autoencoder.{name}"


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
