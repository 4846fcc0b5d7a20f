"""Edits of latents for `LanguageModel.replaced(site, autoencoder, edit=…)`.

Each function gives one that takes latents `(texts, tokens, latents)` and returns edited ones; what
it is given stays as it is. With `keep_error`, nothing but the edit changes in the model.

`positions` are those of one forward pass, from 0, or from -1 at its end; those that a pass does not
have are left out. A pass of `generate` after the first is of one token, unless `use_cache` is off.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

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
