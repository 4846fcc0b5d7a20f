"""An autoencoder as a folder: `config.json` beside `model.safetensors`."""

import json
from collections.abc import Mapping
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import save_file

from palinka.autoencoders.reading import read_config, read_safetensors
from palinka.autoencoders.registry import build
from palinka.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from palinka.autoencoders.base import Autoencoder

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
SOURCE = "source"


def save(
    autoencoder: "Autoencoder",
    folder: str | PathLike[str],
    source: Mapping[str, Any] | None = None,
) -> None:
    """Write an autoencoder into a folder, weights first; each file appears whole or not at all.

    Args:
        autoencoder: What is written.
        folder: Where to; made where it is missing.
        source: Where it comes from, as JSON holds it; kept beside its settings.

    Raises:
        InputError: If the folder cannot be written.
    """
    folder = Path(folder)
    config = {"class": type(autoencoder).__name__, **autoencoder.config()}
    if source is not None:
        config[SOURCE] = dict(source)
    weights = {name: tensor.contiguous() for name, tensor in autoencoder.state_dict().items()}
    partial = {name: folder / f".{name}.partial" for name in (WEIGHTS, CONFIG)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(weights, partial[WEIGHTS], metadata={"format": "pt"})
        partial[CONFIG].write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for name, path in partial.items():
            path.replace(folder / name)
    except (OSError, SafetensorError) as error:
        for path in partial.values():
            with suppress(OSError):
                path.unlink()
        raise InputError(f"cannot save into {folder}: {error}; choose a writable folder") from error


def load(folder: str | PathLike[str], base: "type[Autoencoder]") -> "Autoencoder":
    """Read the autoencoder that `save` wrote, which must be a `base`.

    Raises:
        InputError: If the folder or a file is missing, or the two files do not fit together.
    """
    folder = Path(folder)
    config = read_config(folder / CONFIG)
    config.pop(SOURCE, None)
    name = config.pop("class", None)
    if not isinstance(name, str):
        raise InputError(f"{folder / CONFIG} names no class: add one, as 'KSparseAutoencoder'")
    weights = read_safetensors(folder / WEIGHTS)
    try:
        autoencoder = build(name, config, base)
    except InputError as error:
        raise InputError(f"{folder / CONFIG}: {error}") from error
    check_weights(autoencoder.state_dict(), weights, f"{folder / WEIGHTS}")
    autoencoder.load_state_dict(weights)
    return autoencoder


def check_weights(expected: "dict[str, Tensor]", found: "dict[str, Tensor]", where: str) -> None:
    """Raise an `InputError` unless two state dicts have the same names and shapes."""
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            raise InputError(f"{where} lacks the weight {name!r}: was it saved by another class?")
        if name not in expected:
            raise InputError(f"{where} has a weight {name!r} too many: is it of other settings?")
        if not hasattr(found[name], "shape"):
            raise InputError(f"{where} holds no tensor under {name!r}: save it anew")
        if found[name].shape != expected[name].shape:
            raise InputError(
                f"{where} holds {name!r} of shape {tuple(found[name].shape)}, but the settings"
                f" ask for {tuple(expected[name].shape)}: use the dimensions it was trained with"
            )
