"""Settings and weights of others, taken out one by one and refused in one line."""

import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar
from zipfile import is_zipfile

import torch
from torch import Tensor

from palinka.errors import InputError
from palinka.ordinary_file import open_ordinary

_SHOWN = {bool: "true or false", int: "a whole number", str: "text", dict: "an object"}

T = TypeVar("T")


def read_state_dict(path: Path) -> dict[str, Any]:
    """What torch has saved in a `.pt` file: tensors and plain values, never other objects.

    Raises:
        InputError: If it cannot be read so, or is no dictionary.
    """
    with open_ordinary(path) as file:
        if not is_zipfile(file):
            raise InputError(
                f"{path} is no complete file of torch.save in its format of today: save it again"
            )
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path} holds more than tensors, or is torn: {reason}") from error
    except Exception as error:  # a hostile pickle leads the unpickler anywhere
        raise InputError(f"{path} is damaged: {type(error).__name__}") from error
    if not isinstance(stored, dict) or not all(isinstance(name, str) for name in stored):
        raise InputError(f"{path} holds no named tensors: give an autoencoder's state dict")
    return stored


class Weights:
    """Named tensors of a file, taken out one by one with the shape that they must have.

    Args:
        found: What was in the file.
        path: The file, for messages.
    """

    def __init__(self, found: Mapping[str, Any], path: Path) -> None:
        self.found = found
        self.path = path
        self._taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self.found

    def matrix(self, name: str) -> Tensor:
        """A matrix of any size.

        Raises:
            InputError: If it is not there, or is none.
        """
        tensor = self._numbers(name)
        if tensor.ndim != 2 or 0 in tensor.shape:
            raise InputError(
                f"{self.path} holds {name!r} of shape {tuple(tensor.shape)}; expected a matrix"
            )
        return tensor

    def take(self, name: str, *shape: int) -> Tensor:
        """A tensor of a certain shape.

        Raises:
            InputError: If it is not there, or has another.
        """
        tensor = self._numbers(name)
        if tensor.shape != shape:
            raise InputError(
                f"{self.path} holds {name!r} of shape {tuple(tensor.shape)}, but the other weights"
                f" ask for {shape}: is it of another autoencoder?"
            )
        return tensor

    def skip(self, *names: str) -> None:
        """Take no offense at these, where they are there."""
        self._taken.update(names)

    def check_all_taken(self) -> None:
        """Make sure that nothing is left.

        Raises:
            InputError: If a weight has been left over, which the reconstruction might need.
        """
        for name in sorted(self.found.keys() - self._taken):
            raise InputError(
                f"{self.path} has a weight {name!r} too many: is it of another architecture?"
            )

    def _numbers(self, name: str) -> Tensor:
        self._taken.add(name)
        tensor = self.found.get(name)
        if tensor is None:
            raise InputError(
                f"{self.path} lacks the weight {name!r}: is it of another architecture?"
            )
        fits = isinstance(tensor, Tensor) and tensor.layout == torch.strided
        if not fits or tensor.is_complex() or tensor.device.type != "cpu":
            raise InputError(f"{self.path} holds {name!r} that is no tensor of numbers")
        # A view may claim to be far larger than what is stored of it.
        if math.prod(tensor.shape) * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise InputError(f"{self.path} holds {name!r} with fewer numbers than its shape says")
        try:
            numbers: Tensor = tensor.detach().float()
        except (RuntimeError, TypeError) as error:
            raise InputError(
                f"{self.path} holds {name!r} in {tensor.dtype}, which cannot be read"
            ) from error
        return numbers


def setting(config: Mapping[str, Any], key: str, kind: type[T], path: Path, default: T) -> T:
    """A value of a configuration; the default where it is left out.

    Raises:
        InputError: If it is of another kind.
    """
    value = config.get(key)
    if value is None:
        return default
    if type(value) is not kind:
        raise InputError(f"{path}: {key} is {value!r}; expected {_SHOWN[kind]}")
    return value


def check_k(k: int, latents: int, path: Path) -> int:
    """Return k, the number of latents that a row keeps.

    Raises:
        InputError: If there are not so many.
    """
    if not 1 <= k <= latents:
        raise InputError(f"{path}: k is {k}; expected 1 to {latents}, the number of latents")
    return k


def check_dimensions(config: Mapping[str, Any], path: Path, **dimensions: int) -> None:
    """Make sure that a configuration means the weights beside it.

    Args:
        config: The configuration.
        path: Its file.
        **dimensions: What the weights say of keys that it may have.

    Raises:
        InputError: If they differ.
    """
    for key, weights_say in dimensions.items():
        if setting(config, key, int, path, weights_say) != weights_say:
            raise InputError(
                f"{path} says {key} {config[key]}, but the weights beside it have {weights_say}:"
                " use the files of one autoencoder"
            )
