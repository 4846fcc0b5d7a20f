from itertools import islice

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from palinka.analyses.stats.bootstrap import FEW_DOCUMENTS, document_intervals, interval_remark
from palinka.autoencoders.base import positive_integer
from palinka.autoencoders.distributed import gather_unequal_rows, world, world_size
from palinka.errors import track
from palinka.evaluation.losses import ERROR_RATIOS, RATIOS, patched_losses, sum_by_document
from palinka.language_models.edits import as_function
from palinka.training.callbacks.base import EveryNSteps, evaluating, iter_models, single_model
from palinka.training.callbacks.checkpoints import fingerprint


class LanguageModelMetrics(EveryNSteps):
    """Measure loss recovered: a language model's loss with the reconstruction patched in.

    - `ce_clean`: cross-entropy of the next token, in nats, of the model as it is.
    - `ce_spliced`: the same with the site replaced by its reconstruction; `ce_delta`: the
      increase.
    - `ce_ablated`, `ce_ablated_mean`: the same with the site replaced by zeros, and by its mean
      over the validation rows.
    - `loss_recovered`: `(ce_ablated - ce_spliced) / (ce_ablated - ce_clean)`, and with
      `ce_ablated_mean` the same as `loss_recovered_mean`.
    - `kl`: mean KL(clean ‖ spliced) of the next-token distributions.
    - `site_mse`, where an `error_site` is given: mean squared difference between the activations
      there, spliced and clean; `site_recovered`: one minus its ratio to that of the mean's.

    They are means over every next token of the first contexts of the validation split; tokens that
    `skip_first` keeps out of the rows keep their own activations. Each has a 95 % interval over
    documents, if there are at least 8; below 40, a message says how reliable it is. They are
    logged as `val/ce_clean` (`test/…` while testing) and so on, the intervals as
    `val_interval/ce_clean/low` and `…/high`, and the number of documents as
    `val_interval/documents`.

    `validate` and `test` always measure. A `fit` with this callback measures at its end, and in a
    sweep for each variant; one whose latents are sharded cannot.

    Args:
        contexts: Number of contexts; null for all of the validation split.
        every_n_steps: In a fit, also measure every n optimizer steps.
        batch_size: Contexts per forward pass; null for as many as make 64 MiB of logits.
        error_site: A further site, such as that of a later layer, at which to measure how far the
            reconstruction moves the activations.

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
            if value is not None:
                positive_integer(name, value)
        self.contexts = contexts
        self.every_n_steps = every_n_steps
        self.batch_size = batch_size
        self.error_site = error_site
        self._last: tuple[int, tuple[int, ...]] = (-1, ())  # step and weights
        self._remark = ""

    def at_step(self, trainer: Trainer, module: LightningModule) -> None:
        """Measure and log the weights of a step, of every variant of a sweep."""
        self._last = (trainer.global_step, fingerprint(module))
        values = {
            f"{one.name}/{name}" if one.name else name: value
            for one in iter_models(trainer, module)
            for name, value in self._measured(trainer, one.module).items()
        }
        trainer.callback_metrics.update(values)
        scalars = {name: float(value) for name, value in values.items()}
        for logger in trainer.loggers:
            logger.log_metrics(scalars, trainer.global_step)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Measure the trained weights, unless the last step did."""
        if (trainer.global_step, fingerprint(module)) != self._last:
            self.at_step(trainer, module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure a checkpoint."""
        if trainer.state.fn != TrainerFn.FITTING:
            values = self._measured(trainer, pl_module)  # the same on every process
            pl_module.log_dict(values, rank_zero_only=False, sync_dist=False)

    on_test_epoch_end = on_validation_epoch_end

    def _measured(self, trainer: Trainer, module: LightningModule) -> dict[str, Tensor]:
        """Values and bounds by the name of their log entry."""
        if trainer.fast_dev_run or not (found := single_model(self, trainer, module)):  # type: ignore[attr-defined]
            return {}
        autoencoder, data = found
        spec, group = data.validation_spec, world()
        rank = 0 if group is None else dist.get_rank(group)
        every = data.validation_contexts()
        contexts = [*islice(every, self.contexts)]
        with evaluating(module):
            documents, sums = patched_losses(
                data.loaded_language_model,
                spec.resolved_sites[-1],
                [as_function(autoencoder)],
                data.validation_rows.statistics.mean[-spec.widths[-1] :],
                track(contexts, "patching") if rank == 0 else contexts,
                skip=spec.layout.skip,
                batch_size=self.batch_size,
                share=(rank, world_size(group)),
                source_site=spec.resolved_sites[0],
                error_site=self.error_site,
            )
        rows = torch.from_numpy(np.column_stack([documents.astype(np.float64), sums[0]]))
        table = gather_unequal_rows(rows.to(module.device), group).cpu().numpy()
        documents, sums = sum_by_document(table[:, 0].astype(np.int64), table[:, 1:])
        remark = interval_remark(len(documents))
        if remark and self.contexts is not None and next(every, None) is not None:
            enough = self.contexts * 2 * FEW_DOCUMENTS // len(documents)
            option = "--trainer.callbacks+=LanguageModelMetrics --trainer.callbacks.contexts"
            remark += f", as with {option} {enough}"
        if remark and remark != self._remark:
            rank_zero_info(remark)
        self._remark = remark
        ratios = RATIOS if self.error_site is None else {**RATIOS, **ERROR_RATIOS}
        split, named = "test" if trainer.testing else "val", {}
        for name, interval in document_intervals(sums, ratios).items():
            named[f"{split}/{name}"] = interval.value
            if interval.low <= interval.high:  # a few documents have no interval
                named[f"{split}_interval/{name}/low"] = interval.low
                named[f"{split}_interval/{name}/high"] = interval.high
                named[f"{split}_interval/documents"] = float(len(documents))
        return {name: torch.tensor(value, device=module.device) for name, value in named.items()}
