"""Losses, one function per architecture."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from palinka.autoencoders import (
    Autoencoder,
    AutoencoderOutput,
    BatchTopKAutoencoder,
    GatedAutoencoder,
    JumpReLUAutoencoder,
    MatryoshkaAutoencoder,
    ReLUAutoencoder,
    SparseOutput,
    TopKAutoencoder,
)
from palinka.autoencoders.distributed import (
    UNSHARDED,
    Sharding,
    gather_rows,
    reduce_from_tensor_parallel,
    world_size,
)
from palinka.autoencoders.jumprelu import heaviside_ste, jump_relu
from palinka.autoencoders.kernels import (
    batch_threshold,
    keep_top_k,
    sparse_squared_covariance,
    squared_covariance,
)
from palinka.autoencoders.kernels.dispatch import statistics_dtype
from palinka.autoencoders.kernels.topk import Latents, SparseLatents
from palinka.autoencoders.untied import UntiedAutoencoder
from palinka.errors import InputError


def reconstruction_loss(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Mean over all elements of the squared error.

    Args:
        reconstruction: `(…, input_dim)`.
        target: Of the same shape.

    Returns:
        A scalar, in float32 or better.
    """
    dtype = statistics_dtype(target.dtype)
    return (reconstruction.to(dtype) - target.to(dtype)).square().mean()


def normalized_loss(
    reconstruction: Tensor, target: Tensor, group: dist.ProcessGroup | None = None
) -> Tensor:
    """Mean squared error as a fraction of that of always giving the mean row of the batch.

    Args:
        reconstruction: `(…, input_dim)`.
        target: Of the same shape.
        group: Processes whose rows count as one batch; each must hold equally many.

    Returns:
        A scalar, in float32 or better. The mean over the processes is that of the batch.
    """
    return reconstruction_loss(reconstruction, target) / spread(target, group)


@torch.no_grad()
def spread(target: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Mean squared error of always giving the mean row of the batch; 1 where all rows are equal.

    Args:
        target: `(…, input_dim)`.
        group: Processes whose rows count as one batch; each must hold equally many.

    Returns:
        A scalar, in float32 or better, without a graph.
    """
    rows = target.reshape(-1, target.shape[-1]).to(statistics_dtype(target.dtype))
    mean = rows.mean(dim=0)
    within = (rows - mean).square().mean()
    parts, _ = gather_rows(torch.cat([mean, within[None]])[None], group)
    means, within = parts[:, :-1], parts[:, -1].mean()
    error = within + (means - means.mean(dim=0)).square().mean()
    return error.where(error != 0, 1.0)


def sparsity_loss(latents: Latents, slices: dist.ProcessGroup | None = None) -> Tensor:
    """Mean over all elements of the absolute value.

    Args:
        latents: `(…, latent_dim)`.
        slices: Processes that hold the other latents of the same rows, as many each.

    Returns:
        A scalar, in float32 or better.
    """
    dtype = statistics_dtype(latents.dtype)
    if isinstance(latents, SparseLatents):
        return latents.values.abs().sum(dtype=dtype) / (len(latents) * latents.width)
    mean = latents.abs().mean(dtype=dtype)
    return reduce_from_tensor_parallel(mean / world_size(slices), slices)


def decorrelation_loss(
    latents: Latents,
    group: dist.ProcessGroup | None = None,
    slices: dist.ProcessGroup | None = None,
) -> Tensor:
    """Sum over all ordered pairs of different latents of their squared unbiased covariance.

    Args:
        latents: `(…, latent_dim)`; every position but the last dimension's is one observation.
        group: Processes whose latents count as one batch, with gradients for data-parallel
            training, which averages them; every process must hold equally many.
        slices: Processes that hold the other latents of the same rows.

    Returns:
        A scalar, in float32 or better.

    Raises:
        InputError: If there are fewer than two observations.
    """
    if isinstance(latents, SparseLatents):
        return sparse_squared_covariance(latents, group)
    return squared_covariance(latents.reshape(-1, latents.shape[-1]), group, slices)


@dataclass(frozen=True)
class Step:
    """One batch, and what is known of the run so far.

    Attributes:
        x: What the autoencoder reads, `(rows, input_dim)`.
        target: What it is to give, `(rows, output_dim)`: `x` itself, but for a transcoder.
        sharding: The processes whose batches count as one, and those with the other latents.
        dead: Tells which latents have not fired for long, `(latent_dim,)`, bool; on several
            processes all of them must ask. None if nobody knows.
        auxiliary_k: How many dead latents may try themselves on a row; None for half the width.
    """

    x: Tensor
    target: Tensor
    sharding: Sharding = UNSHARDED
    dead: Callable[[], Tensor] | None = None
    auxiliary_k: int | None = None


@dataclass(frozen=True)
class Terms:
    """What an architecture's loss is made of, without weights; scalars in float32 or better.

    Attributes:
        output: Latents and reconstruction of the batch, with a graph.
        reconstruction: How far the reconstruction is off.
        sparsity: What `sparsity_weight` is multiplied with.
        auxiliary: What `auxiliary_weight` is multiplied with; None where there is no such term.
        auxiliary_weight: What the architecture's paper weighs it with, where nobody says otherwise.
    """

    output: AutoencoderOutput | SparseOutput
    reconstruction: Tensor
    sparsity: Tensor
    auxiliary: Tensor | None = None
    auxiliary_weight: float = 1 / 32


@singledispatch
def terms(autoencoder: Autoencoder, step: Step) -> Terms:
    """The terms of an architecture's loss; this form serves all that register none of their own.

    Args:
        autoencoder: Whose class chooses.
        step: The batch.
    """
    return terms_of(autoencoder.forward_sparse(step.x), step)


def terms_of(output: AutoencoderOutput | SparseOutput, step: Step) -> Terms:
    """Mean squared error and mean absolute latent of what an autoencoder gave."""
    return Terms(
        output=output,
        reconstruction=reconstruction_loss(output.reconstruction, step.target),
        sparsity=sparsity_loss(output.latents, step.sharding.latents),
    )


def has_own_terms(autoencoder: Autoencoder) -> bool:
    """Whether an architecture minimizes something else than the default form."""
    return terms.dispatch(type(autoencoder)) is not terms.dispatch(Autoencoder)


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


@terms.register
def topk_terms(autoencoder: TopKAutoencoder, step: Step) -> Terms:
    """Normalized mean squared error and AuxK; the paper has no penalty, so `sparsity_weight` 0.

    The paper divides by the error of predicting the mean activation. Its code takes that of rows
    seen before the first step, and for AuxK that of the batch; here both are the batch's.

    Source:
        Gao et al. (2024), Scaling and evaluating sparse autoencoders, arXiv 2406.04093, sections
        2.3 and 3.1 and appendix A.2.
    """
    return _terms(autoencoder, None, autoencoder.forward_sparse(step.x), step)


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
    threshold = batch_threshold(values, autoencoder.k, step.sharding.rows)
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
    return normalized_loss(mended, residual, step.sharding.rows)


def _candidates(autoencoder: UntiedAutoencoder, latents: Tensor, x: Tensor) -> Tensor:
    """What some latents, `(some,)`, make of activations `(…, input_dim)`, before any choice."""
    if autoencoder.subtract_decoder_bias:
        x = x - autoencoder.decoder_bias
    bias = autoencoder.encoder.bias.index_select(0, latents)
    return functional.linear(x, autoencoder.encoder.weight.index_select(0, latents), bias).relu()


def _terms(
    autoencoder: UntiedAutoencoder,
    values: Tensor | None,
    output: AutoencoderOutput | SparseOutput,
    step: Step,
) -> Terms:
    return Terms(
        output=output,
        reconstruction=normalized_loss(output.reconstruction, step.target, step.sharding.rows),
        sparsity=sparsity_loss(output.latents),
        auxiliary=auxiliary_loss(autoencoder, values, output.reconstruction, step),
    )


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
        reconstruction=torch.stack(errors).sum() / spread(step.target, step.sharding.rows),
        sparsity=sparsity_loss(latents),
        auxiliary=auxiliary_loss(autoencoder, values, whole, step),
    )


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
        active = heaviside_ste(values, threshold, autoencoder.bandwidth)
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


class Losses(NamedTuple):
    """The terms of one step's loss, with their weights; None where an architecture has none."""

    reconstruction: Tensor
    sparsity: Tensor
    decorrelation: Tensor
    auxiliary: Tensor | None = None

    @property
    def named(self) -> dict[str, Tensor]:
        """Those that there are."""
        return {name: term for name, term in self._asdict().items() if term is not None}

    @property
    def total(self) -> Tensor:
        """What is minimized."""
        return sum(self.named.values(), start=torch.zeros_like(self.reconstruction))


@dataclass(frozen=True)
class Objective:
    """Weights of the penalties, and the optimizer steps over which each grows from zero.

    Raises:
        InputError: If one of them is negative or no number.
    """

    sparsity_weight: float
    decorrelation_weight: float
    sparsity_warmup_steps: int
    decorrelation_warmup_steps: int
    auxiliary_weight: float | None = None
    """None for what the architecture's paper has."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is None and name == "auxiliary_weight":
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
                raise InputError(f"{name} must be at least 0, got {value!r}")

    def __call__(self, terms: Terms, step: int, sharding: Sharding = UNSHARDED) -> Losses:
        """The losses of a batch after `step` optimizer steps.

        Args:
            terms: What the architecture makes of the batch.
            step: Number of optimizer steps taken so far.
            sharding: The processes whose batches count as one, and those with the other latents.
        """
        sparsity = self.sparsity_weight * linear_warmup(step, self.sparsity_warmup_steps)
        decorrelation = self.decorrelation_weight * linear_warmup(
            step, self.decorrelation_warmup_steps
        )
        auxiliary = (
            terms.auxiliary_weight if self.auxiliary_weight is None else self.auxiliary_weight
        )
        latents = terms.output.latents
        return Losses(
            reconstruction=terms.reconstruction,
            sparsity=sparsity * terms.sparsity,
            # By far the most expensive term, so not for nothing.
            decorrelation=decorrelation
            * decorrelation_loss(latents, sharding.rows, sharding.latents)
            if decorrelation > 0
            else torch.zeros_like(terms.reconstruction),
            auxiliary=None if terms.auxiliary is None else auxiliary * terms.auxiliary,
        )


def linear_warmup(step: int, steps: int) -> float:
    """Linear from 0 at step 0 to 1 from step `steps` on."""
    return 1.0 if steps == 0 else min(1.0, step / steps)
