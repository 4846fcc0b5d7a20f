"""Text heatmaps of selected latents during training."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from palinka.analyses.figures.text_heatmap import LATENT_EXPONENT, POSITIVE, Heatmap, text_heatmap
from palinka.analyses.stats.latents import choose_latents
from palinka.autoencoders.base import positive_integer
from palinka.errors import InputError
from palinka.language_models.token_text import token_bytes
from palinka.training.callbacks import base
from palinka.training.callbacks.tensorboard import add_figure, tensorboard_writers
from palinka.training.module import SparseAutoencoderModule

TEXT = (
    'The river rose in the night, and by morning the lower fields were under water. "We leave'
    ' now," she said; but he counted the sheep again: 41, 42, 43. Nobody had seen the dog.'
)
MAX_LATENTS = 4


class LatentEvolution(base.SingleModelCallback, base.EveryNSteps):
    """Log text heatmaps of selected latents to TensorBoard every n steps.

    The slider of an image then shows how a feature forms. The language model reads the text once,
    before the first step; each heatmap encodes its few dozen rows.

    Args:
        latents: Indices; default the four that are most active over the text before training.
        every_n_steps: Optimizer steps between heatmaps, of which the first is before training.
        text: The text, at most a context of the model.
    """

    def __init__(
        self, latents: Sequence[int] | None = None, every_n_steps: int = 500, text: str = TEXT
    ) -> None:
        self.latents = None if latents is None else list(latents)
        if self.latents == []:
            raise InputError("LatentEvolution: latents is empty; give some, or leave it out")
        if not text.strip():
            raise InputError(f"LatentEvolution: text is {text!r}; give some, or leave it out")
        self.every_n_steps = positive_integer("LatentEvolution.every_n_steps", every_n_steps)
        self.text = text
        self._tokens: list[bytes] = []
        self._rows: Tensor | None = None

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Reject a sweep and invalid latents before training."""
        super().setup(trainer, module, stage)
        if isinstance(module, SparseAutoencoderModule):
            choose_latents(torch.zeros(module.autoencoder.latent_dim), (), self.latents or ())

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Read the text, and draw the untrained latents."""
        found = base.single_model(self, trainer, module) if trainer.is_global_zero else None
        if found is not None:
            spec, model = found[1].train_spec, found[1].loaded_language_model
            site, first = spec.resolved_sites[0], int(spec.bos)
            tokens = model.tokenize([self.text], spec.bos)
            self._tokens = token_bytes(model.tokenizer, tokens.ids[0, first:].tolist())
            self._rows = model.read(tokens, [site])[site][0, first:].float().to(module.device)
            self.at_step(trainer, module)

    def state_dict(self) -> dict[str, Any]:
        """The drawn latents, for a resumed run."""
        return {"latents": self.latents}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load them from a checkpoint, unless others are given."""
        self.latents = self.latents or state_dict["latents"]

    @torch.no_grad()
    def at_step(self, trainer: Trainer, module: LightningModule) -> None:
        """Draw the latents."""
        if self._rows is None or not isinstance(module, SparseAutoencoderModule):
            return
        with base.evaluating(module):
            latents = module.encode(self._rows).float().cpu()
        if self.latents is None:
            most = min(MAX_LATENTS, latents.shape[1])
            self.latents = latents.amax(dim=0).topk(most).indices.tolist()
        for latent in self.latents:
            caption = f"latent {latent} after {trainer.global_step:,} steps"
            drawn = Heatmap(latents[:, latent].numpy(), caption, POSITIVE, LATENT_EXPONENT)
            figure = text_heatmap(self._tokens, [drawn])
            figure.set_label("The same text every n steps: how the latent forms.")
            for writer in tensorboard_writers(trainer):
                add_figure(writer, f"forming/latent_{latent}", figure, trainer.global_step)
