"""The loss of the Matryoshka autoencoder: every prefix of the dictionary reconstructs."""

import torch

from palinka.autoencoders import AutoencoderOutput, MatryoshkaAutoencoder
from palinka.training.losses import reconstruction_loss, sparsity_loss, spread
from palinka.training.terms.step import Step, Terms, terms
from palinka.training.terms.topk import auxiliary_loss, batch_latents


@terms.register
def matryoshka_terms(autoencoder: MatryoshkaAutoencoder, step: Step) -> Terms:
    """The sum of the normalized errors of all prefixes, and AuxK on what the whole leaves.

    The paper sums, as here; the authors' code takes the mean, and counts the bias alone as the
    empty prefix.

    Source:
        Bussmann et al. (2025), Learning multi-level features with Matryoshka sparse autoencoders,
        arXiv 2503.17547.
    """
    values, latents = batch_latents(autoencoder, step)
    reconstructions = autoencoder.decode_prefixes(latents)
    errors = [reconstruction_loss(made, step.target) for made in reconstructions]
    whole = reconstructions[-1]
    return Terms(
        output=AutoencoderOutput(whole, latents),
        reconstruction=torch.stack(errors).sum() / spread(step.target, step.layout.rows),
        sparsity=sparsity_loss(latents),
        auxiliary=auxiliary_loss(autoencoder, values, whole, step),
    )
