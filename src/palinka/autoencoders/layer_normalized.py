"""The k-sparse autoencoder of activations that are layer-normed, one by one, before encoding."""

import torch
from torch import Tensor

from palinka.autoencoders.ksparse import KSparseAutoencoder

_EPSILON = 1e-5


class LayerNormalizedAutoencoder(KSparseAutoencoder):
    """A k-sparse autoencoder of `(x - mean) / (deviation + 1e-5)`, with mean and deviation of `x`.

    `encode` normalizes, and `decode_for` undoes it. `decode` has no `x` to take mean and deviation
    from: it gives the normalized reconstruction. So does a transcoder, in whose output the mean
    and deviation of its input are nothing.

    Source:
        Gao et al. (2024), Scaling and evaluating sparse autoencoders, arXiv 2406.04093, whose
        published autoencoders are of this kind.
    """

    def encode(self, x: Tensor) -> Tensor:
        """Activations `(…, input_dim)` to latents `(…, latent_dim)`, none of them negative."""
        self.check_width(x, self.input_dim, "activations")
        mean, deviation = _moments(x)
        return super().encode((x - mean) / (deviation + _EPSILON))

    def decode_for(self, latents: Tensor, x: Tensor) -> Tensor:
        """Latents `(…, latent_dim)` to a reconstruction with the mean and deviation of `x`."""
        if self.is_transcoder:
            return self.decode(latents)
        mean, deviation = _moments(x)
        return self.decode(latents) * deviation + mean


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of each row and its deviation, with one degree of freedom less; `(…, 1)`."""
    deviation, mean = torch.std_mean(x, dim=-1, keepdim=True)
    return mean, deviation
