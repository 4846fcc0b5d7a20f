"""An autoencoder behind the centering and scaling of its data, as whoever uses it sees it."""

from collections.abc import Mapping
from os import PathLike
from typing import Any, Self

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from palinka.autoencoders import Autoencoder, AutoencoderOutput, InputScaling
from palinka.autoencoders.formats import fold
from palinka.errors import InputError
from palinka.training.checkpoint import restore, settings_of, unreadable


class RawActivationsModule(LightningModule):
    """Takes and gives raw activations, whatever its autoencoder was trained on.

    Args:
        autoencoder: An autoencoder, or the description of one in a checkpoint.
    """

    def __init__(self, autoencoder: Autoencoder | Mapping[str, Any]) -> None:
        super().__init__()
        # A checkpoint describes its autoencoder in words, so that it loads without arguments.
        self.autoencoder = restore(autoencoder) if isinstance(autoencoder, Mapping) else autoencoder
        self.scaling = InputScaling(self.autoencoder.input_dim)
        self.target_scaling = (
            InputScaling(self.autoencoder.output_dim) if self.is_transcoder else None
        )

    @property
    def is_transcoder(self) -> bool:
        """Whether it gives the activations of another site than it is given."""
        return self.autoencoder.is_transcoder

    @property
    def output_scaling(self) -> InputScaling:
        """What the autoencoder's output went through: its input's, but for a transcoder."""
        return self.scaling if self.target_scaling is None else self.target_scaling

    def encode(self, x: Tensor) -> Tensor:
        """Raw activations `(…, input_dim)` to latents `(…, latent_dim)`."""
        return self._whole().encode(self._scaled(x))

    def decode(self, latents: Tensor) -> Tensor:
        """Latents `(…, latent_dim)` to raw activations `(…, output_dim)`."""
        return self.output_scaling.inverse(self._whole().decode(latents))

    def decode_for(self, latents: Tensor, x: Tensor) -> Tensor:
        """Latents `(…, latent_dim)` of raw activations `x` to raw ones `(…, output_dim)`."""
        return self.output_scaling.inverse(self._whole().decode_for(latents, self._scaled(x)))

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write the autoencoder as `Autoencoder.save_pretrained` does, for raw activations.

        Centering and scaling are taken into the weights.

        Raises:
            InputError: If the folder cannot be written, or the weights cannot hold the scaling.
        """
        fold(self._whole(), self.scaling, self.target_scaling).save_pretrained(folder)

    def forward(self, x: Tensor) -> AutoencoderOutput:
        """Encode and decode raw activations `(…, input_dim)`."""
        latents = self.encode(x)
        return AutoencoderOutput(reconstruction=self.decode_for(latents, x), latents=latents)

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Self:
        """Load as Lightning does.

        Raises:
            InputError: If the file is missing, damaged, or no checkpoint of a sparse autoencoder.
        """
        try:
            return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)
        except InputError:
            raise
        except Exception as error:
            raise unreadable(checkpoint_path, error) from error

    @staticmethod
    def settings_of(path: str | PathLike[str]) -> dict[str, Any]:
        """The arguments that a checkpoint's module was made with, but for the data's width.

        Raises:
            InputError: If the file cannot be read, or is no checkpoint of a sparse autoencoder.
        """
        return settings_of(path)

    def _whole(self) -> Autoencoder:
        if self._is_divided:
            raise InputError(
                "no device holds all latents of this run: load its checkpoint on one device,"
                " or run palinka analyze with it"
            )
        return self.autoencoder

    @property
    def _is_divided(self) -> bool:
        """Whether other devices hold some of the latents."""
        return False

    def _scaled(self, x: Tensor) -> Tensor:
        self.autoencoder.check_width(x, self.autoencoder.input_dim, "activations")
        return self._through(self.scaling, x)

    def _split(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled input `(rows, input_dim)` and target `(rows, output_dim)`, the same or not."""
        if self.target_scaling is None:
            x = self._scaled(batch)
            return x, x
        widths = [self.autoencoder.input_dim, self.autoencoder.output_dim]
        self.autoencoder.check_width(batch, sum(widths), "activations with those of a target site")
        x, target = torch.split(batch, widths, dim=-1)
        return self._scaled(x), self._through(self.target_scaling, target)

    def _through(self, scaling: InputScaling, x: Tensor) -> Tensor:
        """Center and scale in the dtype of the statistics, and give what the weights multiply."""
        scaled: Tensor = scaling(x.to(scaling.mean.dtype))
        return scaled.to(self.autoencoder.dictionary.dtype)
