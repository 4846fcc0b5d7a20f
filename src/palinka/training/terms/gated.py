"""The loss of the gated autoencoder, in which only the gate pays for being active."""

from torch.nn import functional

from palinka.autoencoders import AutoencoderOutput, GatedAutoencoder
from palinka.training.losses import reconstruction_loss
from palinka.training.terms.relu import written_norm
from palinka.training.terms.step import Step, Terms, terms


@terms.register
def gated_terms(autoencoder: GatedAutoencoder, step: Step) -> Terms:
    """Mean squared error, L1 of the rectified gate, and the error of what that reconstructs.

    The gate learns from its own reconstruction by a decoder that stands still. Both errors are
    means over the width, where the paper has sums: a `sparsity_weight` is its λ divided by the
    width. Where directions are free, the L1 is weighed by their norms.

    Source:
        Rajamanoharan et al. (2024), arXiv 2404.16014, equation 8 and appendix H.
    """
    pre = autoencoder.pre_activations(step.x)
    latents = pre.latents()
    output = AutoencoderOutput(autoencoder.decode(latents), latents)
    gate = pre.gate.relu()
    by_gate = functional.linear(
        gate, autoencoder.decoder_weight.detach().T, autoencoder.decoder_bias.detach()
    )
    return Terms(
        output=output,
        reconstruction=reconstruction_loss(output.reconstruction, step.target),
        sparsity=written_norm(gate, autoencoder),
        auxiliary=reconstruction_loss(by_gate, step.target),
        auxiliary_weight=1.0,
    )
