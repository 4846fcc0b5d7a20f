"""How long ago each latent last fired, counted in tokens."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import Buffer

from palinka.kernels.collectives import minimum_over, processes
from palinka.kernels.layout import WHOLE, Layout
from palinka.kernels.sparse_latents import Latents, SparseLatents


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
    def update(self, latents: Latents, layout: Layout = WHOLE) -> None:
        """Take the own latents of one step, `(tokens, latents)`, as many on every process."""
        self.tokens_since.add_(len(latents) * processes(layout.rows))
        own = self.tokens_since[layout.own(len(self.tokens_since))]
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
