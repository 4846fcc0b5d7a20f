"""The ReLU autoencoder, made sparse by its penalty alone."""

from torch import Tensor

from palinka.autoencoders.untied import UntiedAutoencoder


class ReLUAutoencoder(UntiedAutoencoder):
    """`ReLU(W_enc (x - b_dec) + b_enc)`, with as many latents active as the penalty leaves.

    The penalty weighs each latent by the norm of what it writes. Conerly et al. leave that norm
    free; Bricken et al. hold it at 1, which `unit_norm` does.

    Args:
        input_dim: Width of the activations.
        latent_dim: Number of latents; `2 * input_dim` where left out.
        subtract_decoder_bias: Subtract the decoder's bias before encoding, as Bricken et al. do
            and Conerly et al. do not.
        unit_norm: Give every latent's direction norm 1, at first and throughout training; it
            begins at 0.1 otherwise.
        output_dim: Width of what a transcoder gives.

    Raises:
        InputError: If a dimension is not a positive integer.

    Source:
        Bricken et al. (2023), Towards monosemanticity; Conerly et al. (2024), Update on how we
        train SAEs (Transformer Circuits, April 2024).
    """

    first_norm = 0.1

    def __init__(
        self,
        input_dim: int,
        latent_dim: int | None = None,
        subtract_decoder_bias: bool = True,
        unit_norm: bool = False,
        output_dim: int | None = None,
    ) -> None:
        super().__init__(
            input_dim,
            latent_dim,
            subtract_decoder_bias=subtract_decoder_bias,
            unit_norm=unit_norm,
            output_dim=output_dim,
        )
        self.reset_parameters()

    def encode(self, x: Tensor) -> Tensor:
        """Activations `(…, input_dim)` to latents `(…, latent_dim)`, none of them negative."""
        return self.encoder_output(x).relu()
