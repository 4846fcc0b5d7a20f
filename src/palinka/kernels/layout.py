"""How the rows and the latents of one step are divided over the processes."""

from typing import NamedTuple

import torch.distributed as dist

from palinka.kernels.collectives import processes


class Layout(NamedTuple):
    """Who holds what this process does not; None where it holds all there is."""

    rows: dist.ProcessGroup | None = None
    """Processes with the other rows of the batch, for the same latents."""
    latents: dist.ProcessGroup | None = None
    """Processes with the other latents, for the same rows."""

    def own(self, latent_dim: int) -> slice:
        """Which of all latents this process holds."""
        width = latent_dim // processes(self.latents)
        first = 0 if self.latents is None else dist.get_rank(self.latents) * width
        return slice(first, first + width)


WHOLE = Layout()
