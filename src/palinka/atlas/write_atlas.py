"""The atlas, written when a checkpoint is measured, or a fit has ended."""

from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn

from palinka.activations import ActivationDataModule
from palinka.atlas.analyses import read_analyses
from palinka.atlas.facts import Options, gather
from palinka.atlas.site import About, check_output, write_site
from palinka.callbacks.report import log_folder
from palinka.callbacks.trained import refuse_sweep
from palinka.paths import expanded
from palinka.training import SparseAutoencoderModule


class WriteAtlas(Callback):
    """Writes the feature atlas, a folder of pages that a browser opens from the disk.

    It is written at the end of `validate` and of `fit`, by the process that logs. Analyses that
    have ended by then are part of it: list `RunAnalyses` before it.

    Args:
        output: The folder; `<log_dir>/atlas` if left out. An atlas that is there is replaced.
        analyses: A folder with findings of analyses; `<log_dir>/analyses` if left out.
        options: How much to show of each latent.

    Raises:
        InputError: If the folder holds something else than an atlas.
    """

    def __init__(
        self,
        output: str | None = None,
        analyses: str | None = None,
        options: Options | None = None,
    ) -> None:
        self.output = None if output is None else expanded(output)
        self.analyses = None if analyses is None else expanded(analyses)
        self.options = Options() if options is None else options
        self.page: Path | None = None
        """The page to open, once it is written."""
        if self.output is not None:
            check_output(self.output)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse a sweep before it is trained."""
        refuse_sweep(self, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the atlas of a checkpoint."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._write(trainer, pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the atlas of what was trained."""
        self._write(trainer, pl_module)

    def _write(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        data = getattr(trainer, "datamodule", None)
        if (
            not isinstance(module, SparseAutoencoderModule)
            or module.device_mesh is not None
            or not isinstance(data, ActivationDataModule)
        ):
            rank_zero_warn(
                "no atlas: it takes an autoencoder on one device, and the rows of an"
                " ActivationDataModule"
            )
            return
        spec = data.validation_spec
        about = About(
            _name(spec.language_model.name),
            " → ".join(spec.resolved_sites),
            type(module.autoencoder).__name__,
            trainer.callback_metrics,
        )
        folder = self.analyses or log_folder(trainer) / "analyses"
        analyses = read_analyses(folder, module.autoencoder.latent_dim, spec.resolved_sites[0])
        facts = gather(data, module, self.options)
        output = self.output or log_folder(trainer) / "atlas"
        self.page = write_site(output, facts, about, analyses)


def _name(model: str) -> str:
    """A model's name; of one in a folder without the folders that lead to it."""
    path = Path(model).expanduser()
    return path.name if path.is_absolute() or path.exists() else model
