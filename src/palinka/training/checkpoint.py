"""Checkpoints: reading, checks and durable writes."""

from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy

from palinka.autoencoders import Autoencoder
from palinka.autoencoders.base import build, check_weights
from palinka.errors import InputError, atomic_write

# Key of the settings of each variant, by its name, in those of a sweep's checkpoint.
VARIANTS = "variants"


def describe(autoencoder: Autoencoder) -> dict[str, Any]:
    """Class path and arguments of an autoencoder, as the command line takes them."""
    kind = type(autoencoder)
    return {
        "class_path": f"{kind.__module__}.{kind.__qualname__}",
        "init_args": autoencoder.config(),
    }


def restore(description: Mapping[str, Any]) -> Autoencoder:
    """Make the autoencoder that `describe` described, with fresh weights.

    Raises:
        InputError: If the class is unknown or the arguments do not fit it.
    """
    if not isinstance(description.get("class_path"), str):
        raise InputError(
            "an autoencoder is described by class_path and init_args, got the keys"
            f" {', '.join(map(str, description)) or 'none'}"
        )
    # mypy expects a concrete class.
    return build(description["class_path"], description.get("init_args", {}), Autoencoder)  # type: ignore[type-abstract]


def read(path: str | PathLike[str]) -> dict[str, Any]:
    """Read the checkpoint of one sparse autoencoder; its tensors are mapped, not loaded.

    Raises:
        InputError: If the file cannot be read, or holds something else.
    """
    checkpoint = read_any(path)
    names = list(checkpoint["hyper_parameters"].get(VARIANTS, {}))
    if names:
        run = Path(path).parent.parent
        raise InputError(
            f"{path} is of a sweep of {len(names)} autoencoders: give one of its variants, such as"
            f" {run / names[0] / Path(path).parent.name / Path(path).name}"
        )
    return checkpoint


def read_any(path: str | PathLike[str]) -> dict[str, Any]:
    """Read the checkpoint of a sparse autoencoder, or of a sweep.

    Raises:
        InputError: If the file cannot be read, or holds something else.
    """
    # torch reads a pickle from what is not a zip archive.
    if not (Path(path).is_file() and is_zipfile(path)):
        raise InputError(
            f"{path} is not a complete palinka checkpoint: give one that palinka fit wrote"
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise unreadable(path, error) from error
    settings = checkpoint.get("hyper_parameters") if isinstance(checkpoint, dict) else None
    if not isinstance(settings, dict) or not _has_autoencoders(settings):
        raise InputError(
            f"{path} is not a checkpoint of a sparse autoencoder: give one that palinka fit wrote"
        )
    return dict(checkpoint)


def unreadable(path: str | PathLike[str], error: Exception) -> InputError:
    """Error for a checkpoint that torch or Lightning could not load, for whatever reason."""
    reason = str(error).partition("\n")[0] or type(error).__name__
    return InputError(
        f"{path} is not a complete palinka checkpoint ({reason}): give one that palinka fit wrote"
    )


def _has_autoencoders(settings: Mapping[str, Any]) -> bool:
    """True if settings, or those of each variant, describe an autoencoder."""
    variants = settings.get(VARIANTS, {"": settings})
    return (
        isinstance(variants, dict)
        and bool(variants)
        and all(
            isinstance(one, dict)
            and isinstance(one.get("autoencoder"), dict)
            and isinstance(one["autoencoder"].get("class_path"), str)
            and isinstance(one["autoencoder"].get("init_args", {}), dict)
            for one in variants.values()
        )
    )


def settings_of(path: str | PathLike[str]) -> dict[str, Any]:
    """Arguments of a checkpoint's module, without the widths, which are the data's.

    Raises:
        InputError: If the file cannot be read, or is not a checkpoint of a sparse autoencoder.
    """
    settings = read(path)["hyper_parameters"]
    described = dict(settings["autoencoder"])
    of_data = ("input_dim", "output_dim")
    arguments = {k: v for k, v in described.get("init_args", {}).items() if k not in of_data}
    return {**settings, "autoencoder": {**described, "init_args": arguments}}


def source_of(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Origin of a checkpoint's activations, such as `language_model`, `site` and `bos`."""
    return dict(checkpoint.get("source", {}))


def check_matches(
    checkpoint: Mapping[str, Any], autoencoder: Autoencoder, data: Any, resume: bool
) -> None:
    """Check that a checkpoint matches the autoencoder and the data.

    Args:
        checkpoint: A Lightning checkpoint.
        autoencoder: The autoencoder that will take its weights.
        data: The data module; its `source` and `cache_identity` are compared where it has them.
        resume: Whether to train on, which needs the same rows.

    Raises:
        InputError: If they differ.
    """
    _check_autoencoder(autoencoder, checkpoint)
    trained_on = source_of(checkpoint)
    for key, mine in (getattr(data, "source", None) or {}).items():
        if trained_on.get(key, mine) != mine:
            name = key.replace("_", " ")
            raise InputError(
                f"the checkpoint was trained with {name} {trained_on[key]}, but this run's data has"
                f" {name} {mine}: use the data settings it was trained with"
            )
    theirs, ours = checkpoint.get("cache_identity"), getattr(data, "cache_identity", None)
    if resume and None not in (theirs, ours) and theirs != ours:
        raise InputError(
            f"the checkpoint was trained on the cache {theirs}, but this run's data is the"
            f" cache {ours}: resume with the checkpoint's data settings, or start without it"
        )


def _check_autoencoder(autoencoder: Autoencoder, checkpoint: Mapping[str, Any]) -> None:
    mine = describe(autoencoder)
    theirs = checkpoint.get("hyper_parameters", {}).get("autoencoder", mine)
    # `load_from_checkpoint(path, autoencoder=…)` puts an autoencoder in place of its description.
    if isinstance(theirs, Mapping) and _summary(mine) != _summary(theirs):
        raise InputError(
            f"the checkpoint holds a {_summary(theirs)}, but this run asks for a {_summary(mine)}:"
            " use the model and site it was trained for, or start without a checkpoint"
        )
    prefix = "autoencoder."
    weights = {
        name.removeprefix(prefix): tensor
        for name, tensor in checkpoint.get("state_dict", {}).items()
        if name.startswith(prefix)
    }
    check_weights(autoencoder.state_dict(), weights, "the checkpoint")


def _summary(description: Mapping[str, Any]) -> str:
    arguments = description.get("init_args", {})
    name = description["class_path"].rpartition(".")[2]
    widths = [f"{arguments.get(f'{of}_dim', '?')} {of}s" for of in ("input", "latent")]
    if arguments.get("output_dim") is not None:
        widths.insert(1, f"{arguments['output_dim']} outputs")
    return f"{name} of {', '.join(widths[:-1])} and {widths[-1]}"


def check_strategy(strategy: Strategy, devices: int) -> None:
    """Reject a strategy that cannot work, before any process is started.

    Args:
        strategy: A trainer's.
        devices: The devices of all nodes.

    Raises:
        InputError: If the sizes of its mesh are not those of the devices, it saves checkpoints
            in parts, or its processes are copies of this one.
    """
    # Private to Lightning, as are the mesh's sizes below.
    if getattr(strategy, "_start_method", "popen") != "popen":
        raise InputError(
            "the strategies ddp_spawn, ddp_fork and ddp_notebook copy this process, and what the"
            " copies find is lost: use trainer.strategy ddp"
        )
    if not isinstance(strategy, ModelParallelStrategy):
        return
    rows, latents = strategy._data_parallel_size, strategy._tensor_parallel_size
    if isinstance(rows, int) and isinstance(latents, int) and rows * latents != devices:
        raise InputError(
            f"data_parallel_size {rows} times tensor_parallel_size {latents} must be the number of"
            f" devices, which is {devices}: change one of them, or trainer.devices"
        )
    if strategy._save_distributed_checkpoint:
        raise InputError(
            "a checkpoint is a single file, which every command reads on any number of devices:"
            " set save_distributed_checkpoint to false in trainer.strategy"
        )


class DurableCheckpointIO(TorchCheckpointIO):
    """Checkpoint files, written atomically and durably, and loaded without pickles.

    The file is written directly: unlike Lightning's, without a copy in memory.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None
    ) -> None:
        """Write durably under a temporary name, then rename.

        Raises:
            OSError: If it cannot be written; an older file of that name stays as it was.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(Path(path)) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(
        self,
        path: _PATH,
        map_location: Callable[..., Any] | None = lambda storage, _: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Load tensors and plain values only, whatever Lightning's default is.

        Raises:
            InputError: If the file is torn, damaged or not a checkpoint.
        """
        try:
            return super().load_checkpoint(path, map_location, weights_only=True)
        except Exception as error:
            raise unreadable(path, error) from error
