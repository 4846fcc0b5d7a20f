"""Metrics of reconstruction and sparsity, dead latents, and NaN or Inf activations."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import Buffer, functional
from torchmetrics import Metric

from palinka.autoencoders import AutoencoderOutput, SparseOutput
from palinka.autoencoders import distributed as parallel
from palinka.autoencoders.base import FullPrecisionState
from palinka.autoencoders.distributed import UNSHARDED, Group, Sharding, all_reduce
from palinka.autoencoders.kernels.sparse import Latents, SparseLatents
from palinka.errors import InputError
from palinka.training.losses import Objective, decorrelation_loss


class NaNDetector(nn.Module):
    """Count of batches with NaN or Inf, kept on the device; only `check` waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.batches = Buffer(torch.zeros((), dtype=torch.int64), persistent=False)

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Add one batch; a sum is finite only if every summand is."""
        self.batches.add_(~torch.isfinite(x.sum()))

    def check(self, group: Group = None) -> None:
        """Raise on every process if any process had such a batch."""
        batches = int(all_reduce(self.batches.clone(), group))
        if batches:
            hint = "check the language model at this site, or store a wider dtype"
            raise InputError(f"{batches} batches of activations hold NaN or Inf: {hint}")


class DeadLatentTracker(nn.Module):
    """Tokens of the whole run since each latent last fired; part of a checkpoint.

    Every process counts all processes' tokens but only its own latents' firing: the run's count
    is the minimum over the processes, which `synchronize` takes when it is needed.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.tokens_since = Buffer(torch.zeros(latent_dim, dtype=torch.int64))

    @torch.no_grad()
    def update(self, latents: Latents, sharding: Sharding = UNSHARDED) -> None:
        """Add this process's latents of one step, `(tokens, latents)`, as many on every process."""
        self.tokens_since.add_(len(latents) * parallel.world_size(sharding.rows))
        fired = latents.fired() if isinstance(latents, SparseLatents) else (latents != 0).any(dim=0)
        self.tokens_since[sharding.own(len(self.tokens_since))].masked_fill_(fired.bool(), 0)

    def synchronize(self, group: Group = None) -> None:
        """Take the minimum over the processes; a collective."""
        all_reduce(self.tokens_since, group, dist.ReduceOp.MIN)

    def dead(self, after_tokens: int) -> Tensor:
        """Mask of latents without firing in the last `after_tokens` tokens, `(latent_dim,)`."""
        return self.tokens_since >= after_tokens


class ReconstructionMetrics(FullPrecisionState, Metric):
    """Metrics of reconstructions of width `input_dim`.

    - `mse`: mean over elements of the squared error.
    - `fvu`: the squared error as a fraction of the squared distance of the data to its mean
      vector; NaN for data without variance.
    - `explained_variance`: `1 - fvu`.
    - `fvu_legacy`: the squared error as a fraction of the squared distance of the data to zero,
      as in some older papers; NaN for data that is zero throughout.
    - `cosine`: mean over tokens of the cosine of activation and reconstruction, 0 where either
      is a zero vector.
    """

    full_state_update = False
    sums: Tensor
    moments: Tensor

    def __init__(self, input_dim: int) -> None:
        super().__init__()
        # Sums of squared errors, squared norms and cosines.
        self.add_state("sums", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")
        # Count of rows, their squared distance to their mean, and the mean. Without a reduction
        # these arrive stacked by process; `compute` merges them.
        moments = torch.zeros(2 + input_dim, dtype=torch.float64)
        self.add_state("moments", moments, dist_reduce_fx=None)

    def update(self, reconstruction: Tensor, target: Tensor, zero: Tensor | None = None) -> None:
        """Add one batch, both `(…, input_dim)`, and the data's zero after centering."""
        target = target.detach().double().reshape(-1, target.shape[-1])
        reconstruction = reconstruction.detach().double().reshape(target.shape)
        if not len(target):
            return
        error = (reconstruction - target).square().sum()
        norm = (target if zero is None else target - zero).square().sum()
        cosine = functional.cosine_similarity(reconstruction, target, eps=1e-300).sum()
        self.sums += torch.stack([error, norm, cosine])
        mean = target.mean(dim=0)
        distance = (target - mean).square().sum()
        moments = torch.cat([torch.stack([distance.new_tensor(len(target)), distance]), mean])
        self.moments = _merge(torch.stack([self.moments, moments]))

    def compute(self) -> dict[str, Tensor]:
        """Values over all batches of all processes."""
        error, norm, cosine = self.sums
        width = self.moments.shape[-1]
        rows, distance = _merge(self.moments.reshape(-1, width))[:2]
        fvu, legacy = (torch.where(of > 0, error / of, torch.nan) for of in (distance, norm))
        return {
            "mse": error / (rows * (width - 2)),
            "fvu": fvu,
            "explained_variance": 1.0 - fvu,
            "fvu_legacy": legacy,
            "cosine": cosine / rows,
        }


def _merge(moments: Tensor) -> Tensor:
    rows, distance = moments[:, :2].T.contiguous()
    mean = moments[:, 2:]
    total = rows.sum()
    merged = (rows[:, None] * mean).sum(dim=0) / total.clamp_min(1.0)
    between = (rows * (mean - merged).square().sum(dim=1)).sum()
    return torch.cat([torch.stack([total, distance.sum() + between]), merged])


class SparsityMetrics(FullPrecisionState, Metric):
    """Metrics of `latent_dim` latents.

    - `l0`: mean number of non-zero latents per token.
    - `l1`: mean over tokens of the sum of absolute values.
    - `dead`: share of the latents that fired on no token.
    - `density`: for each latent, the share of the tokens on which it fired, `(latent_dim,)`.
    """

    full_state_update = False
    rows: Tensor
    absolute_sum: Tensor
    fired: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        for name in ("rows", "absolute_sum"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("fired", torch.zeros(latent_dim, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, latents: Latents, sharding: Sharding = UNSHARDED) -> None:
        """Add one batch of this process's latents, `(…, latents)`."""
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
        """Values over all batches of all processes."""
        return {
            "l0": self.fired.sum() / self.rows,
            "l1": self.absolute_sum / self.rows,
            "dead": (self.fired == 0).double().mean(),
            "density": self.fired / self.rows,
        }


class Evaluation(FullPrecisionState):
    """Metrics and penalties of one pass over a split, exact however it is cut into batches.

    Only the decorrelation penalty belongs to a batch, that of all processes: it is the mean over
    the batches, weighted by their degrees of freedom.
    """

    def __init__(self, input_dim: int, latent_dim: int) -> None:
        super().__init__()
        self.reconstruction = ReconstructionMetrics(input_dim)
        self.sparsity = SparsityMetrics(latent_dim)
        # Sums of penalty times freedom, and of freedom.
        self.penalty = Buffer(torch.zeros(2, dtype=torch.float64), persistent=False)
        self.latent_dim = latent_dim

    def reset(self) -> None:
        """Start a new pass."""
        self.reconstruction.reset()
        self.sparsity.reset()
        self.penalty.zero_()

    def update(
        self, x: Tensor, output: AutoencoderOutput, decorrelation: bool,
        sharding: Sharding = UNSHARDED, zero: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Add one batch of targets `(rows, input_dim)`; `zero` is that of `ReconstructionMetrics`.

        `decorrelation` measures the penalty, too, which costs more than the rest.
        """
        self.reconstruction.update(output.reconstruction, x, zero)
        self.sparsity.update(output.latents, sharding)
        if decorrelation:
            # Every process measures the whole batch, so that their mean is the value of each.
            latents = parallel.gather_unequal_rows(output.latents, sharding.rows)
            if len(latents) > 1:
                penalty = decorrelation_loss(latents, slices=sharding.latents).detach().double()
                self.penalty[0] += penalty * (len(latents) - 1)
                self.penalty[1] += len(latents) - 1

    def compute(self, objective: Objective) -> dict[str, Tensor]:
        """Scalars by name; the losses have their full weights, without warm-up."""
        reconstruction = self.reconstruction.compute()
        sparsity = self.sparsity.compute()
        penalty, freedom = all_reduce(self.penalty.clone(), parallel.world())
        losses = {
            "reconstruction": reconstruction["mse"],
            "sparsity": objective.sparsity_weight * sparsity["l1"] / self.latent_dim,
            "decorrelation": objective.decorrelation_weight * (penalty / freedom.clamp_min(1.0)),
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
    """Metrics of one batch `(rows, input_dim)` over all processes, by grouped name."""
    reconstruction = ReconstructionMetrics(x.shape[-1]).to(x.device)
    reconstruction.update(output.reconstruction, x)
    sparsity = SparsityMetrics(latent_dim).to(x.device)
    sparsity.update(output.latents, sharding)
    found, of_latents = reconstruction.compute(), sparsity.compute()
    del found["fvu_legacy"]  # the data's zero is not at hand
    grouped = {f"reconstruction/{name}": value for name, value in found.items()}
    return grouped | {f"sparsity/{name}": of_latents[name] for name in ("l0", "l1")}
