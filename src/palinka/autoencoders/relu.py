from typing import Any

from torch import Tensor

from palinka.autoencoders.linear import UntiedAutoencoder


class ReLUAutoencoder(UntiedAutoencoder):
    """`ReLU(W_enc (x - b_dec) + b_enc)`, sparse through the penalty in training.

    The penalty weighs each latent by the norm of its decoder direction. Conerly et al. leave that
    norm free and do not subtract the decoder's bias; Bricken et al. hold the norm at 1 and do.

    Args:
        unit_norm: Give every latent's direction norm 1 throughout; it begins at 0.1 otherwise.

    Source:
        Bricken et al. (2023), Towards monosemanticity; Conerly et al. (2024), Update on how we
        train SAEs (Transformer Circuits, April 2024).
    """

    initial_norm = 0.1

    def __init__(
        self, input_dim: int, latent_dim: int | None = None, *, unit_norm: bool = False,
        **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(input_dim, latent_dim, unit_norm=unit_norm, **settings)

    def encode(self, x: Tensor) -> Tensor:
        """Activations `(…, input_dim)` to latents `(…, latent_dim)`, none of them negative."""
        return self.encoder_output(x).relu()
