"""Edits of latents and replacements of activations."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from palinka.errors import InputError

Edit = Callable[[Tensor], Tensor]


def ablate(latent: int | Sequence[int], positions: Sequence[int] | None = None) -> Edit:
    """Set latents to zero.

    Args:
        latent: The number of a latent, or several.
        positions: Where; at all tokens if left out.
    """
    return clamp(latent, 0.0, positions)


def scale(
    latent: int | Sequence[int], factor: float, positions: Sequence[int] | None = None
) -> Edit:
    """Multiply latents, which changes them only where they are active.

    Args:
        latent: The number of a latent, or several.
        factor: What to multiply by.
        positions: Where; at all tokens if left out.
    """
    return _edit(latent, positions, lambda values: values * factor)


def clamp(
    latent: int | Sequence[int], value: float, positions: Sequence[int] | None = None
) -> Edit:
    """Set latents to a value, whether they are active or not.

    Args:
        latent: The number of a latent, or several.
        value: In the unit of the latents.
        positions: Where; at all tokens if left out.
    """
    return _edit(latent, positions, lambda values: torch.full_like(values, value))


def add(latent: int | Sequence[int], value: float, positions: Sequence[int] | None = None) -> Edit:
    """Add a value to latents, whether they are active or not.

    Args:
        latent: The number of a latent, or several.
        value: In the unit of the latents; the sum may be negative.
        positions: Where; at all tokens if left out.
    """
    return _edit(latent, positions, lambda values: values + value)


def _edit(latent: int | Sequence[int], positions: Sequence[int] | None, change: Edit) -> Edit:
    numbers = [latent] if isinstance(latent, int) else list(latent)

    def edit(latents: Tensor) -> Tensor:
        tokens, count = latents.shape[-2:]
        unknown = [number for number in numbers if not 0 <= number < count]
        if unknown:
            raise InputError(
                f"latent {unknown[0]} is to be edited; the autoencoder has 0 to {count - 1}"
            )
        there = list(range(tokens)) if positions is None else _within(positions, tokens)
        where = torch.tensor(there, device=latents.device, dtype=torch.long)[:, None]
        which = torch.tensor(numbers, device=latents.device, dtype=torch.long)
        edited = latents.clone()
        edited[..., where, which] = change(latents[..., where, which])
        return edited

    return edit


def _within(positions: Sequence[int], tokens: int) -> list[int]:
    """The positions that a pass of so many tokens has, counted from 0."""
    return sorted({place % tokens for place in positions if -tokens <= place < tokens})


@runtime_checkable
class EncodesAndDecodes(Protocol):
    """An autoencoder, whatever its class."""

    def encode(self, x: Tensor, /) -> Tensor:
        """From activations to latents."""

    def decode(self, latents: Tensor, /) -> Tensor:
        """From latents to activations."""


Replacement = Callable[[Tensor], Tensor] | EncodesAndDecodes


def as_function(
    replacement: Replacement, edit: Callable[[Tensor], Tensor] | None, keep_error: bool
) -> Callable[[Tensor], Tensor]:
    """One function from a site's activations to what replaces them.

    Args:
        replacement: A function, or an autoencoder, whose reconstruction is taken then.
        edit: A function of the autoencoder's latents, applied before they are decoded.
        keep_error: Whether to add what the unedited reconstruction misses.

    Raises:
        InputError: If it is neither, or if `edit` or `keep_error` is given with a function.
    """
    if isinstance(replacement, EncodesAndDecodes):
        return lambda x: _reconstruct(replacement, x, x, edit, keep_error)
    if not callable(replacement):
        raise InputError(
            f"a {type(replacement).__name__} cannot replace a site; "
            "give a function of its activations, or an autoencoder"
        )
    if edit is not None or keep_error:
        raise InputError("edit and keep_error need an autoencoder; a function stands for itself")
    return replacement


def as_function_of_source(
    replacement: Replacement,
    edit: Callable[[Tensor], Tensor] | None,
    keep_error: bool,
    source: Callable[[], Tensor],
) -> Callable[[Tensor], Tensor]:
    """One function from a site's activations to what follows from those at a source site.

    Args:
        replacement: A function of the source's activations, or a transcoder.
        edit: A function of the transcoder's latents, applied before they are decoded.
        keep_error: Whether to add what the unedited reconstruction misses at the site.
        source: Hands out the source's activations in the same forward pass.

    Raises:
        InputError: As `as_function`.
    """
    function = as_function(replacement, edit, keep_error)

    def replace(target: Tensor) -> Tensor:
        x = source()
        if x.shape[:-1].numel() == target.shape[:-1].numel():
            # Some models run a part of themselves on all tokens in one row.
            x = x.reshape(*target.shape[:-1], x.shape[-1])
        if isinstance(replacement, EncodesAndDecodes):
            return _reconstruct(replacement, x, target, edit, keep_error)
        return function(x)

    return replace


def _reconstruct(
    autoencoder: EncodesAndDecodes,
    x: Tensor,
    target: Tensor,
    edit: Callable[[Tensor], Tensor] | None,
    keep_error: bool,
) -> Tensor:
    # Ours may need something of the activations beside their latents.
    decode: Callable[[Tensor, Tensor], Tensor] = getattr(
        autoencoder, "decode_for", lambda latents, _: autoencoder.decode(latents)
    )
    x = _as_weights(x, autoencoder)
    latents = autoencoder.encode(x)
    # Before the edit, which may write into the latents.
    error = _as_weights(target, autoencoder) - decode(latents, x) if keep_error else None
    if edit is not None:
        latents = edit(latents)
        if not isinstance(latents, Tensor):
            raise InputError(f"edit returned {type(latents).__name__}; return the edited latents")
    reconstruction = decode(latents, x)
    return reconstruction if error is None else reconstruction + error


def _as_weights(x: Tensor, autoencoder: Any) -> Tensor:
    """Activations in the dtype and on the device of the autoencoder's weights."""
    if not isinstance(autoencoder, nn.Module):
        return x
    weight = next(autoencoder.parameters(), None)
    return x if weight is None else x.to(weight)
