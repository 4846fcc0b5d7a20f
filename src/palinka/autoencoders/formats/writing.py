"""Configurations and weights for others, each file there whole or not at all."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, contiguous_format

from palinka.errors import InputError


def write_config(path: Path, config: Mapping[str, Any]) -> None:
    """Write a JSON file.

    Raises:
        InputError: If it cannot be written.
    """
    write_text(path, json.dumps(config, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8.

    Raises:
        InputError: If it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise _refusal(path, partial, error) from error


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file; what shares memory is written twice.

    Raises:
        InputError: If it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    separate = {
        name: tensor.detach().cpu().clone(memory_format=contiguous_format)
        for name, tensor in tensors.items()
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(separate, partial, metadata={"format": "pt"})
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        raise _refusal(path, partial, error) from error


def _refusal(path: Path, partial: Path, error: Exception) -> InputError:
    with suppress(OSError):
        partial.unlink()
    return InputError(f"cannot save into {path.parent}: {error}; choose a writable folder")
