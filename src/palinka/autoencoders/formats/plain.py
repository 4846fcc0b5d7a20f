"""What every library stores of an autoencoder, in one form between theirs and ours."""

from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class ReLU:
    """Every positive value is a latent."""


@dataclass(frozen=True)
class TopK:
    """The k largest positive values of a row are latents."""

    k: int


@dataclass(frozen=True)
class Threshold:
    """Values above the latent's own threshold are latents; those are `(latents,)`."""

    threshold: Tensor


@dataclass(frozen=True)
class BatchTopK:
    """Values above one threshold `()` are latents, k of a row on average."""

    k: int
    threshold: Tensor


@dataclass(frozen=True)
class Gate:
    """Where the encoder's value is positive, `exp(log_magnitude)` of it without its bias counts.

    That is scaled latent by latent; `magnitude_bias` is added to it, and a ReLU taken. Both are
    `(latents,)`.
    """

    magnitude_bias: Tensor
    log_magnitude: Tensor


Activation = ReLU | TopK | Threshold | BatchTopK | Gate


@dataclass(frozen=True)
class Plain:
    """An autoencoder as its weights alone describe it.

    `encoder (x - decoder_bias) + encoder_bias` is what the activation is given; without
    `subtracts`, `x` itself is encoded. The reconstruction of latents `z` is
    `z decoder + decoder_bias`.

    Attributes:
        encoder: `(latents, width)`.
        encoder_bias: `(latents,)`; that of the gate where there is one.
        decoder: `(latents, width)`.
        decoder_bias: `(width,)`.
        activation: What makes latents of the encoder's values.
        subtracts: Whether the decoder's bias is subtracted before encoding.
        normalizes: Whether each activation is layer-normed before it is encoded, and the
            reconstruction brought back to its mean and deviation.
    """

    encoder: Tensor
    encoder_bias: Tensor
    decoder: Tensor
    decoder_bias: Tensor
    activation: Activation
    subtracts: bool = True
    normalizes: bool = False

    @property
    def width(self) -> int:
        """The width of the activations."""
        return self.encoder.shape[1]

    @property
    def latents(self) -> int:
        """The number of latents."""
        return self.encoder.shape[0]

    def subtracting(self) -> "Plain":
        """The same function, written with the decoder's bias subtracted before encoding."""
        if self.subtracts:
            return self
        shift = self.encoder.double() @ self.decoder_bias.double()
        activation = self.activation
        if isinstance(activation, Gate):
            moved = activation.magnitude_bias + activation.log_magnitude.double().exp() * shift
            activation = replace(activation, magnitude_bias=moved.float())
        bias = (self.encoder_bias + shift).float()
        return replace(self, encoder_bias=bias, activation=activation, subtracts=True)
