"""Analyses after a fit."""

import traceback
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from palinka.analyses.figures.loss_curves import loss_curves
from palinka.analyses.figures.style import style
from palinka.analyses.findings import Findings
from palinka.analyses.reader import ActivationReader, Encoder
from palinka.analyses.run import AnalysisEntry, checked_analysis, run_analysis
from palinka.autoencoders.base import positive_integer
from palinka.errors import InputError
from palinka.training.callbacks import base
from palinka.training.callbacks.tensorboard import write_findings
from palinka.training.module import SparseAutoencoderModule
from palinka.training.sweep import strip_prefix


class RunAnalyses(base.SingleModelCallback, base.EveryNSteps):
    """Run analyses on the latents after a fit, on the process that logs.

    The findings go to the trainer's loggers and to `<log_dir>/analyses/<name>/`. An analysis
    that fails is reported with its name; the others run, and the fit's results stay.

    Args:
        analyses: The analyses.
        every_n_steps: Also run them every n optimizer steps.
    """

    def __init__(self, analyses: list[AnalysisEntry], every_n_steps: int | None = None) -> None:
        if every_n_steps is not None:
            positive_integer("every_n_steps", every_n_steps)
        for entry in analyses:
            checked_analysis(entry)
        self.analyses = analyses
        self.every_n_steps = every_n_steps
        self.failed: list[str] = []
        self.headlines: dict[str, list[str]] = {}  # of the last findings, by analysis
        self._reader: ActivationReader | None = None
        self._losses: dict[str, dict[int, float]] = {}  # by name and step

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """Keep the logged losses, and analyze every n steps."""
        super().on_train_batch_end(trainer, module)
        every, step = trainer.log_every_n_steps, trainer.global_step  # type: ignore[attr-defined]
        if every and base.has_stepped(trainer) and step % every == 0:
            for name, loss in strip_prefix(trainer.callback_metrics, "loss/").items():
                self._losses.setdefault(name, {})[step] = float(loss)

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Analyze the trained latents, unless the last step did."""
        if self.every_n_steps is None or trainer.global_step % self.every_n_steps:
            self.at_step(trainer, module)
        if trainer.is_global_zero and self._losses and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            curves = {n: (list(kept), list(kept.values())) for n, kept in self._losses.items()}
            with style():
                write_findings(Findings("training", {}, figures=loss_curves(curves)), trainer)

    def state_dict(self) -> dict[str, Any]:
        """Losses so far, for the curves of a resumed run."""
        return {"losses": self._losses}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load them from a checkpoint."""
        self._losses = state_dict["losses"]

    def at_step(self, trainer: Trainer, module: LightningModule) -> None:
        """Run the analyses, with the language model loaded once."""
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if (found := base.single_model(self, trainer, module)) is None:
            self.failed += [entry.name for entry in self.analyses]
            return
        autoencoder, data = found
        if self._reader is None:
            self._reader = ActivationReader(
                data.train_spec.language_model,
                [encoder_of(autoencoder, data.source)],
                lambda: data.loaded_language_model,
            )
        earlier: dict[str, Findings] = {}
        for entry in self.analyses:
            try:
                with base.evaluating(module):
                    findings = run_analysis(entry, self._reader, earlier)
                earlier[entry.name] = findings
                write_findings(findings, trainer)
                self.headlines[entry.name] = findings.headlines()
            except Exception as error:  # must not end the training
                if not isinstance(error, InputError):
                    traceback.print_exc()
                self.failed.append(entry.name)
                rank_zero_warn(f"the analysis {entry.name} failed: {error}")


def encoder_of(module: SparseAutoencoderModule, source: Mapping[str, Any]) -> Encoder:
    """Encoder of a module; `source` has the `language_model`, `site` and `bos` of its fit."""
    return Encoder(
        lambda x: module.encode(x.to(module.device)).cpu(),
        module.autoencoder.input_dim,
        source.get("site"),
        source.get("language_model"),
        bool(source.get("bos")),
        type(module.autoencoder).__name__,
        module,
    )
