"""Metrics of reconstruction and sparsity, and dead latents."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import Buffer, functional
from torchmetrics import Metric

from palinka.autoencoders import AutoencoderOutput, SparseOutput
from palinka.autoencoders.distributed import (
    UNSHARDED,
    Sharding,
    gather_unequal_rows,
    minimum_over,
    world_size,
)
from palinka.autoencoders.kernels.dispatch import FullPrecisionState
from palinka.autoencoders.kernels.topk import Latents, SparseLatents
from palinka.training.losses import Objective, decorrelation_loss


class FiringClock(nn.Module):
    """Tokens of the whole run since each latent last fired; part of a checkpoint.

    Every process counts all processes' tokens but sees only its own latents fire. The minimum
    over the processes is then the run's count, so that nothing is communicated until somebody
    asks.

    Args:
        latent_dim: Number of latents.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.tokens_since = Buffer(torch.zeros(latent_dim, dtype=torch.int64))

    @torch.no_grad()
    def update(self, latents: Latents, sharding: Sharding = UNSHARDED) -> None:
        """Take the own latents of one step, `(tokens, latents)`, as many on every process."""
        self.tokens_since.add_(len(latents) * world_size(sharding.rows))
        own = self.tokens_since[sharding.own(len(self.tokens_since))]
        if isinstance(latents, SparseLatents):
            own.masked_fill_(latents.fired() > 0, 0)
        else:
            own.masked_fill_((latents != 0).any(dim=0), 0)

    def synchronize(self, group: dist.ProcessGroup | None = None) -> None:
        """Make the counts those of the whole run; every process must call this."""
        minimum_over(self.tokens_since, group)

    def dead(self, after_tokens: int) -> Tensor:
        """Which latents have not fired in the last `after_tokens` tokens, `(latent_dim,)`."""
        return self.tokens_since >= after_tokens


class ReconstructionMetrics(FullPrecisionState, Metric):
    """`mse`, `fvu`, `explained_variance`, `fvu_legacy` and `cosine` of reconstructions.

    - `mse`: mean over elements of the squared error.
    - `fvu`: the squared error as a fraction of the squared distance of the data to its mean
      vector; NaN for data without variance.
    - `explained_variance`: `1 - fvu`.
    - `fvu_legacy`: the squared error as a fraction of the squared distance of the data to zero,
      as in some older papers; NaN for data that is zero throughout.
    - `cosine`: mean over tokens of the cosine of activation and reconstruction, 0 where either
      is a zero vector.

    Args:
        input_dim: Width of the activations.
    """

    full_state_update = False

    rows: Tensor
    squared_error: Tensor
    squared_norm: Tensor
    cosine_sum: Tensor
    mean: Tensor
    squared_distance: Tensor

    def __init__(self, input_dim: int) -> None:
        super().__init__()
        zero = torch.zeros((), dtype=torch.float64)
        self.add_state("squared_error", zero.clone(), dist_reduce_fx="sum")
        self.add_state("squared_norm", zero.clone(), dist_reduce_fx="sum")
        self.add_state("cosine_sum", zero.clone(), dist_reduce_fx="sum")
        # Without a reduction these arrive stacked by process; `compute` merges them.
        self.add_state("rows", zero.clone(), dist_reduce_fx=None)
        self.add_state("mean", torch.zeros(input_dim, dtype=torch.float64), dist_reduce_fx=None)
        self.add_state("squared_distance", zero.clone(), dist_reduce_fx=None)

    def update(self, reconstruction: Tensor, target: Tensor, zero: Tensor | None = None) -> None:
        """Take one batch of reconstructions and targets, both `(…, input_dim)`.

        Args:
            reconstruction: The reconstructions.
            target: What they should be.
            zero: Where the data's zero lies, `(input_dim,)`, if it has been shifted.
        """
        target = target.detach().double().reshape(-1, target.shape[-1])
        reconstruction = reconstruction.detach().double().reshape(target.shape)
        if not len(target):
            return
        self.squared_error += (reconstruction - target).square().sum()
        self.squared_norm += (target if zero is None else target - zero).square().sum()
        self.cosine_sum += functional.cosine_similarity(reconstruction, target, eps=1e-300).sum()
        batch_mean = target.mean(dim=0)
        self.rows, self.mean, self.squared_distance = _merge(
            torch.stack([self.rows, self.rows.new_tensor(len(target))]),
            torch.stack([self.mean, batch_mean]),
            torch.stack([self.squared_distance, (target - batch_mean).square().sum()]),
        )

    def compute(self) -> dict[str, Tensor]:
        """The values over everything that was taken in, on all processes."""
        rows, mean, squared_distance = _merge(
            self.rows.reshape(-1),
            self.mean.reshape(-1, self.mean.shape[-1]),
            self.squared_distance.reshape(-1),
        )
        fvu = torch.where(squared_distance > 0, self.squared_error / squared_distance, torch.nan)
        return {
            "mse": self.squared_error / (rows * mean.shape[-1]),
            "fvu": fvu,
            "explained_variance": 1.0 - fvu,
            "fvu_legacy": torch.where(
                self.squared_norm > 0, self.squared_error / self.squared_norm, torch.nan
            ),
            "cosine": self.cosine_sum / rows,
        }


class SparsityMetrics(FullPrecisionState, Metric):
    """`l0`, `l1`, `dead` and `density` of latents.

    - `l0`: mean number of non-zero latents per token.
    - `l1`: mean over tokens of the sum of absolute values.
    - `dead`: share of the latents that fired on no token.
    - `density`: for each latent, the share of the tokens on which it fired, `(latent_dim,)`.

    Args:
        latent_dim: Number of latents.
    """

    full_state_update = False

    rows: Tensor
    absolute_sum: Tensor
    fired: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        zero = torch.zeros((), dtype=torch.float64)
        self.add_state("rows", zero.clone(), dist_reduce_fx="sum")
        self.add_state("absolute_sum", zero.clone(), dist_reduce_fx="sum")
        self.add_state("fired", torch.zeros(latent_dim, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, latents: Latents, sharding: Sharding = UNSHARDED) -> None:
        """Take one batch of this process's latents, `(…, latents)`."""
        latents = latents.detach()
        if isinstance(latents, SparseLatents):
            values, fired = latents.values, latents.fired()
        else:
            values = latents = latents.reshape(-1, latents.shape[-1])
            fired = (latents != 0).sum(dim=0)
        own = sharding.own(len(self.fired))
        if own.start == 0:  # of the processes with the same rows, one counts them
            self.rows += len(latents)
        self.absolute_sum += values.abs().sum(dtype=torch.float64)
        self.fired[own] += fired

    def compute(self) -> dict[str, Tensor]:
        """The four values over everything that was taken in, on all processes."""
        return {
            "l0": self.fired.sum() / self.rows,
            "l1": self.absolute_sum / self.rows,
            "dead": (self.fired == 0).double().mean(),
            "density": self.fired / self.rows,
        }


class MeanPenalty(FullPrecisionState, Metric):
    """Mean of a penalty that belongs to a whole batch, weighted by degrees of freedom.

    Zero where nothing was taken in.
    """

    full_state_update = False

    weighted_sum: Tensor
    freedom: Tensor

    def __init__(self) -> None:
        super().__init__()
        zero = torch.zeros((), dtype=torch.float64)
        self.add_state("weighted_sum", zero.clone(), dist_reduce_fx="sum")
        self.add_state("freedom", zero.clone(), dist_reduce_fx="sum")

    def update(self, penalty: Tensor, freedom: int) -> None:
        """Take the penalty of one batch, a scalar, and its degrees of freedom."""
        self.weighted_sum += penalty.detach().double() * freedom
        self.freedom += freedom

    def compute(self) -> Tensor:
        """The mean over everything that was taken in, on all processes."""
        return self.weighted_sum / self.freedom.clamp_min(1.0)


def _merge(rows: Tensor, mean: Tensor, squared_distance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Counts, means and squared distances of parts `(parts, …)` to those of the whole."""
    total = rows.sum()
    merged = (rows[:, None] * mean).sum(dim=0) / total.clamp_min(1.0)
    between = (rows * (mean - merged).square().sum(dim=1)).sum()
    return total, merged, squared_distance.sum() + between


class Evaluation(nn.Module):
    """Metrics and penalties of one pass over a split, exact however it is cut into batches.

    Only the decorrelation penalty belongs to a batch, as it does in training, and to that of all
    processes: its mean over the batches, weighted by their degrees of freedom, is given. Batches
    of one row have none.

    Args:
        input_dim: Width of the activations.
        latent_dim: Number of latents.
    """

    def __init__(self, input_dim: int, latent_dim: int) -> None:
        super().__init__()
        self.reconstruction = ReconstructionMetrics(input_dim)
        self.sparsity = SparsityMetrics(latent_dim)
        self.decorrelation = MeanPenalty()
        self.latent_dim = latent_dim

    def reset(self) -> None:
        """Forget everything."""
        self.reconstruction.reset()
        self.sparsity.reset()
        self.decorrelation.reset()

    def update(
        self,
        x: Tensor,
        output: AutoencoderOutput,
        decorrelation: bool,
        sharding: Sharding = UNSHARDED,
        zero: Tensor | None = None,
    ) -> None:
        """Take one batch `(rows, input_dim)` and what the autoencoder made of it.

        Args:
            x: What the autoencoder saw.
            output: What it gave.
            decorrelation: Whether to measure that penalty, which costs more than the rest.
            sharding: The processes with the other rows, of which each counts once, and with the
                other latents.
            zero: Where raw activations of zero lie for the autoencoder, `(input_dim,)`.
        """
        self.reconstruction.update(output.reconstruction, x, zero)
        self.sparsity.update(output.latents, sharding)
        penalty, freedom = x.new_zeros(()), 0
        if decorrelation:
            # Every process takes in the whole batch, so that their mean is that of each.
            latents = gather_unequal_rows(output.latents, sharding.rows)
            if len(latents) > 1:
                penalty = decorrelation_loss(latents, slices=sharding.latents)
                freedom = len(latents) - 1
        self.decorrelation.update(penalty, freedom)

    def compute(self, objective: Objective) -> dict[str, Tensor]:
        """Every scalar by its name, the losses with their full weights."""
        reconstruction = self.reconstruction.compute()
        sparsity = self.sparsity.compute()
        losses = {
            "reconstruction": reconstruction["mse"],
            "sparsity": objective.sparsity_weight * sparsity["l1"] / self.latent_dim,
            "decorrelation": objective.decorrelation_weight * self.decorrelation.compute(),
        }
        return {
            **reconstruction,
            **{name: sparsity[name] for name in ("l0", "l1", "dead")},
            "loss/total": torch.stack(list(losses.values())).sum(),
            **{f"loss/{name}": value for name, value in losses.items()},
        }


def measure_batch(
    x: Tensor,
    output: AutoencoderOutput | SparseOutput,
    latent_dim: int,
    sharding: Sharding = UNSHARDED,
) -> dict[str, Tensor]:
    """The metrics of one batch `(rows, input_dim)` over all processes, by their grouped names."""
    reconstruction = ReconstructionMetrics(x.shape[-1]).to(x.device)
    reconstruction.update(output.reconstruction, x)
    sparsity = SparsityMetrics(latent_dim).to(x.device)
    sparsity.update(output.latents, sharding)
    measured = reconstruction.compute() | sparsity.compute()
    return {
        **{
            f"reconstruction/{name}": measured[name]
            for name in ("mse", "fvu", "explained_variance", "cosine")
        },
        **{f"sparsity/{name}": measured[name] for name in ("l0", "l1")},
    }
