"""Edits of latents and replacements of activations."""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from palinka.errors import InputError

Edit = Callable[[Tensor], Tensor]
Indices = Sequence[int]


def ablate(latent: int | Indices, positions: Indices | None = None) -> Edit:
    """Set latents to zero at all tokens, or at `positions`, negative ones from the end."""
    return clamp(latent, 0.0, positions)


def scale(latent: int | Indices, factor: float, positions: Indices | None = None) -> Edit:
    """Multiply latents by a factor, which changes them only where they are active."""
    return _edit(latent, positions, lambda values: values * factor)


def clamp(latent: int | Indices, value: float, positions: Indices | None = None) -> Edit:
    """Set latents to a value in the unit of the latents, active or not."""
    return _edit(latent, positions, lambda values: torch.full_like(values, value))


def add(latent: int | Indices, value: float, positions: Indices | None = None) -> Edit:
    """Add a value to latents, active or not; the sum may be negative."""
    return _edit(latent, positions, lambda values: values + value)


def _edit(latent: int | Indices, positions: Indices | None, change: Edit) -> Edit:
    chosen = [latent] if isinstance(latent, int) else list(latent)

    def edit(latents: Tensor) -> Tensor:
        tokens, count = latents.shape[-2:]
        if unknown := [index for index in chosen if not 0 <= index < count]:
            raise InputError(f"latents {unknown} do not exist; expected 0 to {count - 1}")
        wanted = range(tokens) if positions is None else positions
        present = sorted({place % tokens for place in wanted if -tokens <= place < tokens})
        rows = torch.tensor(present, dtype=torch.long)[:, None]
        edited = latents.clone()
        edited[..., rows, chosen] = change(latents[..., rows, chosen])
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


@torch.no_grad()
def latents_of(dictionary: EncodesAndDecodes, x: Tensor) -> Tensor:
    """Latents of activations, on the device and in the dtype of the autoencoder's weights."""
    return dictionary.encode(_like_weights(dictionary, x))


def _like_weights(dictionary: object, x: Tensor) -> Tensor:
    weights = list(dictionary.parameters()) if isinstance(dictionary, nn.Module) else []
    return x.to(weights[0]) if weights else x


def as_function(
    replacement: Replacement, edit: Edit | None = None, keep_error: bool = False,
    source: Callable[[], Tensor] | None = None,
) -> Callable[[Tensor], Tensor]:  # fmt: skip
    """Make one function of a site's activations from what `LanguageModel.replaced` is given.

    `source` returns the activations at another site, to be read instead.
    """
    if not isinstance(replacement, EncodesAndDecodes):
        if not callable(replacement):
            kind = type(replacement).__name__
            raise InputError(f"a {kind} cannot replace a site; give a function or an autoencoder")
        if edit is not None or keep_error:
            raise InputError("edit and keep_error need an autoencoder; a function has no latents")

    def replace(target: Tensor) -> Tensor:
        x = target if source is None else source()
        if x is not target and x.shape[:-1].numel() == target.shape[:-1].numel():
            # Some models run a part of themselves on all tokens in one row.
            x = x.reshape(*target.shape[:-1], x.shape[-1])
        if not isinstance(replacement, EncodesAndDecodes):
            return replacement(x)
        x = _like_weights(replacement, x)
        # Some architectures need more of the activations than their latents.
        decode = getattr(replacement, "decode_for", lambda z, _: replacement.decode(z))
        latents = replacement.encode(x)
        # Before the edit, which may write into the latents.
        before = decode(latents, x) if keep_error else None
        edited = latents if edit is None else edit(latents)
        if not isinstance(edited, Tensor):
            raise InputError(f"edit returned {type(edited).__name__}; return the edited latents")
        reconstruction: Tensor = decode(edited, x)
        if before is None:
            return reconstruction
        # In this order, what no edit has changed stays as it is to the last bit.
        return target.to(reconstruction.device) + (reconstruction - before)

    return replace
