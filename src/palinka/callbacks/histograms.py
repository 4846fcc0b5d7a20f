"""Histograms of the latents, after every validation."""

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import functional

from palinka.callbacks.trained import trained

# Enough latents for a histogram; all pairs of a large dictionary would take longer than an epoch.
SAMPLE = 2048


class FeatureHistograms(Callback):
    """Writes two histograms to TensorBoard after every validation, one value per latent.

    - `latents/log10_firing_frequency`: of the latents that fired on the validation split.
    - `latents/nearest_cosine`: the largest cosine of a latent's direction with another's, for
      at most 2,048 latents drawn evenly from the dictionary; of one divided over devices, within
      the first device's slice.
    """

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write both, on the process that logs."""
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        for one in trained(trainer, pl_module):
            # Reduced over processes and kept since the module logged it: no collective here.
            density = one.module.evaluation.sparsity.compute()["density"]
            fired = density[density > 0]
            dictionary = one.module.autoencoder.dictionary.detach()
            if isinstance(dictionary, DTensor):  # the other processes are not here to be asked
                dictionary = dictionary.to_local()
            for writer in one.writers:
                step = trainer.global_step
                if len(fired):
                    writer.add_histogram("latents/log10_firing_frequency", fired.log10(), step)
                cosine = nearest_cosine(dictionary)
                writer.add_histogram("latents/nearest_cosine", cosine, step)


def nearest_cosine(dictionary: Tensor, sample: int = SAMPLE) -> Tensor:
    """The largest cosine of each direction with another one of the dictionary.

    Args:
        dictionary: Directions, `(latents, width)`.
        sample: For at most so many latents, taken at even steps.

    Returns:
        Cosines, `(min(sample, latents),)`; of a single latent, NaN.
    """
    directions = functional.normalize(dictionary.float(), dim=1)
    latents = len(directions)
    chosen = torch.linspace(0, latents - 1, min(sample, latents), device=directions.device).long()
    cosines = directions[chosen] @ directions.T
    cosines[torch.arange(len(chosen), device=cosines.device), chosen] = -torch.inf
    nearest = cosines.amax(dim=1)
    return nearest.where(nearest.isfinite(), torch.nan)
