"""What takes a site's place: any function of its activations, or an autoencoder."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from palinka.errors import InputError


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
        return _reconstruction(replacement, edit, keep_error)
    if not callable(replacement):
        raise InputError(
            f"a {type(replacement).__name__} cannot replace a site; "
            "give a function of its activations, or an autoencoder"
        )
    if edit is not None or keep_error:
        raise InputError("edit and keep_error need an autoencoder; a function stands for itself")
    return replacement


def _reconstruction(
    autoencoder: EncodesAndDecodes, edit: Callable[[Tensor], Tensor] | None, keep_error: bool
) -> Callable[[Tensor], Tensor]:
    # Ours may need something of the activations beside their latents.
    decode: Callable[[Tensor, Tensor], Tensor] = getattr(
        autoencoder, "decode_for", lambda latents, _: autoencoder.decode(latents)
    )

    def reconstruct(x: Tensor) -> Tensor:
        x = _as_weights(x, autoencoder)
        latents = autoencoder.encode(x)
        # Before the edit, which may write into the latents.
        error = x - decode(latents, x) if keep_error else None
        if edit is not None:
            latents = edit(latents)
            if not isinstance(latents, Tensor):
                raise InputError(
                    f"edit returned {type(latents).__name__}; return the edited latents"
                )
        reconstruction = decode(latents, x)
        return reconstruction if error is None else reconstruction + error

    return reconstruct


def _as_weights(x: Tensor, autoencoder: Any) -> Tensor:
    """Activations in the dtype and on the device of the autoencoder's weights."""
    if not isinstance(autoencoder, nn.Module):
        return x
    weight = next(autoencoder.parameters(), None)
    return x if weight is None else x.to(weight)
