"""The Lightning module around a sparse autoencoder."""

from collections.abc import Mapping
from dataclasses import asdict
from os import PathLike
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from lightning.pytorch.utilities import GradClipAlgorithmType
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer

from palinka.autoencoders import Autoencoder, AutoencoderOutput, CompactOutput
from palinka.autoencoders.base import positive_integer
from palinka.autoencoders.sharded import ShardedAutoencoder
from palinka.errors import InputError
from palinka.kernels.collectives import copy_from_first, processes, sum_over, world
from palinka.kernels.layout import Layout
from palinka.training.checkpoint import (
    check_cache,
    check_fit,
    check_source,
    describe,
    read,
)
from palinka.training.constraints import normalize_rows, project_gradient
from palinka.training.evaluation import Evaluation, measure_batch
from palinka.training.firing import FiringClock
from palinka.training.machine import prepare_machine
from palinka.training.objective import Losses, Objective
from palinka.training.raw_activations import RawActivationsModule
from palinka.training.sharding import divide
from palinka.training.terms import Step, Terms, has_own_terms, terms, terms_of
from palinka.training.watch import ActivationWatch

# From so many training rows may an autoencoder begin.
FIRST_ROWS = 32_768
PROGRESS_BAR = frozenset({"loss/total", "reconstruction/fvu", "val/fvu"})


class SparseAutoencoderModule(RawActivationsModule):
    """Train a sparse autoencoder on activations, and measure it.

    A batch is a tensor of raw activations, `(rows, input_dim)`, in any floating dtype; for a
    transcoder, `(rows, input_dim + output_dim)`, with what it is to give on the right. The loss
    and the metrics are those of the activations as the autoencoder sees them, which is after
    centering and scaling where the data asks for that; `encode`, `decode` and calling the module
    take and give raw activations.

    Under Lightning's `ModelParallelStrategy` the latents are divided over the devices of its
    `tensor_parallel` dimension, and the rows of a batch over those of `data_parallel`. Only
    checkpoints know the latents whole then; `encode`, `decode` and calling the module wait for
    one to be loaded on one device.

    Args:
        autoencoder: What is trained.
        sparsity_weight: Weight of the mean absolute latent, or of what an architecture has instead.
        decorrelation_weight: Weight of the sum of squared covariances of different latents.
        sparsity_warmup_steps: Optimizer steps over which the weight grows linearly from zero.
        decorrelation_warmup_steps: The same for the decorrelation penalty.
        auxiliary_weight: Weight of the auxiliary loss, where an architecture has one; its paper's
            where left out: 1/32 for that by which dead latents learn, 1 for the gate's.
        auxiliary_k: How many dead latents may try to mend a row; half the width if left out.
        dead_after_tokens: A latent counts as dead in training once it has not fired for so many
            tokens.
        optimizer: Makes the optimizer from the parameters.
        lr_scheduler: Makes the learning-rate schedule, in optimizer steps, from the optimizer.

    Raises:
        InputError: If a weight or a number of steps is negative, or `dead_after_tokens` is not
            positive.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        sparsity_weight: float = 1.0,
        decorrelation_weight: float = 5e-4,
        sparsity_warmup_steps: int = 0,
        decorrelation_warmup_steps: int = 0,
        auxiliary_weight: float | None = None,
        auxiliary_k: int | None = None,
        dead_after_tokens: int = 1_000_000,
        optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=1e-4, fused=True),
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(autoencoder)
        self.objective = Objective(
            sparsity_weight=sparsity_weight,
            decorrelation_weight=decorrelation_weight,
            sparsity_warmup_steps=sparsity_warmup_steps,
            decorrelation_warmup_steps=decorrelation_warmup_steps,
            auxiliary_weight=auxiliary_weight,
        )
        self.auxiliary_k = (
            None if auxiliary_k is None else positive_integer("auxiliary_k", auxiliary_k)
        )
        self.dead_after_tokens = positive_integer("dead_after_tokens", dead_after_tokens)
        self.optimizer_factory = optimizer
        self.lr_scheduler_factory = lr_scheduler
        self.save_hyperparameters(
            {
                "autoencoder": describe(self.autoencoder),
                **asdict(self.objective),
                "auxiliary_k": auxiliary_k,
                "dead_after_tokens": dead_after_tokens,
            }
        )

        self.firing = FiringClock(self.autoencoder.latent_dim)
        self.evaluation = Evaluation(self.autoencoder.output_dim, self.autoencoder.latent_dim)
        self.watch = ActivationWatch()
        self._scaling_was_loaded = False
        self._resumed_precision: str | None = None
        # No module of its own: the parameters stay the autoencoder's.
        self._sharded: ShardedAutoencoder | None = None
        # DDP would overwrite every process's own counts with those of the first, at every step;
        # an autoencoder's buffers are the same everywhere from the first step on.
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in self.named_buffers()]

    def setup(self, stage: str) -> None:
        """Take the centering and scaling of the training data, unless a checkpoint brought one."""
        if stage != "fit" or self._scaling_was_loaded:
            return
        scalings = {"input_statistics": self.scaling, "target_statistics": self.target_scaling}
        for name, scaling in scalings.items():
            statistics = self._of_data(name)
            if scaling is not None and statistics is not None:
                mean = torch.as_tensor(statistics.mean, dtype=scaling.mean.dtype)
                scaling.set(mean, float(statistics.scale))

    def configure_model(self) -> None:
        """Divide the latents over devices where the trainer's strategy has a mesh of them."""
        if self.device_mesh is not None and self._sharded is None:
            self._sharded = divide(self.autoencoder, self.device_mesh, self.trainer)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer over the autoencoder's parameters, and its schedule if there is one."""
        return self.scheduled(self.optimizer_factory(self.autoencoder.parameters()))

    def scheduled(self, optimizer: Optimizer) -> OptimizerLRScheduler:
        """An optimizer with this module's learning-rate schedule, if there is one."""
        if self.lr_scheduler_factory is None:
            return optimizer
        scheduler = self.lr_scheduler_factory(optimizer)
        if isinstance(scheduler, ReduceLROnPlateau):
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": scheduler, "monitor": scheduler.monitor},
            }
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def on_fit_start(self) -> None:
        """Let a new autoencoder begin from the data, and every process with the same one."""
        self.train()  # what was loaded to be used is now trained
        if self.autoencoder.dictionary.dtype == torch.float16:
            raise InputError(
                "float16 weights have too little range to be trained (Adam's squared gradients"
                " vanish below 6e-8): use trainer.precision 16-mixed, bf16-mixed or bf16-true"
            )
        before = prepare_machine(self.autoencoder, self.device, self._resumed_precision)
        self._precision_before = before
        if self._sharded is not None:
            return
        rows = self._of_data("training_rows")
        begins = type(self.autoencoder).initialize is not Autoencoder.initialize
        if rows is not None and begins and self.autoencoder.is_new:
            _, target = self._split(rows(FIRST_ROWS).to(self.device))
            self.autoencoder.initialize(target)
        self.autoencoder.is_new = False
        for tensor in self.autoencoder.state_dict().values():
            copy_from_first(tensor, world())

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """The loss of one batch, as if the batches of all processes were one."""
        layout = self._layout
        x, target = self._watched(batch)
        found = self._terms(x, target, batch_idx)
        losses = self.objective(found, self.global_step, layout)
        self.firing.update(found.output.latents, layout)
        if self._logs_this_step():
            self._log_step(target, found.output, losses, layout)
        return losses.total

    def on_after_backward(self) -> None:
        """Where the strategy leaves it to us, make the gradient that of all devices' rows."""
        if self._sharded is not None:
            self._sharded.average_gradients()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Where rows keep norm 1, leave only the part of the gradient that keeps it."""
        if self.autoencoder.unit_norm:
            project_gradient(self.autoencoder.dictionary)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as Lightning does, which refuses fused optimizers even where nothing is scaled."""
        plugin = self.trainer.precision_plugin
        if isinstance(plugin, MixedPrecision) and plugin.scaler is None:
            kind = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
            Precision.clip_gradients(plugin, optimizer, gradient_clip_val or 0.0, kind)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then bring the rows back to norm 1 before anything is saved or measured."""
        super().optimizer_step(*args, **kwargs)
        self.after_optimizer_step()

    def after_optimizer_step(self) -> None:
        """Bring the rows back to norm 1 where they keep it."""
        if self.autoencoder.unit_norm:
            normalize_rows(self.autoencoder.dictionary)

    def on_fit_end(self) -> None:
        """Leave torch's precision as it was."""
        torch.set_float32_matmul_precision(self._precision_before)

    def on_train_epoch_end(self) -> None:
        """Do not end on activations that could not be read."""
        self.watch.check(self._layout.rows)

    def on_train_end(self) -> None:
        """Leave every process with the whole run's firing counts."""
        self.firing.synchronize(world())

    def on_validation_epoch_start(self) -> None:
        """Begin to measure; the values stay until the next split begins."""
        self.evaluation.reset()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Measure one batch of the validation split."""
        x, target = self._watched(batch)
        output = self._output(x, batch_idx)
        decorrelation = self.objective.decorrelation_weight > 0
        zero = self.output_scaling(torch.zeros_like(self.output_scaling.mean))
        self.evaluation.update(target, output, decorrelation, self._layout, zero)

    def on_validation_epoch_end(self) -> None:
        """Log what was measured."""
        self._log_evaluation("val")

    def on_test_epoch_start(self) -> None:
        """Begin to measure."""
        self.on_validation_epoch_start()

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        """Measure one batch of the test split."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """Log what was measured."""
        self._log_evaluation("test")

    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """The latents of a batch of raw activations, `(rows, latent_dim)`."""
        x, _ = self._watched(batch)
        return self.autoencoder.encode(x)

    def on_predict_epoch_end(self) -> None:
        """Do not end on activations that could not be read."""
        self.watch.check(world())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what identifies the data, and the firing counts of all processes."""
        # Afterwards `on_train_end` has done both, and the processes no longer wait for each other.
        if self.trainer.state.status == TrainerStatus.RUNNING:
            self.watch.check(self._layout.rows)
            self.firing.synchronize(world())
        if "state_dict" in checkpoint:
            checkpoint["state_dict"]["firing.tokens_since"] = self.firing.tokens_since
        for name in ("source", "cache_identity"):
            value = self._of_data(name)
            if value is not None:
                checkpoint[name] = value
        checkpoint["float32_matmul_precision"] = torch.get_float32_matmul_precision()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another autoencoder, or to go on training on other rows."""
        trainer = self._trainer
        resume = trainer is not None and trainer.state.fn == TrainerFn.FITTING
        # A strategy that divides the latents has taken the weights out, and loaded them itself.
        checkpoint = {"state_dict": self.state_dict(), **checkpoint}
        self._check(checkpoint, getattr(trainer, "datamodule", None), resume)
        self._scaling_was_loaded = True
        self._resumed_precision = checkpoint.get("float32_matmul_precision")
        if trainer is None:  # loaded to be used
            self.eval()

    def check_checkpoint(
        self, path: str | PathLike[str], data: LightningDataModule | None, *, resume: bool
    ) -> None:
        """Refuse at once what would be refused when the checkpoint is loaded.

        Args:
            path: The checkpoint.
            data: What the run measures or trains on.
            resume: Whether training is to go on, which it does only on the same rows.

        Raises:
            InputError: If the file cannot be read, or the checkpoint is one of another
                autoencoder, language model or site, of other rows to go on training on, or of
                weights alone.
        """
        stored = read(path)
        if resume and "optimizer_states" not in stored:
            raise InputError(
                f"{path} holds weights alone, as palinka import writes them: training cannot go on"
                " from it, but validate, test, predict and analyze take it"
            )
        self._check(stored, data, resume)

    def _check(self, checkpoint: Mapping[str, Any], data: Any, resume: bool) -> None:
        check_fit(self.autoencoder, checkpoint)
        check_source(getattr(data, "source", None), checkpoint)
        if resume:
            check_cache(getattr(data, "cache_identity", None), checkpoint)

    def _of_data(self, name: str) -> Any:
        """What the data module says of itself; None where it does not, or there is none."""
        return getattr(getattr(self.trainer, "datamodule", None), name, None)

    @property
    def _is_divided(self) -> bool:
        return self._sharded is not None

    @property
    def _layout(self) -> Layout:
        """Who has the other rows of the batch, and who the other latents."""
        return Layout(rows=world()) if self._sharded is None else self._sharded.layout

    def _terms(self, x: Tensor, target: Tensor, batch_idx: int) -> Terms:
        """What a batch adds to the loss, before weights."""
        step = Step(
            x,
            target=target,
            layout=self._layout,
            dead=self._dead,
            auxiliary_k=self.auxiliary_k,
        )
        if self._sharded is not None:
            return terms_of(self._output(x, batch_idx), step)
        return terms(self.autoencoder, step)

    def _dead(self) -> Tensor:
        """Which latents have not fired for long on any process; all of them must ask."""
        self.firing.synchronize(world())
        return self.firing.dead(self.dead_after_tokens)

    def _output(self, x: Tensor, batch_idx: int) -> AutoencoderOutput:
        """What the autoencoder makes of a batch; of divided latents, those of this process."""
        if self._sharded is None:
            output: AutoencoderOutput = self.autoencoder(x)
            return output
        if batch_idx == 0:
            self._sharded.check_rows(x)
        return self._sharded(x)

    def _watched(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """What the autoencoder sees of a batch and what it is to give; notice NaN and Inf."""
        x, target = self._split(batch)
        self.watch.update(x)
        if target is not x:
            self.watch.update(target)
        return x, target

    def _logs_this_step(self) -> bool:
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return every > 0 and (self.global_step + 1) % every == 0

    def _log_step(
        self,
        target: Tensor,
        output: AutoencoderOutput | CompactOutput,
        losses: Losses,
        layout: Layout,
    ) -> None:
        """Log the losses and metrics of this step's batch, over all processes."""
        self.watch.check(layout.rows)
        named = losses.named
        values = torch.stack([term.detach().double() for term in named.values()])
        means = sum_over(values, layout.rows) / processes(layout.rows)
        total = means.sum()
        if not torch.isfinite(total):
            raise InputError(
                f"the loss is {float(total)} at step {self.global_step} although the activations"
                " are finite: training diverged; use a lower learning rate"
            )
        self.firing.synchronize(world())
        self._log_values(
            {
                "loss/total": total,
                **{f"loss/{name}": mean for name, mean in zip(named, means, strict=True)},
                **measure_batch(target, output, self.autoencoder.latent_dim, layout),
                "sparsity/dead": self.firing.dead(self.dead_after_tokens).double().mean(),
            },
            batch_size=len(target),
        )

    def _log_evaluation(self, split: str) -> None:
        self.watch.check(self._layout.rows)
        values = self.evaluation.compute(self.objective)
        if has_own_terms(self.autoencoder):  # then a batch, or the run so far, is part of its loss
            values = {n: value for n, value in values.items() if not n.startswith("loss/")}
        self._log_values({f"{split}/{n}": v for n, v in values.items()}, sync_dist=True)

    def _log_values(self, values: dict[str, Tensor], **options: Any) -> None:
        for name, value in values.items():
            self.log(name, value, prog_bar=name in PROGRESS_BAR, **options)
