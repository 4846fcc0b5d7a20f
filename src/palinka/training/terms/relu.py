"""The loss of the ReLU autoencoder: squared error, and latents weighed by what they write."""

from torch import Tensor

from palinka.autoencoders import ReLUAutoencoder
from palinka.autoencoders.untied import UntiedAutoencoder
from palinka.kernels.precision import statistics_dtype
from palinka.training.losses import reconstruction_loss
from palinka.training.terms.step import Step, Terms, terms


@terms.register
def relu_terms(autoencoder: ReLUAutoencoder, step: Step) -> Terms:
    """Mean squared error, and the mean over rows of the latents weighed by their norms.

    The paper sums the squared error over the width, where a mean is taken here: a
    `sparsity_weight` is the paper's λ divided by the width.

    Source:
        Conerly et al. (2024), Update on how we train SAEs; with rows of norm 1, Bricken et al.
        (2023), Towards monosemanticity.
    """
    output = autoencoder(step.x)
    return Terms(
        output=output,
        reconstruction=reconstruction_loss(output.reconstruction, step.target),
        sparsity=written_norm(output.latents, autoencoder),
    )


def written_norm(latents: Tensor, autoencoder: UntiedAutoencoder) -> Tensor:
    """Mean over rows of the sum of latents, each times the norm of its direction.

    Args:
        latents: `(…, latent_dim)`, none of them negative.
        autoencoder: Whose latents they are.

    Returns:
        A scalar, in float32 or better.
    """
    means = latents.flatten(0, -2).mean(dim=0, dtype=statistics_dtype(latents.dtype))
    if autoencoder.unit_norm:
        return means.sum()
    norms: Tensor = autoencoder.dictionary.norm(dim=1)
    return (means * norms).sum()
