from pathlib import Path

from lightning.pytorch import LightningModule, Trainer

from palinka.atlas.against import Other, read_dictionary
from palinka.atlas.analyses import Found, read_analyses, read_explanations
from palinka.atlas.facts import Options, gather
from palinka.atlas.site import About, check_output, write_site
from palinka.data import ActivationDataModule
from palinka.errors import expanded
from palinka.training import SparseAutoencoderModule
from palinka.training.callbacks.base import EndOfRunCallback, log_folder, single_model


class WriteAtlas(EndOfRunCallback):
    """Write the feature atlas at the end of `validate` and `fit`.

    The atlas is a folder of static pages. It includes findings of analyses that ended before: list
    `RunAnalyses` first.

    Args:
        output: Folder of the atlas, replaced if it exists. Defaults to `<log_dir>/atlas`.
        analyses: Folder with findings of analyses. Defaults to `<log_dir>/analyses`.
        options: Amount of detail per latent.
        against: Checkpoint or exported dictionary of the same model and site, to compare with.
        explanations: `explanations.json` of `palinka explain`, which label latents.
    """

    def __init__(
        self, output: str | None = None, analyses: str | None = None,
        options: Options | None = None, against: str | None = None,
        explanations: str | None = None,
    ) -> None:  # fmt: skip
        self.output, self.analyses, self.against, self.explanations = (
            None if path is None else expanded(path)
            for path in (output, analyses, against, explanations)
        )
        self.options = options or Options()
        self._other: Other | None = None
        self._explained: list[Found] = []
        self.page: Path | None = None  # to open, once written
        self.checksum = ""  # of the checkpoint, by which an evaluation of several has its latents
        if self.output is not None:
            check_output(self.output)

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Reject a dictionary or explanations of other latents before the run."""
        super().setup(trainer, module, stage)
        if self.against and (found := single_model(self, trainer, module)):
            self._other = read_dictionary(self.against, *found)
        if self.explanations and (found := single_model(self, trainer, module)):
            dictionary, site = found[0].autoencoder, str(found[1].source["site"])
            given = self.explanations, dictionary.latent_dim, site, self.checksum
            self._explained = [read_explanations(*given)]

    def write(
        self, trainer: Trainer, module: SparseAutoencoderModule, data: ActivationDataModule
    ) -> None:
        """Write the site."""
        spec, folder = data.validation_spec, log_folder(trainer)
        about = About(
            spec.language_model.portable_name,
            " → ".join(spec.resolved_sites),
            type(module.autoencoder).__name__,
            trainer.callback_metrics,
            module.output_scaling.kind,
            "the validation split" if spec.validation_fraction else "the text it was trained on",
        )
        latents, site = module.autoencoder.latent_dim, spec.resolved_sites[0]
        analyses = read_analyses(self.analyses or folder / "analyses", latents, site, self.checksum)
        analyses += self._explained
        facts = gather(data, module, self.options, self._other)
        self.page = write_site(self.output or folder / "atlas", facts, about, analyses)
