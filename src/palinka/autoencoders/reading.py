"""Files of a saved autoencoder, read with bounds and refused in one line."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from palinka.errors import InputError
from palinka.ordinary_file import read_ordinary

# No configuration of one autoencoder comes near it.
_LARGEST_CONFIG = 2**24


def read_config(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        InputError: If there is no such file, or it holds something else.
    """
    if not path.exists():
        raise InputError(f"no file {path}: give a folder that an autoencoder was saved in")
    try:
        config = json.loads(read_ordinary(path, _LARGEST_CONFIG).decode("utf-8"))
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON file that can be read: {error}") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} must hold a JSON object, got {type(config).__name__}")
    return config


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        InputError: If there is no such file, or it is damaged.
    """
    if not path.is_file():
        raise InputError(f"no file {path}: give a folder that an autoencoder was saved in")
    try:
        return load_file(path)
    except (OSError, SafetensorError, MemoryError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} is no complete safetensors file: {error}") from error
