"""The loss of TopK and BatchTopK: normalized error, and dead latents that mend what is left."""

import torch
from torch import Tensor
from torch.nn import functional

from palinka.autoencoders import (
    AutoencoderOutput,
    BatchTopKAutoencoder,
    CompactOutput,
    TopKAutoencoder,
)
from palinka.autoencoders.untied import UntiedAutoencoder
from palinka.kernels import batch_threshold, keep_top_k
from palinka.kernels.precision import statistics_dtype
from palinka.training.losses import normalized_loss, sparsity_loss
from palinka.training.terms.step import Step, Terms, terms


@terms.register
def topk_terms(autoencoder: TopKAutoencoder, step: Step) -> Terms:
    """Normalized mean squared error and AuxK; the paper has no penalty, so `sparsity_weight` 0.

    The paper divides by the error of predicting the mean activation. Its code takes that of rows
    seen before the first step, and for AuxK that of the batch; here both are the batch's.

    Source:
        Gao et al. (2024), Scaling and evaluating sparse autoencoders, arXiv 2406.04093, sections
        2.3 and 3.1 and appendix A.2.
    """
    return _terms(autoencoder, None, autoencoder.compact(step.x), step)


@terms.register
def batch_topk_terms(autoencoder: BatchTopKAutoencoder, step: Step) -> Terms:
    """As TopK, with the largest values of the batch of all processes.

    Source:
        Bussmann et al. (2024), BatchTopK sparse autoencoders, arXiv 2412.06410.
    """
    values, latents = batch_latents(autoencoder, step)
    output = AutoencoderOutput(autoencoder.decode(latents), latents)
    return _terms(autoencoder, values, output, step)


def batch_latents(autoencoder: BatchTopKAutoencoder, step: Step) -> tuple[Tensor, Tensor]:
    """What latents are chosen from, and those that the batch of all processes keeps.

    Moves the running threshold, on every process alike.
    """
    values = autoencoder.candidates(step.x)
    threshold = batch_threshold(values, autoencoder.k, step.layout.rows)
    autoencoder.move_threshold(threshold)
    return values, values.masked_fill(values.detach() < threshold, 0.0)


def auxiliary_loss(
    autoencoder: UntiedAutoencoder, values: Tensor | None, reconstruction: Tensor, step: Step
) -> Tensor | None:
    """AuxK: how far the largest dead latents are from mending the reconstruction.

    Its gradient reaches the encoder's and the decoder's rows of dead latents, and none of the
    others'. As in the paper's code the values have passed the ReLU: a dead latent learns from
    rows to which it would answer at all.

    Args:
        autoencoder: Whose latents they are.
        values: What latents were chosen from, `(…, latent_dim)`, none of them negative; None
            where that has not been kept, so that it has to be computed of the dead.
        reconstruction: What the chosen ones gave, `(…, input_dim)`.
        step: The batch.

    Returns:
        A scalar, 0 where no latent is dead; None if nobody knows which are.

    Source:
        Gao et al. (2024), arXiv 2406.04093, appendix A.2.
    """
    if step.dead is None:
        return None
    dead = step.dead().nonzero()[:, 0]
    if not len(dead):
        return torch.zeros((), dtype=statistics_dtype(step.x.dtype), device=step.x.device)
    residual = step.target - reconstruction.detach()
    k = step.auxiliary_k or max(1, autoencoder.input_dim // 2)
    of_dead = _candidates(autoencoder, dead, step.x) if values is None else values[..., dead]
    latents = keep_top_k(of_dead, k)
    mended = functional.linear(latents, autoencoder.dictionary.index_select(0, dead).T)
    return normalized_loss(mended, residual, step.layout.rows)


def _candidates(autoencoder: UntiedAutoencoder, latents: Tensor, x: Tensor) -> Tensor:
    """What some latents, `(some,)`, make of activations `(…, input_dim)`, before any choice."""
    if autoencoder.subtract_decoder_bias:
        x = x - autoencoder.decoder_bias
    bias = autoencoder.encoder.bias.index_select(0, latents)
    return functional.linear(x, autoencoder.encoder.weight.index_select(0, latents), bias).relu()


def _terms(
    autoencoder: UntiedAutoencoder,
    values: Tensor | None,
    output: AutoencoderOutput | CompactOutput,
    step: Step,
) -> Terms:
    return Terms(
        output=output,
        reconstruction=normalized_loss(output.reconstruction, step.target, step.layout.rows),
        sparsity=sparsity_loss(output.latents),
        auxiliary=auxiliary_loss(autoencoder, values, output.reconstruction, step),
    )
