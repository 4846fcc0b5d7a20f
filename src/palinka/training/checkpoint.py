"""Checkpoints: reading, checks and durable writes."""

import os
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH

from palinka.autoencoders import Autoencoder
from palinka.autoencoders.base import build, check_weights
from palinka.errors import InputError

# Where the settings in a sweep's checkpoint keep those of each variant, by its name.
VARIANTS = "variants"


def describe(autoencoder: Autoencoder) -> dict[str, Any]:
    """The autoencoder's class and arguments, in the form that the command line takes."""
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
    # mypy would have a concrete class here, but any subclass of the abstract one is meant.
    return build(description["class_path"], description.get("init_args", {}), Autoencoder)  # type: ignore[type-abstract]


def check_fit(autoencoder: Autoencoder, checkpoint: Mapping[str, Any]) -> None:
    """Make sure that a Lightning checkpoint holds this autoencoder's weights.

    Raises:
        InputError: If it is one of another class, width, or other settings that shape weights.
    """
    mine = describe(autoencoder)
    theirs = checkpoint.get("hyper_parameters", {}).get("autoencoder", mine)
    # An autoencoder handed to `load_from_checkpoint` stands here in place of its description.
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


def read(path: str | PathLike[str]) -> dict[str, Any]:
    """A checkpoint of a sparse autoencoder, its tensors not read before they are used.

    Raises:
        InputError: If the file cannot be read, or is no checkpoint of one sparse autoencoder.
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
    """A checkpoint of a sparse autoencoder, or of a sweep of several.

    Raises:
        InputError: If the file cannot be read, or is no checkpoint of either.
    """
    try:
        # Whoever opens a pipe waits for somebody to write into it.
        if not (Path(path).is_file() and is_zipfile(path)):
            raise InputError(f"{path} is no complete checkpoint: give one that palinka fit wrote")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except InputError:
        raise
    except Exception as error:
        raise unreadable(path, error) from error
    settings = checkpoint.get("hyper_parameters") if isinstance(checkpoint, dict) else None
    if not isinstance(settings, dict) or not _is_described(settings):
        raise InputError(
            f"{path} is no checkpoint of a sparse autoencoder: give one that palinka fit wrote"
        )
    return dict(checkpoint)


def unreadable(path: str | PathLike[str], error: Exception) -> InputError:
    """What to say of a checkpoint that others could not load.

    A file that was made to confuse its reader makes torch and Lightning raise anything at all.
    """
    reason = str(error).partition("\n")[0] or type(error).__name__
    return InputError(f"{path} is no complete checkpoint that palinka fit wrote: {reason}")


def _is_described(settings: Mapping[str, Any]) -> bool:
    """Whether settings say of one autoencoder, or of each of several, what it is."""
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
    """The module's arguments as a checkpoint holds them, without its weights.

    The widths are left out: they are the data's.

    Raises:
        InputError: If the file cannot be read, or is no checkpoint of a sparse autoencoder.
    """
    settings = read(path)["hyper_parameters"]
    described = dict(settings["autoencoder"])
    of_data = ("input_dim", "output_dim")
    arguments = {k: v for k, v in described.get("init_args", {}).items() if k not in of_data}
    return {**settings, "autoencoder": {**described, "init_args": arguments}}


def source_of(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The origin of a checkpoint's activations, such as `language_model`, `site` and `bos`.

    Fits wrote `bos` among the settings of the data alone before it was part of the origin.
    """
    data = checkpoint.get("datamodule_hyper_parameters", {})
    return {
        **{name: data[name] for name in ("bos",) if name in data},
        **checkpoint.get("source", {}),
    }


def check_source(source: Mapping[str, Any] | None, checkpoint: Mapping[str, Any]) -> None:
    """Make sure that the activations come from where the checkpoint's came from.

    Args:
        source: What the data says of itself, such as its language model and site.
        checkpoint: A Lightning checkpoint.

    Raises:
        InputError: If both say something of the same thing, and not the same.
    """
    trained_on = source_of(checkpoint)
    for key, mine in (source or {}).items():
        if trained_on.get(key, mine) != mine:
            name = key.replace("_", " ")
            raise InputError(
                f"the checkpoint was trained with {name} {trained_on[key]}, but this run's data has"
                f" {name} {mine}: use the data settings it was trained with"
            )


def check_cache(identity: str | None, checkpoint: Mapping[str, Any]) -> None:
    """Make sure that training resumes on the data that the checkpoint was trained on.

    Raises:
        InputError: If both identities are known and differ.
    """
    trained_on = checkpoint.get("cache_identity")
    if trained_on is not None and identity is not None and trained_on != identity:
        raise InputError(
            f"the checkpoint was trained on the cache {trained_on}, but this run's data is the"
            f" cache {identity}: resume with the checkpoint's data settings, or start without it"
        )


def _summary(description: Mapping[str, Any]) -> str:
    arguments = description.get("init_args", {})
    name = description["class_path"].rpartition(".")[2]
    widths = [f"{arguments.get(f'{of}_dim', '?')} {of}s" for of in ("input", "latent")]
    if arguments.get("output_dim") is not None:
        widths.insert(1, f"{arguments['output_dim']} outputs")
    return f"{name} of {', '.join(widths[:-1])} and {widths[-1]}"


class DurableCheckpointIO(TorchCheckpointIO):
    """Lightning's way of saving, but a checkpoint is there whole or not at all.

    The bytes are on the disk before the file has its name, and no copy is made in memory.
    Checkpoints are loaded without pickled objects.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None
    ) -> None:
        """Write under a temporary name, make it durable, then give it its own.

        Raises:
            OSError: If it cannot be written; an older file of that name stays as it was.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".tmp")
        try:
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def load_checkpoint(
        self,
        path: _PATH,
        map_location: Callable[..., Any] | None = lambda storage, _: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Load tensors and plain values, and nothing else, whatever Lightning's default is.

        Raises:
            InputError: If the file is torn, damaged or no checkpoint.
        """
        try:
            return super().load_checkpoint(path, map_location, weights_only=True)
        except Exception as error:
            raise unreadable(path, error) from error
