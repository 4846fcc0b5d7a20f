"""Write latents to disk."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors.torch import save_file
from torch import Tensor

from palinka.errors import InputError


class LatentWriter(Callback):
    """Write the non-zero latents of every predicted batch to a safetensors file.

    The files are `<log_dir>/latents/rank0-batch000000.safetensors` and so on. Each holds, for
    the `n` non-zero latents of the batch, `token` and `latent` (int32, `(n,)`: the row in the
    batch, the index of the latent) and `value` (float32, `(n,)`), and in `shape` the tokens
    and latents of the batch.
    """

    def on_predict_start(self, trainer: Trainer, *_: Any) -> None:
        """Make the folder; raise early without a logger."""
        if trainer.log_dir is None:
            raise InputError("predict writes latents to the log folder: leave trainer.logger out")
        self._folder = Path(trainer.log_dir) / "latents"
        self._folder.mkdir(parents=True, exist_ok=True)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        outputs: Tensor,
        batch: Any,
        batch_idx: int,
        *_: Any,
    ) -> None:
        """Write one batch."""
        token, latent = outputs.nonzero(as_tuple=True)
        tensors = {
            "token": token.int(),
            "latent": latent.int(),
            "value": outputs[token, latent].float(),
            "shape": torch.tensor(outputs.shape),
        }
        name = f"rank{trainer.global_rank}-batch{batch_idx:06d}.safetensors"
        save_file({key: value.cpu() for key, value in tensors.items()}, self._folder / name)
