"""Checkpoints: reading, checks and durable writes."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy

from palinka.autoencoders import Autoencoder
from palinka.autoencoders.base import check_weights
from palinka.errors import InputError, atomic_write, first_line

# Key of each variant's settings, by name, in the settings of a sweep's checkpoint.
VARIANTS = "variants"
MODULE = "autoencoder."


def describe(autoencoder: Autoencoder) -> dict[str, Any]:
    """Class path and arguments of an autoencoder, as the command line takes them."""
    kind = type(autoencoder)
    path = f"{kind.__module__}.{kind.__qualname__}"
    return {"class_path": path, "init_args": autoencoder.config()}


@contextmanager
def readable(path: str | PathLike[str]) -> Iterator[None]:
    """Raise an InputError for any exception of torch or Lightning on reading a checkpoint."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        text = f"{path} is not a complete palinka checkpoint ({first_line(error)})"
        raise InputError(f"{text}: give one of palinka fit") from error


def read(path: str | PathLike[str], allow_sweep: bool = False) -> dict[str, Any]:
    """Read the checkpoint of an autoencoder or a sweep, its tensors mapped, not loaded."""
    with readable(path):
        if not is_zipfile(path):  # torch would read a pickle
            raise ValueError("missing, or not a zip archive")
        checkpoint = dict(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
        settings = checkpoint["hyper_parameters"]
        variants = settings.get(VARIANTS, {})
        for one in (variants or {"": settings}).values():
            one["autoencoder"]["class_path"].rpartition(".")
        if variants and not allow_sweep:
            run = Path(path).parent
            of_first = run.parent / next(iter(variants)) / run.name / Path(path).name
            raise InputError(f"{path} is of a sweep: give one of its variants, such as {of_first}")
    return checkpoint


def settings_of(path: str | PathLike[str]) -> dict[str, Any]:
    """Arguments of a checkpoint's module, without the widths, which the data determines."""
    settings = read(path)["hyper_parameters"]
    described, of_data = settings["autoencoder"], ("input_dim", "output_dim")
    arguments = {k: v for k, v in described.get("init_args", {}).items() if k not in of_data}
    return {**settings, "autoencoder": {**described, "init_args": arguments}}


def sha256(path: Path) -> str:
    """Checksum of a checkpoint's file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_matches(
    checkpoint: Mapping[str, Any], autoencoder: Autoencoder, data: Any, resume: bool
) -> None:
    """Check that a checkpoint matches an autoencoder, and the data module that it will see.

    The data's `source` is compared where it has one, and its `cache_identity` for `resume`:
    training on needs the same rows.
    """
    mine = describe(autoencoder)
    theirs = checkpoint.get("hyper_parameters", {}).get("autoencoder", mine)
    # `load_from_checkpoint(path, autoencoder=…)` puts an autoencoder in place of its description.
    if isinstance(theirs, Mapping) and _summary(mine) != _summary(theirs):
        fault = f"the checkpoint holds a {_summary(theirs)}, but this run has a {_summary(mine)}"
        raise InputError(f"{fault}: use its model and site, or start without a checkpoint")
    state = checkpoint.get("state_dict", {}).items()
    weights = {k.removeprefix(MODULE): tensor for k, tensor in state if k.startswith(MODULE)}
    check_weights(autoencoder.state_dict(), weights, "the checkpoint")
    trained_on = checkpoint.get("source", {})
    for key, ours in (getattr(data, "source", None) or {}).items():
        if trained_on.get(key, ours) != ours:
            fault = f"the checkpoint was trained with {key} {trained_on[key]}, the data has {ours}"
            raise InputError(f"{fault}: use the data settings it was trained with")
    cached, ours = checkpoint.get("cache_identity"), getattr(data, "cache_identity", None)
    if resume and cached and ours and cached != ours:
        there, here = cached[:16], ours[:16]
        fault = f"the checkpoint was trained on the cache {there}, but this run's is {here}"
        then, now = checkpoint.get("datamodule_hyper_parameters", {}), getattr(data, "hparams", {})
        changed = [f"data.{n} was {then[n]}" for n in then if n in now and then[n] != now[n]]
        remedy = f"resume with its data settings ({', '.join(changed) or 'other text or model'})"
        raise InputError(f"{fault}: {remedy}, or start without it")


def _summary(description: Mapping[str, Any]) -> str:
    arguments = description.get("init_args", {})
    widths = [f"{name} {arguments[name]}" for name in sorted(arguments) if name.endswith("_dim")]
    return f"{description['class_path'].rpartition('.')[2]} of {', '.join(widths)}"


def check_strategy(strategy: Strategy, devices: int) -> None:
    """Reject a strategy that cannot work on all nodes' devices; most of this is private to it."""
    if getattr(strategy, "_start_method", "popen") != "popen":
        raise InputError("ddp_spawn, ddp_fork and ddp_notebook lose results: use strategy ddp")
    if not isinstance(strategy, ModelParallelStrategy):
        return
    rows, latents = strategy._data_parallel_size, strategy._tensor_parallel_size
    if isinstance(rows, int) and isinstance(latents, int) and rows * latents != devices:
        sizes = f"data_parallel_size {rows} times tensor_parallel_size {latents}"
        raise InputError(f"{sizes} must be the number of devices, which is {devices}: change one")
    if strategy._save_distributed_checkpoint:
        hint = "set trainer.strategy.save_distributed_checkpoint to false"
        raise InputError(f"a checkpoint is a single file: {hint}")


class DurableCheckpointIO(TorchCheckpointIO):
    """Checkpoint files, written durably without a copy in memory, and read without pickles."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None
    ) -> None:
        """Write durably under a temporary name, then rename; an error leaves the older file."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(Path(path)) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: _PATH, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load tensors and plain values only, whatever Lightning's default is."""
        with readable(path):
            return super().load_checkpoint(path, *args, **{**kwargs, "weights_only": True})
