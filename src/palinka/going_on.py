"""What a run that goes on keeps of how it began, and what it is told that it does not take."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from palinka.arguments import config_files
from palinka.errors import InputError

# What a checkpoint does not hold, although its state belongs to them.
_OPTIMIZER = ("optimizer", "lr_scheduler")


def recorded_optimizer(run: Path) -> dict[str, Any]:
    """The optimizer and the schedule with which a run began, as its `config.yaml` has them.

    Args:
        run: Its log folder.

    Returns:
        Settings of `model`; none where the run has no such file, or none that can be read.
    """
    model = _mapping(_mapping(_read(run / "config.yaml")).get("model"))
    return {name: model[name] for name in _OPTIMIZER if name in model}


def check_optimizer(model: Mapping[str, Any], recorded: Mapping[str, Any]) -> None:
    """Refuse another optimizer or schedule than that whose state the run goes on with.

    Args:
        model: The settings of `model` as they are now.
        recorded: What `recorded_optimizer` has found.

    Raises:
        InputError: If they differ: the state would win, and the record of the run be false.
    """
    for name, began in recorded.items():
        now, then = _flat({name: model.get(name)}), _flat({name: began})
        for setting in {**then, **now}:
            if now.get(setting) != then.get(setting):
                raise InputError(
                    f"model.{setting} is {now.get(setting)}, and the run began with"
                    f" {then.get(setting)}, which its {name} goes on with; leave it out, or begin a"
                    " run of its own, without --ckpt_path"
                )


def passed_over(
    arguments: Sequence[str], kept: Mapping[str, Any], model: Mapping[str, Any]
) -> Iterator[str]:
    """Say which settings of configuration files those of the checkpoint have taken the place of.

    Args:
        arguments: The command line, its files first.
        kept: The settings of `model` that win over the files.
        model: Those that hold, with what the command line has set.
    """
    asked: dict[str, Any] = {}
    for file in config_files(arguments):
        asked |= _flat(_mapping(_mapping(_read(Path(file))).get("model")))
    stays, holds = _flat(kept), _flat(model)
    for name, value in asked.items():
        if name in stays and stays[name] == holds.get(name) and not _same(stays[name], value):
            yield (
                f"model.{name} stays {stays[name]}, as the run began: the {value} of the"
                " configuration file is passed over"
            )


def _same(kept: Any, given: Any) -> bool:
    """Whether a file means what is kept: `Adam` is a short name of `torch.optim.Adam`."""
    if isinstance(kept, str) and isinstance(given, str):
        return kept.rpartition(".")[2] == given.rpartition(".")[2]
    # 1e-4 without a point is text to YAML.
    return bool(kept == given) or str(kept) == str(given) or _number(given) == kept


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _read(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted names; lists as JSON has them."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = json.loads(json.dumps(value, default=str))
    return found
