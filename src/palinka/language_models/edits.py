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
        latent: The index of a latent, or several.
        positions: Token positions, negative ones from the end; default all.
    """
    return clamp(latent, 0.0, positions)


def scale(
    latent: int | Sequence[int], factor: float, positions: Sequence[int] | None = None
) -> Edit:
    """Multiply latents by a factor, which changes them only where they are active.

    `latent` and `positions` are those of `ablate`.
    """
    return _edit(latent, positions, lambda values: values * factor)


def clamp(
    latent: int | Sequence[int], value: float, positions: Sequence[int] | None = None
) -> Edit:
    """Set latents to a value in the unit of the latents, active or not.

    `latent` and `positions` are those of `ablate`.
    """
    return _edit(latent, positions, lambda values: torch.full_like(values, value))


def add(latent: int | Sequence[int], value: float, positions: Sequence[int] | None = None) -> Edit:
    """Add a value to latents, active or not; the sum may be negative.

    `latent` and `positions` are those of `ablate`.
    """
    return _edit(latent, positions, lambda values: values + value)


def _edit(latent: int | Sequence[int], positions: Sequence[int] | None, change: Edit) -> Edit:
    numbers = [latent] if isinstance(latent, int) else list(latent)

    def edit(latents: Tensor) -> Tensor:
        tokens, count = latents.shape[-2:]
        unknown = [number for number in numbers if not 0 <= number < count]
        if unknown:
            raise InputError(
                f"latent {unknown[0]} does not exist; the autoencoder has 0 to {count - 1}"
            )
        places = range(tokens) if positions is None else positions
        there = sorted({place % tokens for place in places if -tokens <= place < tokens})
        where = torch.tensor(there, device=latents.device, dtype=torch.long)[:, None]
        which = torch.tensor(numbers, device=latents.device, dtype=torch.long)
        edited = latents.clone()
        edited[..., where, which] = change(latents[..., where, which])
        return edited

    return edit


@runtime_checkable
class EncodesAndDecodes(Protocol):
    """An autoencoder of any class."""

    def encode(self, x: Tensor, /) -> Tensor:
        """Latents of activations."""

    def decode(self, latents: Tensor, /) -> Tensor:
        """Activations of latents."""


Replacement = Callable[[Tensor], Tensor] | EncodesAndDecodes


def as_function(
    replacement: Replacement,
    edit: Edit | None = None,
    keep_error: bool = False,
    source: Callable[[], Tensor] | None = None,
) -> Callable[[Tensor], Tensor]:
    """Make one function from a site's activations to what replaces them.

    Args:
        replacement: A function, or an autoencoder, whose reconstruction is taken then; of the
            activations at the source site where there is one.
        edit: A function of the autoencoder's latents, applied before they are decoded.
        keep_error: Add what the unedited reconstruction misses at the site.
        source: Returns the activations at another site in the same forward pass.

    Raises:
        InputError: If it is neither, or if `edit` or `keep_error` is given with a function.
    """
    is_autoencoder = isinstance(replacement, EncodesAndDecodes)
    if not is_autoencoder and not callable(replacement):
        raise InputError(
            f"a {type(replacement).__name__} cannot replace a site; "
            "give a function of its activations, or an autoencoder"
        )
    if not is_autoencoder and (edit is not None or keep_error):
        raise InputError("edit and keep_error need an autoencoder; a function has no latents")

    def replace(target: Tensor) -> Tensor:
        x = target if source is None else source()
        if x is not target and x.shape[:-1].numel() == target.shape[:-1].numel():
            # Some models run a part of themselves on all tokens in one row.
            x = x.reshape(*target.shape[:-1], x.shape[-1])
        if isinstance(replacement, EncodesAndDecodes):
            return _reconstruct(replacement, x, target, edit, keep_error)
        return replacement(x)

    return replace


def _reconstruct(
    autoencoder: EncodesAndDecodes,
    x: Tensor,
    target: Tensor,
    edit: Edit | None,
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
