"""One step of training as `palinka fit` takes it, without the loop around it."""

from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from palinka.autoencoders import Autoencoder
from palinka.training import SparseAutoencoderModule
from process import FitSettings


class PalinkaStep:
    """Calls what Lightning calls of the module, in its order; logging is left out.

    What `palinka fit` sets for its process is set while a step runs, so that other sides of a
    comparison have PyTorch as their users have it.

    Args:
        autoencoder: What is trained.
        batch: The activations of every step, `(rows, width)`.
        autocast: What `trainer.precision` of `bf16-mixed` multiplies in; None for `32-true`.
        dead: Latents that are made to count as dead before each step.
        settings: Of the module; without others, no penalties.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        batch: Tensor,
        autocast: torch.dtype | None = None,
        dead: Tensor | None = None,
        **settings: Any,
    ) -> None:
        self.module = SparseAutoencoderModule(
            autoencoder,
            optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-4, fused=True),
            **{"sparsity_weight": 0.0, "decorrelation_weight": 0.0, **settings},
        ).train()
        # What of a trainer the module asks for in a step that is not logged.
        self.trainer: Any = SimpleNamespace(global_step=0, log_every_n_steps=0)
        self.module.trainer = self.trainer
        self.optimizer: Any = self.module.configure_optimizers()
        self.settings = FitSettings(autoencoder)
        self.batch = batch
        self.autocast = autocast
        self.dead = dead

    def __call__(self) -> float:
        """Take a step; the loss before it."""
        with self.settings.at_work():
            return self._step()

    def _step(self) -> float:
        if self.dead is not None:
            self.module.firing.tokens_since[self.dead] = self.module.dead_after_tokens
        self.optimizer.zero_grad()
        with self.precision():
            loss = self.module.training_step(self.batch, 0)
        loss.backward()
        self.module.on_after_backward()
        self.module.on_before_optimizer_step(self.optimizer)
        self.optimizer.step()
        self.module.after_optimizer_step()
        self.trainer.global_step += 1
        return float(loss.detach())

    def precision(self) -> AbstractContextManager[Any]:
        """Context in which Lightning's precision plugin runs the step."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.batch.device.type, dtype=self.autocast)

    @torch.no_grad()
    def reconstruction(self) -> Tensor:
        """Reconstruction of the batch by the present weights."""
        return self.module(self.batch).reconstruction
