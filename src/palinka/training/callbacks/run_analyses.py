"""Analyses after a fit."""

import traceback
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from palinka.analyses.figures.loss_curves import loss_curves
from palinka.analyses.figures.style import style
from palinka.analyses.findings import Findings
from palinka.analyses.reader import ActivationReader, Encoder
from palinka.analyses.run import AnalysisEntry, run_analysis
from palinka.data import ActivationDataModule
from palinka.errors import InputError
from palinka.training.callbacks.tensorboard import write_findings
from palinka.training.callbacks.variants import reject_sweep
from palinka.training.module import SparseAutoencoderModule


class RunAnalyses(Callback):
    """Run analyses on the latents after a fit, on the process that logs.

    The findings go to the trainer's loggers and to `<log_dir>/analyses/<name>/`. An analysis
    that fails is reported with its name; the others run, and the fit's results stay.

    Args:
        analyses: The analyses.
        every_n_steps: Also run them every n optimizer steps.
    """

    def __init__(self, analyses: list[AnalysisEntry], every_n_steps: int | None = None) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise InputError(
                f"every_n_steps is {every_n_steps}; expected at least 1, or null for only the end"
            )
        self.analyses = analyses
        self.every_n_steps = every_n_steps
        self.failed: list[str] = []
        self._reader: ActivationReader | None = None
        self._losses: dict[str, list[tuple[int, Tensor]]] = {}
        self._last_step = -1

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Reject a sweep before it is trained."""
        reject_sweep(self, pl_module)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Keep the logged losses, and analyze every n steps."""
        step = trainer.global_step
        if step == self._last_step:  # a batch that only accumulated its gradient
            return
        self._last_step = step
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and step % every == 0:
            for name, value in trainer.callback_metrics.items():
                if name.startswith("loss/"):
                    self._losses.setdefault(name.removeprefix("loss/"), []).append((step, value))
        if self.every_n_steps is not None and step % self.every_n_steps == 0:
            self._run(trainer, pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Analyze the trained latents, unless the last step did."""
        done = self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0
        if not done:
            self._run(trainer, pl_module)
        if trainer.is_global_zero and self._losses and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            curves = {
                name: ([step for step, _ in kept], [float(value) for _, value in kept])
                for name, kept in self._losses.items()
            }
            with style():
                write_findings(Findings("training", {}, figures=loss_curves(curves)), trainer)

    def state_dict(self) -> dict[str, Any]:
        """Losses so far, for the curves of a resumed run."""
        return {
            name: {"steps": [step for step, _ in kept], "values": torch.stack([v for _, v in kept])}
            for name, kept in self._losses.items()
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load them from a checkpoint."""
        self._losses = {
            name: list(zip(kept["steps"], kept["values"], strict=True))
            for name, kept in state_dict.items()
        }

    def _run(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if not isinstance(pl_module, SparseAutoencoderModule):
            raise InputError(f"RunAnalyses needs a sparse autoencoder, not {type(pl_module)}")
        reader = self._bound(trainer, pl_module)
        for entry in self.analyses:
            try:
                write_findings(run_analysis(entry, reader), trainer)
            except Exception as error:  # must not end the training
                if not isinstance(error, InputError):
                    traceback.print_exc()
                self.failed.append(entry.name)
                rank_zero_warn(f"the analysis {entry.name} failed: {error}")

    def _bound(self, trainer: pl.Trainer, module: SparseAutoencoderModule) -> ActivationReader:
        """Reader of the module's latents, with the language model loaded once."""
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, ActivationDataModule):
            raise InputError("RunAnalyses reads the language model of an ActivationDataModule")
        if self._reader is None:
            encoder = encoder_of(module, data.source)
            self._reader = ActivationReader(
                data.train_spec.language_model, encoder, lambda: data.loaded_language_model
            )
        return self._reader


def encoder_of(module: SparseAutoencoderModule, source: Mapping[str, Any]) -> Encoder:
    """Encoder of a module, with its centering and scaling.

    Args:
        module: The module.
        source: `language_model`, `site` and `bos` that it was trained on, where known.
    """
    return Encoder(
        module.encode,
        module.autoencoder.input_dim,
        source.get("site"),
        source.get("language_model"),
        bool(source.get("bos")),
        type(module.autoencoder).__name__,
    )
