"""Losses, one function per architecture."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from palinka.autoencoders import (
    Autoencoder,
    AutoencoderOutput,
    BatchTopKAutoencoder,
    GatedAutoencoder,
    JumpReLUAutoencoder,
    KSparseAutoencoder,
    ReLUAutoencoder,
    SparseOutput,
    TopKAutoencoder,
)
from palinka.autoencoders import distributed as parallel
from palinka.autoencoders.distributed import UNSHARDED, Group, Sharding
from palinka.autoencoders.jumprelu import heaviside_ste, jump_relu
from palinka.autoencoders.kernels.decorrelation import squared_covariance
from palinka.autoencoders.kernels.loops import statistics_dtype
from palinka.autoencoders.kernels.sparse import Latents, SparseLatents
from palinka.autoencoders.kernels.topk import batch_threshold, keep_top_k
from palinka.autoencoders.linear import UntiedAutoencoder
from palinka.autoencoders.sharded import ShardedAutoencoder
from palinka.errors import InputError


def reconstruction_loss(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over all elements of two `(…, input_dim)`, in float32 or better."""
    dtype = statistics_dtype(target.dtype)
    return (reconstruction.to(dtype) - target.to(dtype)).square().mean()


def normalized_loss(reconstruction: Tensor, target: Tensor, group: Group = None) -> Tensor:
    """Mean squared error as a fraction of `total_variance`; its mean over the group is exact."""
    return reconstruction_loss(reconstruction, target) / total_variance(target, group)


@torch.no_grad()
def total_variance(target: Tensor, group: Group = None) -> Tensor:
    """Mean squared error of predicting the batch's mean row; 1 where all rows are equal.

    The processes of a group, with equally many rows each, share a batch.
    """
    rows = target.reshape(-1, target.shape[-1]).to(statistics_dtype(target.dtype))
    mean = rows.mean(dim=0)
    within = (rows - mean).square().mean()
    parts, _ = parallel.gather_rows(torch.cat([mean, within[None]])[None], group)
    means, within = parts[:, :-1], parts[:, -1].mean()
    error = within + (means - means.mean(dim=0)).square().mean()
    return error.where(error != 0, 1.0)


def sparsity_loss(latents: Latents, slices: Group = None) -> Tensor:
    """Mean over all elements of the absolute value of latents `(…, latent_dim)`.

    It is in float32 or better. The processes `slices` hold the other latents of the same rows.
    """
    dtype = statistics_dtype(latents.dtype)
    if isinstance(latents, SparseLatents):
        return latents.values.abs().sum(dtype=dtype) / (len(latents) * latents.width)
    mean = latents.abs().mean(dtype=dtype)
    return parallel.reduce_from_tensor_parallel(mean / parallel.world_size(slices), slices)


def decorrelation_loss(latents: Latents, group: Group = None, slices: Group = None) -> Tensor:
    """Sum over all ordered pairs of different latents of their squared unbiased covariance.

    Args:
        latents: `(…, latent_dim)`, of at least two rows.
        group: Processes whose latents, equally many on each, form one batch; gradients are scaled
            for data-parallel training, which averages them.
        slices: Processes that hold the other latents of the same rows.
    """
    if isinstance(latents, Tensor):
        latents = latents.reshape(-1, latents.shape[-1])
    return squared_covariance(latents, group, slices)


@dataclass(frozen=True)
class StepContext:
    """One batch, and the state of the run.

    Attributes:
        x: Input of the autoencoder, (rows, input_dim).
        target: Its target, (rows, output_dim): `x` itself, except for a transcoder.
        sharding: The processes whose batches count as one, and those with the other latents.
        dead: Collective that returns the mask of dead latents, (latent_dim,); None if not tracked.
        auxiliary_k: Dead latents in AuxK; default `input_dim // 2`.
    """

    x: Tensor
    target: Tensor
    sharding: Sharding = UNSHARDED
    dead: Callable[[], Tensor] | None = None
    auxiliary_k: int | None = None


@dataclass(frozen=True)
class LossTerms:
    """Unweighted terms of an architecture's loss, scalars in float32 or better.

    `output` is that of the batch, with a graph; `auxiliary` is None without such a term, and
    `auxiliary_weight` the weight of the architecture's paper.
    """

    output: AutoencoderOutput | SparseOutput
    reconstruction: Tensor
    sparsity: Tensor
    auxiliary: Tensor | None = None
    auxiliary_weight: float = 1 / 32


def default_terms(autoencoder: Autoencoder | ShardedAutoencoder, step: StepContext) -> LossTerms:
    """Mean squared error and mean absolute latent."""
    output = autoencoder.forward_sparse(step.x)
    reconstruction = reconstruction_loss(output.reconstruction, step.target)
    sparsity = sparsity_loss(output.latents, step.sharding.latents)
    return LossTerms(output, reconstruction, sparsity)


def relu_terms(autoencoder: ReLUAutoencoder, step: StepContext) -> LossTerms:
    """Mean squared error, and L1 weighted by decoder norms.

    The paper sums the squared error over the width: a `sparsity_weight` is its λ divided by that.

    Source:
        Conerly et al. (2024); with rows of norm 1, Bricken et al. (2023).
    """
    output = autoencoder(step.x)
    reconstruction = reconstruction_loss(output.reconstruction, step.target)
    return LossTerms(output, reconstruction, decoder_weighted_l1(output.latents, autoencoder))


def decoder_weighted_l1(latents: Tensor, autoencoder: UntiedAutoencoder) -> Tensor:
    """Mean over rows of the sum of non-negative latents, each times its decoder norm."""
    means = latents.flatten(0, -2).mean(dim=0, dtype=statistics_dtype(latents.dtype))
    return (means if autoencoder.unit_norm else means * autoencoder.dictionary.norm(dim=1)).sum()


def topk_terms(autoencoder: TopKAutoencoder, step: StepContext) -> LossTerms:
    """Normalized mean squared error and AuxK; the paper has `sparsity_weight` 0.

    Both are normalized by the batch's variance; the paper's code takes that of rows seen before
    the first step for the former.

    Source:
        Gao et al. (2024), arXiv 2406.04093, sections 2.3 and 3.1 and appendix A.2.
    """
    output = autoencoder.forward_sparse(step.x)
    error = normalized_loss(output.reconstruction, step.target, step.sharding.rows)
    auxiliary = auxk_loss(autoencoder, None, output.reconstruction, step)
    return LossTerms(output, error, sparsity_loss(output.latents), auxiliary)


def auxk_loss(
    autoencoder: UntiedAutoencoder, values: Tensor | None, reconstruction: Tensor, step: StepContext
) -> Tensor | None:
    """AuxK: normalized error of the largest dead latents in reconstructing the residual.

    Its gradient reaches the encoder's and the decoder's rows of dead latents alone. `values` are
    the latents `(…, latent_dim)` before the choice, after the ReLU as in the paper's code; None
    to compute those of dead latents alone. The loss is 0 where no latent is dead, and None where
    firing is not tracked.
    """
    if step.dead is None:
        return None
    dead = step.dead().nonzero()[:, 0]
    if not len(dead):
        return torch.zeros((), dtype=statistics_dtype(step.x.dtype), device=step.x.device)
    if values is None:
        x = step.x - autoencoder.decoder_bias if autoencoder.subtract_decoder_bias else step.x
        weight, bias = (p.index_select(0, dead) for p in autoencoder.encoder.parameters())
        of_dead = functional.linear(x, weight, bias).relu()
    else:
        of_dead = values[..., dead]
    latents = keep_top_k(of_dead, step.auxiliary_k or max(1, autoencoder.input_dim // 2))
    dead_reconstruction = latents @ autoencoder.dictionary.index_select(0, dead)
    residual = step.target - reconstruction.detach()
    return normalized_loss(dead_reconstruction, residual, step.sharding.rows)


def batch_topk_terms(autoencoder: BatchTopKAutoencoder, step: StepContext) -> LossTerms:
    """As TopK, with the largest values of the batch of all processes.

    Of a Matryoshka autoencoder the normalized errors of all prefixes are summed, and AuxK takes the
    residual of the whole. The authors' code takes the mean, and counts the bias alone as a prefix.

    Source:
        Bussmann et al. (2024), arXiv 2412.06410, and (2025), arXiv 2503.17547.
    """
    values = autoencoder.candidates(step.x)
    threshold = batch_threshold(values, autoencoder.k, step.sharding.rows)
    autoencoder.move_threshold(threshold)
    latents = values.masked_fill(values.detach() < threshold, 0.0)
    reconstructions = autoencoder.decode_prefixes(latents)
    output = AutoencoderOutput(reconstructions[-1], latents)
    errors = torch.stack([reconstruction_loss(made, step.target) for made in reconstructions])
    error = errors.sum() / total_variance(step.target, step.sharding.rows)
    auxiliary = auxk_loss(autoencoder, values, output.reconstruction, step)
    return LossTerms(output, error, sparsity_loss(latents), auxiliary)


def jumprelu_terms(autoencoder: JumpReLUAutoencoder, step: StepContext) -> LossTerms:
    """Mean squared error, and the mean over rows of the number of active latents or its tanh.

    The tanh is that of `tanh_scale · z ‖d‖` for a latent `z` with direction `d`. A
    `sparsity_weight` is the paper's λ divided by the width, as in `relu_terms`.

    Source:
        Rajamanoharan et al. (2024), arXiv 2407.14435, equation 9 and appendix J; for the tanh,
        Jermyn et al. (2024) and Conerly et al. (2025).
    """
    values = autoencoder.encoder_output(step.x)
    threshold = autoencoder.threshold
    latents = jump_relu(values, threshold, autoencoder.bandwidth)
    reconstruction = autoencoder.decode(latents)
    if autoencoder.sparsity == "l0":
        active = heaviside_ste(values, threshold, autoencoder.bandwidth)
    elif autoencoder.unit_norm:
        active = (autoencoder.tanh_scale * latents).tanh()
    else:
        active = (autoencoder.tanh_scale * autoencoder.dictionary.norm(dim=1) * latents).tanh()
    per_latent = active.flatten(0, -2).mean(dim=0, dtype=statistics_dtype(active.dtype))
    error = reconstruction_loss(reconstruction, step.target)
    return LossTerms(AutoencoderOutput(reconstruction, latents), error, per_latent.sum())


def gated_terms(autoencoder: GatedAutoencoder, step: StepContext) -> LossTerms:
    """Mean squared error, L1 of the rectified gate, and the gate's error by a frozen decoder.

    A `sparsity_weight` is the paper's λ divided by the width, as in `relu_terms`; the L1 is
    weighted by decoder norms.

    Source:
        Rajamanoharan et al. (2024), arXiv 2404.16014, equation 8 and appendix H.
    """
    gate, latents = autoencoder.gate_and_latents(step.x)
    output, gate = AutoencoderOutput(autoencoder.decode(latents), latents), gate.relu()
    frozen = autoencoder.decoder_weight.detach().T, autoencoder.decoder_bias.detach()
    return LossTerms(
        output=output,
        reconstruction=reconstruction_loss(output.reconstruction, step.target),
        sparsity=decoder_weighted_l1(gate, autoencoder),
        auxiliary=reconstruction_loss(functional.linear(gate, *frozen), step.target),
        auxiliary_weight=1.0,
    )


LossFunction = Callable[[Any, StepContext], LossTerms]
LOSSES: dict[type[Any], LossFunction] = {
    Autoencoder: default_terms,
    ShardedAutoencoder: default_terms,
    ReLUAutoencoder: relu_terms,
    TopKAutoencoder: topk_terms,
    BatchTopKAutoencoder: batch_topk_terms,
    JumpReLUAutoencoder: jumprelu_terms,
    GatedAutoencoder: gated_terms,
}
"""The loss of each architecture and its subclasses; add an entry for your own."""

WEIGHTS: dict[type[Any], tuple[float, float]] = {
    Autoencoder: (1.0, 5e-4),
    ReLUAutoencoder: (4e-4, 0.0),
    TopKAutoencoder: (0.0, 0.0),
    BatchTopKAutoencoder: (0.0, 0.0),
    JumpReLUAutoencoder: (1e-5, 0.0),
    GatedAutoencoder: (4e-4, 0.0),
}
"""Default weights of sparsity and decorrelation, as `LOSSES`; for rows with a mean norm of 1."""


def loss_function(autoencoder: Autoencoder | ShardedAutoencoder) -> LossFunction:
    """Entry of `LOSSES` for an autoencoder's class or its nearest parent."""
    return next(LOSSES[kind] for kind in type(autoencoder).__mro__ if kind in LOSSES)


def default_weights(autoencoder: Autoencoder) -> tuple[float, float]:
    """Entry of `WEIGHTS` as of `LOSSES`; a k-sparse transcoder has no penalty."""
    if isinstance(autoencoder, KSparseAutoencoder) and autoencoder.is_transcoder:
        return 0.0, 0.0
    return next(WEIGHTS[kind] for kind in type(autoencoder).__mro__ if kind in WEIGHTS)


def loss_terms(autoencoder: Autoencoder | ShardedAutoencoder, step: StepContext) -> LossTerms:
    """Terms of the loss of an autoencoder's architecture."""
    return loss_function(autoencoder)(autoencoder, step)


class Losses(dict[str, Tensor]):
    """Weighted terms of one step's loss, by name."""

    @property
    def total(self) -> Tensor:
        """The loss to minimize."""
        return sum(self.values(), start=torch.zeros_like(self["reconstruction"]))


@dataclass(frozen=True)
class Objective:
    """Weights of the penalties, and the optimizer steps over which each grows from zero."""

    sparsity_weight: float
    decorrelation_weight: float
    sparsity_warmup_steps: int = 0
    decorrelation_warmup_steps: int = 0
    auxiliary_weight: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is None and name == "auxiliary_weight":
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
                raise InputError(f"{name} must be at least 0, got {value!r}")

    def __call__(self, terms: LossTerms, step: int, sharding: Sharding = UNSHARDED) -> Losses:
        """Weight the terms of a batch after `step` optimizer steps."""
        sparsity = self.sparsity_weight * linear_warmup(step, self.sparsity_warmup_steps)
        weight = self.decorrelation_weight * linear_warmup(step, self.decorrelation_warmup_steps)
        latents = terms.output.latents
        losses = Losses(
            reconstruction=terms.reconstruction,
            sparsity=sparsity * terms.sparsity,
            decorrelation=weight * decorrelation_loss(latents, sharding.rows, sharding.latents)
            if weight > 0  # by far the most expensive term
            else torch.zeros_like(terms.reconstruction),
        )
        if terms.auxiliary is not None:
            default, given = terms.auxiliary_weight, self.auxiliary_weight
            losses["auxiliary"] = (default if given is None else given) * terms.auxiliary
        return losses


def linear_warmup(step: int, steps: int) -> float:
    """Linear from 0 at step 0 to 1 from step `steps` on."""
    return 1.0 if steps == 0 else min(1.0, step / steps)
