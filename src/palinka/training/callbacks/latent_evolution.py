"""Text heatmaps of selected latents during training."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from palinka.analyses.figures.text_heatmap import LATENT_EXPONENT, POSITIVE, Heatmap, text_heatmap
from palinka.analyses.stats.latents import choose_latents
from palinka.autoencoders.base import positive_integer
from palinka.language_models.token_text import token_bytes
from palinka.training.callbacks import base
from palinka.training.callbacks.tensorboard import add_figure

TEXT = (
    'The river rose in the night, and by morning the lower fields were under water. "We leave'
    ' now," she said; but he counted the sheep again: 41, 42, 43. Nobody had seen the dog.'
)
MAX_LATENTS = 4
COLUMNS = 48  # characters of a line, readable on TensorBoard's page of images


class LatentEvolution(base.EveryNSteps):
    """Log text heatmaps of selected latents to TensorBoard every n steps.

    The slider of the image then shows how features form. The language model reads the text once,
    before the first step; each image encodes its few dozen rows, for each variant of a sweep.

    Args:
        latents: Indices; default the four that are most active over the text before training; one
            that falls silent gives way to the strongest of the others.
        every_n_steps: Optimizer steps between heatmaps, of which the first is before training.
        text: The text, at most a context of the model.
    """

    def __init__(
        self, latents: Sequence[int] | None = None, every_n_steps: int = 500, text: str = TEXT
    ) -> None:
        self.latents = list(latents or ())
        self.every_n_steps = positive_integer("LatentEvolution.every_n_steps", every_n_steps)
        self.text = text
        self._chosen: dict[str, tuple[int, ...]] = {}  # by variant
        self._tokens: list[bytes] = []
        self._rows: Tensor | None = None

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Read the text, and draw the untrained latents."""
        first = next((one.module for one in base.iter_models(trainer, module)), module)
        found = base.single_model(self, trainer, first) if trainer.is_global_zero else None
        if found is not None:
            spec, model = found[1].train_spec, found[1].loaded_language_model
            site, bos = spec.resolved_sites[0], int(spec.bos)
            tokens = model.tokenize([self.text], spec.bos)
            self._tokens = token_bytes(model.tokenizer, tokens.ids[0, bos:].tolist())
            self._rows = model.read(tokens, [site])[site][0, bos:].float().to(module.device)
            self.at_step(trainer, module)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Draw the trained latents, unless the last step did."""
        if trainer.global_step % (self.every_n_steps or 1):
            self.at_step(trainer, module)

    def state_dict(self) -> dict[str, Any]:
        """The drawn latents, for a resumed run."""
        return {"chosen": self._chosen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load them from a checkpoint; those that are given win."""
        self._chosen = dict(state_dict["chosen"])

    @torch.no_grad()
    def at_step(self, trainer: Trainer, module: LightningModule) -> None:
        """Draw the latents."""
        if self._rows is None:
            return
        for one in base.iter_models(trainer, module):
            with base.evaluating(one.module):
                latents = one.module.encode(self._rows).float().cpu()
            strength, most = latents.amax(dim=0), min(MAX_LATENTS, latents.shape[1])
            active = [n for n in self._chosen.get(one.name, ()) if strength[n] > 0]
            chosen = choose_latents(strength, (), self.latents or active)
            if not self.latents:
                strongest = choose_latents(strength, range(1, 1 + most))
                chosen = tuple(dict.fromkeys([*chosen, *strongest]))[:most]
            self._chosen[one.name] = chosen
            after = f"after {trainer.global_step:,} steps"
            drawn = [
                Heatmap(latents[:, n].numpy(), f"latent {n} {after}", POSITIVE, LATENT_EXPONENT)
                for n in chosen
            ]
            figure = text_heatmap(self._tokens, drawn, COLUMNS)
            figure.set_label("The same text every n steps: how latents form.")
            for logger in one.loggers:
                add_figure(logger.experiment, "forming/latents", figure, trainer.global_step)
