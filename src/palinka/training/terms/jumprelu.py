"""The loss of the JumpReLU autoencoder: squared error, and how many latents are active."""

from torch import Tensor

from palinka.autoencoders import AutoencoderOutput, JumpReLUAutoencoder
from palinka.autoencoders.straight_through import jump_relu, step_up
from palinka.kernels.precision import statistics_dtype
from palinka.training.losses import reconstruction_loss
from palinka.training.terms.step import Step, Terms, terms


@terms.register
def jumprelu_terms(autoencoder: JumpReLUAutoencoder, step: Step) -> Terms:
    """Mean squared error, and the mean over rows of the number of active latents or its tanh.

    The paper sums the squared error over the width, where a mean is taken here: a
    `sparsity_weight` is the paper's λ divided by the width.

    Source:
        Rajamanoharan et al. (2024), arXiv 2407.14435, equation 9 and appendix J.
    """
    values = autoencoder.encoder_output(step.x)
    threshold = autoencoder.threshold
    latents = jump_relu(values, threshold, autoencoder.bandwidth)
    output = AutoencoderOutput(autoencoder.decode(latents), latents)
    if autoencoder.sparsity == "l0":
        active = step_up(values, threshold, autoencoder.bandwidth)
    else:
        active = soft_count(latents, autoencoder)
    per_latent = active.flatten(0, -2).mean(dim=0, dtype=statistics_dtype(active.dtype))
    return Terms(
        output=output,
        reconstruction=reconstruction_loss(output.reconstruction, step.target),
        sparsity=per_latent.sum(),
    )


def soft_count(latents: Tensor, autoencoder: JumpReLUAutoencoder) -> Tensor:
    """`tanh(tanh_scale · z ‖d‖)` of every latent `z` that writes `d`, `(…, latent_dim)`.

    Source:
        Jermyn et al. (2024), Tanh penalty in dictionary learning; Conerly et al. (2025),
        Dictionary learning optimization techniques.
    """
    if autoencoder.unit_norm:
        return (autoencoder.tanh_scale * latents).tanh()
    norms: Tensor = autoencoder.dictionary.norm(dim=1)
    return (autoencoder.tanh_scale * norms * latents).tanh()
