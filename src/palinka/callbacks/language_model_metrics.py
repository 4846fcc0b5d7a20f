"""How well a language model does with the reconstruction in place of its own activations."""

from collections.abc import Mapping
from itertools import islice
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from palinka.activations import ActivationDataModule
from palinka.analyses.document_intervals import Interval, document_intervals, interval_remark
from palinka.callbacks.splicing import ERROR_RATIOS, RATIOS, of_all_processes, splice
from palinka.callbacks.trained import trained
from palinka.errors import InputError
from palinka.kernels.collectives import processes, world
from palinka.progress import track
from palinka.training import SparseAutoencoderModule


class LanguageModelMetrics(Callback):
    """Splices the reconstruction into the language model, and measures what it predicts then.

    - `ce_clean`: cross-entropy of the next token, in nats, of the model as it is.
    - `ce_spliced`: the same with the site replaced by its reconstruction; `ce_delta`: how much
      more that is.
    - `ce_ablated`, `ce_ablated_mean`: the same with the site replaced by zeros, and by its mean
      over the validation rows.
    - `loss_recovered`: `(ce_ablated - ce_spliced) / (ce_ablated - ce_clean)`, and with
      `ce_ablated_mean` the same as `loss_recovered_mean`.
    - `kl`: mean KL(clean ‖ spliced) of the next-token distributions.
    - `site_mse`, where an `error_site` is given: mean squared difference between the activations
      there, spliced and clean; `site_recovered`: one minus its ratio to that of the mean's.

    They are means over every next token of the first contexts of the validation split; tokens that
    `skip_first` keeps out of the rows keep their own activations. Each has a 95 % interval over
    documents, from 8 documents on; below 40, a message says how far it can be trusted. They are
    logged as `val/ce_clean` (`test/…` while testing) and so on, the intervals as
    `val_interval/ce_clean/low` and `…/high`.

    `validate` and `test` measure by themselves. A `fit` does where it has this callback, at its
    end, and each variant of a sweep. One whose latents are divided over devices cannot.

    Args:
        contexts: Measure so many contexts; null for all of the validation split.
        every_n_steps: In a fit, also measure after every so many optimizer steps.
        batch_size: Contexts per forward pass; null for as many as make 64 MiB of logits.
        error_site: A site, such as that of a later block, where to look at how far the
            reconstruction moves the activations.

    Raises:
        InputError: If a number is below 1.

    Source:
        Bricken et al. (2023), Towards monosemanticity.
    """

    def __init__(
        self,
        contexts: int | None = 64,
        every_n_steps: int | None = None,
        batch_size: int | None = None,
        error_site: str | None = None,
    ) -> None:
        counts = {"contexts": contexts, "every_n_steps": every_n_steps, "batch_size": batch_size}
        for name, value in counts.items():
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; expected at least 1")
        self.contexts = contexts
        self.every_n_steps = every_n_steps
        self.batch_size = batch_size
        self.error_site = error_site
        self.found: Mapping[str, Interval] = {}
        """What was measured last; the same on every process."""
        self._last_step = -1
        self._remark: str | None = None

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Measure where it is time to."""
        step = trainer.global_step
        if self.every_n_steps and step % self.every_n_steps == 0 and step != self._last_step:
            self._during_fit(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure what was trained, unless the last step did."""
        if trainer.global_step != self._last_step:
            self._during_fit(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure a checkpoint."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._log(pl_module, self._measured(trainer, pl_module, "val"))

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure a checkpoint."""
        self._log(pl_module, self._measured(trainer, pl_module, "test"))

    def _during_fit(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._last_step = trainer.global_step
        values = {
            f"{one.name}/{name}" if one.name else name: value
            for one in trained(trainer, module)
            for name, value in self._measured(trainer, one.module, "val").items()
        }
        trainer.callback_metrics.update(values)
        for logger in trainer.loggers:
            logger.log_metrics(
                {name: float(value) for name, value in values.items()}, trainer.global_step
            )

    def _log(self, module: pl.LightningModule, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            # The same on every process.
            module.log(name, value, rank_zero_only=False, sync_dist=False)

    def _measured(
        self, trainer: pl.Trainer, module: pl.LightningModule, split: str
    ) -> dict[str, Tensor]:
        """Every value and bound by the name that it is logged under; none where there are none."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return {}
        data = getattr(trainer, "datamodule", None)
        if not isinstance(module, SparseAutoencoderModule) or not isinstance(
            data, ActivationDataModule
        ):
            rank_zero_warn("not judged in the language model: the data module names none")
            return {}
        if module.device_mesh is not None:
            rank_zero_warn(
                "not judged in the language model, for no device holds all latents: run palinka"
                " validate with the checkpoint on one device"
            )
            return {}
        self.found = self._measure(data, module)
        named = {f"{split}/{name}": interval.value for name, interval in self.found.items()}
        for name, interval in self.found.items():
            if interval.low <= interval.high:  # a few documents have no interval
                named[f"{split}_interval/{name}/low"] = interval.low
                named[f"{split}_interval/{name}/high"] = interval.high
        return {name: torch.tensor(value, device=module.device) for name, value in named.items()}

    def _measure(
        self, data: ActivationDataModule, module: SparseAutoencoderModule
    ) -> dict[str, Interval]:
        group = world()
        rank = 0 if group is None else dist.get_rank(group)
        contexts = islice(data.validation_contexts(), self.contexts)
        training = module.training
        module.eval()
        try:
            documents, sums = splice(
                data.loaded_language_model,
                data.validation_spec.resolved_sites[-1],
                module,
                data.validation_rows.statistics.mean[-data.validation_spec.widths[-1] :],
                track(contexts, "splicing", self.contexts) if rank == 0 else contexts,
                skip=data.validation_spec.layout.skip,
                batch_size=self.batch_size,
                share=(rank, processes(group)),
                source_site=data.validation_spec.resolved_sites[0],
                error_site=self.error_site,
            )
        finally:
            module.train(training)
        documents, sums = of_all_processes(documents, sums, module.device)
        ratios = RATIOS if self.error_site is None else {**RATIOS, **ERROR_RATIOS}
        remark = interval_remark(len(documents))
        if remark and remark != self._remark:
            rank_zero_info(remark)
        self._remark = remark
        return document_intervals(sums, ratios)
