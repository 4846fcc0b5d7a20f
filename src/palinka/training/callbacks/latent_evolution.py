"""Text heatmaps of selected latents during training."""

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from palinka.analyses.figures.text_heatmap import LATENT_EXPONENT, POSITIVE, Heatmap, text_heatmap
from palinka.data import ActivationDataModule
from palinka.errors import InputError
from palinka.language_models.token_text import token_bytes
from palinka.training.callbacks.tensorboard import add_figure, tensorboard_writers
from palinka.training.callbacks.variants import reject_sweep
from palinka.training.module import SparseAutoencoderModule

TEXT = (
    'The river rose in the night, and by morning the lower fields were under water. "We leave'
    ' now," she said; but he counted the sheep again: 41, 42, 43. Nobody had seen the dog.'
)

MAX_LATENTS = 4


class LatentEvolution(Callback):
    """Log text heatmaps of selected latents to TensorBoard every n steps.

    The slider of an image then shows how a feature forms. The language model reads the text once,
    before the first step; each heatmap encodes its few dozen rows.

    Args:
        latents: Indices; default the four that are most active over the text before training.
        every_n_steps: Optimizer steps between heatmaps, of which the first is before training.
        text: The text, at most a context of the model.

    Raises:
        InputError: If no latent or no text is given, or `every_n_steps` is less than 1.
    """

    def __init__(
        self,
        latents: Sequence[int] | None = None,
        every_n_steps: int = 500,
        text: str = TEXT,
    ) -> None:
        self.latents = None if latents is None else list(latents)
        if self.latents == [] or every_n_steps < 1 or not text.strip():
            raise InputError(
                f"LatentEvolution: latents {self.latents}, every_n_steps {every_n_steps} and a text"
                f" of {len(text)} characters; expected a latent, at least 1 and some text"
            )
        self.every_n_steps = every_n_steps
        self.text = text
        self._tokens: list[bytes] = []
        self._rows = torch.empty(0)
        self._last_step = -1

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Reject a sweep and invalid latents before training."""
        reject_sweep(self, pl_module)
        if isinstance(pl_module, SparseAutoencoderModule):
            count = pl_module.autoencoder.latent_dim
            invalid = [latent for latent in self.latents or () if not 0 <= latent < count]
            if invalid:
                raise InputError(
                    f"LatentEvolution: latent {invalid[0]} does not exist; the dictionary has 0 to"
                    f" {count - 1}"
                )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read the text, and draw the untrained latents."""
        if not trainer.is_global_zero:
            return
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, ActivationDataModule):
            raise InputError("LatentEvolution reads the language model of an ActivationDataModule")
        model = data.loaded_language_model
        site = data.train_spec.resolved_sites[0]
        bos = data.train_spec.bos
        tokens = model.tokenize([self.text], bos)
        rows = model.read(tokens, [site])[site][0, int(bos) :]
        self._tokens = token_bytes(model.tokenizer, tokens.ids[0, int(bos) :].tolist())
        self._rows = rows.float().to(pl_module.device)
        self._draw(trainer, pl_module)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Draw every n steps."""
        if trainer.global_step % self.every_n_steps == 0 and trainer.is_global_zero:
            self._draw(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The drawn latents, for a resumed run."""
        return {"latents": self.latents}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load them from a checkpoint, unless others are given."""
        self.latents = self.latents or state_dict["latents"]

    @torch.no_grad()
    def _draw(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        step = trainer.global_step
        if step == self._last_step or not isinstance(module, SparseAutoencoderModule):
            return  # a batch that only accumulated its gradient
        self._last_step = step
        latents: Tensor = module.encode(self._rows).float().cpu()
        if self.latents is None:
            self.latents = (
                latents.amax(dim=0).topk(min(MAX_LATENTS, latents.shape[1])).indices.tolist()
            )
        for latent in self.latents:
            caption = f"latent {latent} after {step:,} steps"
            drawn = Heatmap(latents[:, latent].numpy(), caption, POSITIVE, LATENT_EXPONENT)
            figure = text_heatmap(self._tokens, [drawn])
            figure.set_label("The same text every n steps: how the latent forms.")
            for writer in tensorboard_writers(trainer):
                add_figure(writer, f"forming/latent_{latent}", figure, step)
