"""The atlas, written when a checkpoint is measured, or a fit has ended."""

from pathlib import Path

import lightning.pytorch as pl

from palinka.atlas.analyses import read_analyses
from palinka.atlas.facts import Options, gather
from palinka.atlas.site import About, check_output, write_site
from palinka.data import ActivationDataModule
from palinka.errors import expanded
from palinka.training import SparseAutoencoderModule
from palinka.training.callbacks.summary import log_folder
from palinka.training.callbacks.variants import AfterTraining


class WriteAtlas(AfterTraining):
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

    what = "atlas"

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

    def write(
        self, trainer: pl.Trainer, module: SparseAutoencoderModule, data: ActivationDataModule
    ) -> None:
        """Write the site."""
        spec = data.validation_spec
        about = About(
            spec.language_model.portable_name,
            " → ".join(spec.resolved_sites),
            type(module.autoencoder).__name__,
            trainer.callback_metrics,
            "the validation split" if spec.validation_fraction else "the text it was trained on",
        )
        folder = self.analyses or log_folder(trainer) / "analyses"
        analyses = read_analyses(folder, module.autoencoder.latent_dim, spec.resolved_sites[0])
        facts = gather(data, module, self.options)
        output = self.output or log_folder(trainer) / "atlas"
        self.page = write_site(output, facts, about, analyses)
