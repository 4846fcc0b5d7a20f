"""SAELens: its trainer's step, with its Adam, its gradient clipping and its counters.

Beyond ours it sums how often each latent fired, clips the gradient's norm, and scales latents by
their decoder rows' norms where ours keeps the rows at norm 1. Its count of dead latents cannot be
switched off; as long as none is dead, its auxiliary loss costs nothing.
"""

import torch
from torch import Tensor

from peers.absent import peer_module
from peers.setting import Setting


class SAELensStep:
    """`SAETrainer.step` of a `TopKTrainingSAE`."""

    name = "SAELens"

    def __init__(self, setting: Setting, fused: bool = False) -> None:
        saes = peer_module("sae_lens.saes.topk_sae", "sae-lens")
        config = peer_module("sae_lens.config", "sae-lens")
        trainer = peer_module("sae_lens.training.sae_trainer", "sae-lens")
        sae = saes.TopKTrainingSAE(
            saes.TopKTrainingSAEConfig(
                d_in=setting.width, d_sae=setting.latents, k=setting.k, device="cpu"
            )
        )
        with torch.no_grad():
            sae.W_dec.copy_(setting.dictionary)
            sae.W_enc.copy_(setting.dictionary.T)
        self.trainer = trainer.SAETrainer(
            config.SAETrainerConfig(
                total_training_samples=10**9,
                train_batch_size_samples=setting.rows,
                lr=1e-4,
                lr_end=1e-5,
            ),
            sae,
            iter(()),
        )
        if fused:
            for group in self.trainer.optimizer.param_groups:
                group["fused"], group["foreach"] = True, False
        self.setting = setting

    def __call__(self) -> float:
        """Take a step; the loss before it."""
        trainer = self.trainer
        if self.setting.dead is not None:
            trainer.n_forward_passes_since_fired[self.setting.dead] = 1e6
        loss = trainer.step(self.setting.batch).loss
        trainer.n_training_steps += 1
        return float(loss.detach())

    @torch.no_grad()
    def reconstruction(self) -> Tensor:
        """Reconstruction of the batch by the present weights."""
        return self.trainer.sae(self.setting.batch)
