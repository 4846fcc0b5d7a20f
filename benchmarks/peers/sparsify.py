"""sparsify: the step of its trainer's loop, with its sign descent and its counters.

Its trainer reads a language model within its loop, so that the loop's lines for one batch of
activations stand here: unit norm, forward pass, loss, backward pass, projection, optimizer,
counters. Like it, they run at the matmul precision "high". Beyond ours it reads the loss back at
every step, which its log needs; its default optimizer is cheaper than Adam.
"""

from typing import Any

import torch
from torch import Tensor

from peers.absent import Absent, peer_module
from peers.setting import Setting


class SparsifyStep:
    """The body of `Trainer.fit` for a `SparseCoder`."""

    name = "sparsify"

    def __init__(self, setting: Setting) -> None:
        coder = peer_module("sparsify.sparse_coder", "eai-sparsify")
        config = peer_module("sparsify.config", "eai-sparsify")
        self.coder: Any = coder.SparseCoder(
            setting.width, config.SparseCoderConfig(num_latents=setting.latents, k=setting.k)
        )
        with torch.no_grad():
            self.coder.encoder.weight.copy_(setting.dictionary)
            self.coder.W_dec.copy_(setting.dictionary)
        self.optimizer = self._optimizer()
        self.since_fired = torch.zeros(setting.latents, dtype=torch.long)
        self.setting = setting

    def _optimizer(self) -> Any:
        try:
            wrapper = peer_module("schedulefree", "eai-sparsify").ScheduleFreeWrapper
            sign = peer_module("sparsify.sign_sgd", "eai-sparsify").SignSGD
        except AttributeError as error:
            raise Absent(f"sparsify has another optimizer by now ({error})") from error
        optimizer = wrapper(sign(list(self.coder.parameters()), lr=1e-4), momentum=0.95)
        optimizer.train()
        return optimizer

    def __call__(self) -> float:
        """Take a step; the loss before it."""
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            return self._step(self.setting.batch, self.setting.dead)
        finally:
            torch.set_float32_matmul_precision(before)

    def _step(self, x: Tensor, dead: Tensor | None) -> float:
        mask = None
        if dead is not None:
            self.since_fired[dead] = 10**8
            mask = self.since_fired > 10_000_000
        self.coder.set_decoder_norm_to_unit_norm()
        variance = (x - x.mean(0)).pow(2).sum()
        out = self.coder(x, dead_mask=mask, total_variance=variance)
        fired = torch.zeros_like(self.since_fired, dtype=torch.bool)
        fired[out.latent_indices.flatten()] = True
        loss = out.fvu + (0.0 if dead is None else 1 / 32) * out.auxk_loss
        value = float(out.fvu.detach())
        loss.backward()
        self.coder.remove_gradient_parallel_to_decoder_directions()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.since_fired += len(x)
        self.since_fired[fired] = 0
        return value

    @torch.no_grad()
    def reconstruction(self) -> Tensor:
        """Reconstruction of the batch by the present weights."""
        return self.coder(self.setting.batch).sae_out
