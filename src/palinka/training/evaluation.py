"""Everything that is measured on a split of the data that is not trained on."""

import torch
from torch import Tensor, nn

from palinka.autoencoders import AutoencoderOutput, CompactOutput
from palinka.kernels.collectives import gather_unequal_rows
from palinka.kernels.layout import WHOLE, Layout
from palinka.training.losses import decorrelation_loss
from palinka.training.metrics import MeanPenalty, ReconstructionMetrics, SparsityMetrics
from palinka.training.objective import Objective


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
        layout: Layout = WHOLE,
        zero: Tensor | None = None,
    ) -> None:
        """Take one batch `(rows, input_dim)` and what the autoencoder made of it.

        Args:
            x: What the autoencoder saw.
            output: What it gave.
            decorrelation: Whether to measure that penalty, which costs more than the rest.
            layout: The processes with the other rows, of which each counts once, and with the
                other latents.
            zero: Where raw activations of zero lie for the autoencoder, `(input_dim,)`.
        """
        self.reconstruction.update(output.reconstruction, x, zero)
        self.sparsity.update(output.latents, layout)
        penalty, freedom = x.new_zeros(()), 0
        if decorrelation:
            # Every process takes in the whole batch, so that their mean is that of each.
            latents = gather_unequal_rows(output.latents, layout.rows)
            if len(latents) > 1:
                penalty = decorrelation_loss(latents, slices=layout.latents)
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
    x: Tensor, output: AutoencoderOutput | CompactOutput, latent_dim: int, layout: Layout = WHOLE
) -> dict[str, Tensor]:
    """The metrics of one batch `(rows, input_dim)` over all processes, by their grouped names."""
    reconstruction = ReconstructionMetrics(x.shape[-1]).to(x.device)
    reconstruction.update(output.reconstruction, x)
    sparsity = SparsityMetrics(latent_dim).to(x.device)
    sparsity.update(output.latents, layout)
    measured = reconstruction.compute() | sparsity.compute()
    return {
        **{
            f"reconstruction/{name}": measured[name]
            for name in ("mse", "fvu", "explained_variance", "cosine")
        },
        **{f"sparsity/{name}": measured[name] for name in ("l0", "l1")},
    }
