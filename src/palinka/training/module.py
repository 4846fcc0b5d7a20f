"""The `LightningModule` around a sparse autoencoder."""

from collections.abc import Mapping
from dataclasses import asdict
from os import PathLike
from typing import Any, Self

import torch
import torch.distributed as dist
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from lightning.pytorch.utilities import GradClipAlgorithmType, rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.func import functional_call
from torch.nn import Buffer
from torch.optim import Optimizer

from palinka.autoencoders import Autoencoder, AutoencoderOutput, InputScaling, SparseOutput
from palinka.autoencoders.base import positive_integer
from palinka.autoencoders.distributed import Sharding, broadcast, sum_over, world, world_size
from palinka.autoencoders.formats import fold
from palinka.autoencoders.kernels import normalize_rows_, project_gradient_
from palinka.autoencoders.sharded import ShardedAutoencoder
from palinka.errors import InputError
from palinka.language_models.cpu import choose_products, keep_freed_memory
from palinka.training.checkpoint import (
    check_cache,
    check_fit,
    check_source,
    describe,
    read,
    restore,
    settings_of,
    unreadable,
)
from palinka.training.losses import Losses, Objective, Step, Terms, has_own_terms, terms, terms_of
from palinka.training.metrics import Evaluation, FiringClock, measure_batch


class ActivationWatch(nn.Module):
    """Counts the batches with NaN or Inf on the device; `check` is where the count is read."""

    def __init__(self) -> None:
        super().__init__()
        self.unreadable = Buffer(torch.zeros((), dtype=torch.int64), persistent=False)

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Take one batch; a sum is finite only if every summand is."""
        self.unreadable.add_(~torch.isfinite(x.sum()))

    def check(self, group: dist.ProcessGroup | None = None) -> None:
        """Stop on every process if any process saw such a batch.

        Raises:
            InputError: If there was one.
        """
        unreadable = int(sum_over(self.unreadable.clone(), group))
        if unreadable:
            raise InputError(
                f"{unreadable} batches of activations hold NaN or Inf: look at the language"
                " model's output at this site, or store the activations in a wider dtype"
            )


def project_gradient(dictionary: Tensor) -> None:
    """Take out of each row's gradient what would only change the row's norm.

    Args:
        dictionary: A leaf with rows of norm 1, `(latent_dim, input_dim)`; its `.grad` is
            changed in place.
    """
    if dictionary.grad is not None:
        project_gradient_(dictionary.grad, dictionary)


def normalize_rows(dictionary: Tensor) -> None:
    """Scale each row to norm 1, in place; a row of zeros stays one."""
    normalize_rows_(dictionary)


@torch.no_grad()
def unit_rows(dictionary: Tensor) -> Tensor | None:
    """Scaled copy of rows that are not of norm 1, such as means of several; None where they are."""
    norms = dictionary.detach().float().norm(dim=1)
    # What rounding leaves of a row that has been scaled.
    tolerance = max(1e-5, 4 * torch.finfo(dictionary.dtype).eps)
    if not bool((((norms - 1.0).abs() > tolerance) & (norms > 0)).any()):
        return None
    unit = dictionary.detach().clone()
    normalize_rows_(unit)
    return unit


# Weights of fewer elements are not worth a trial, nor a difference in the last digit.
WORTH_A_TRIAL = 1 << 20
_CHOICES = ("highest", "medium")


def prepare_machine(
    autoencoder: Autoencoder, device: torch.device, precision: str | None = None
) -> str:
    """Before a fit on the CPU, let memory be reused and choose how float32 is multiplied.

    Whoever has set torch's precision of float32 products keeps it. All processes take what the
    first one has found, and a run that goes on what it began with, so that it ends the same.

    Args:
        autoencoder: What is to be trained.
        device: Where.
        precision: torch's precision with which the run began, if it goes on.

    Returns:
        torch's precision before, for `torch.set_float32_matmul_precision` when the fit is over.
    """
    before = torch.get_float32_matmul_precision()
    if device.type != "cpu":
        return before
    keep_freed_memory()
    size = autoencoder.input_dim * autoencoder.latent_dim
    if size < WORTH_A_TRIAL or before != "highest":
        return before
    if precision in _CHOICES:
        torch.set_float32_matmul_precision(precision)
        return before
    chosen, reason = choose_products()
    torch.set_float32_matmul_precision(_of_first_process(chosen))
    rank_zero_info(reason)
    return before


def _of_first_process(precision: str) -> str:
    choice = torch.tensor(_CHOICES.index(precision))
    return _CHOICES[int(broadcast(choice, world()))]


def divide(autoencoder: Autoencoder, mesh: DeviceMesh, trainer: Trainer) -> ShardedAutoencoder:
    """Divide an autoencoder's latents over the devices of a mesh.

    Args:
        autoencoder: Its parameters are replaced.
        mesh: What the trainer's strategy has made of the devices.
        trainer: What is about to run.

    Raises:
        InputError: If the autoencoder cannot be divided, or the run cannot be done with divided
            latents.
    """
    if trainer.state.fn == TrainerFn.PREDICTING:
        raise InputError(
            "predict gives whole rows of latents, which no device holds when they are divided:"
            " use --trainer.strategy auto with --trainer.devices 1"
        )
    check_strategy(trainer.strategy, trainer.world_size)
    return ShardedAutoencoder(autoencoder, mesh)


def check_strategy(strategy: Strategy, devices: int) -> None:
    """Refuse, best before any process is started, a strategy that we cannot run.

    Args:
        strategy: A trainer's; one that does not divide latents is let pass.
        devices: The devices of all nodes.

    Raises:
        InputError: If the sizes of its mesh are not those of the devices, it saves checkpoints
            in parts, or its processes are copies of this one.
    """
    # Lightning keeps this to itself.
    if getattr(strategy, "_start_method", "popen") != "popen":
        raise InputError(
            "the strategies ddp_spawn, ddp_fork and ddp_notebook copy this process, and what the"
            " copies find is lost: use trainer.strategy ddp"
        )
    if not isinstance(strategy, ModelParallelStrategy):
        return
    # So it does these.
    rows, latents = strategy._data_parallel_size, strategy._tensor_parallel_size
    if isinstance(rows, int) and isinstance(latents, int) and rows * latents != devices:
        raise InputError(
            f"data_parallel_size {rows} times tensor_parallel_size {latents} must be the number of"
            f" devices, which is {devices}: change one of them, or trainer.devices"
        )
    if strategy._save_distributed_checkpoint:
        raise InputError(
            "a checkpoint is a single file, which every command reads on any number of devices:"
            " set save_distributed_checkpoint to false in trainer.strategy"
        )


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
        # Rows of norm 1 in place of averages, by their parameter's name, while these are measured.
        self._unit_rows: dict[str, Tensor] = {}
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
        if rows is not None and begins and not self.autoencoder.is_initialized:
            _, target = self._split(rows(FIRST_ROWS).to(self.device))
            self.autoencoder.initialize(target)
        self.autoencoder.is_initialized = True
        for tensor in self.autoencoder.state_dict().values():
            broadcast(tensor, world())

    def on_train_start(self) -> None:
        """Reject a schedule that ends before the run: its next step would raise."""
        steps = self.trainer.estimated_stepping_batches
        for configured in self.trainer.lr_scheduler_configs:
            ends = getattr(configured.scheduler, "total_steps", steps)
            if ends < steps:
                raise InputError(
                    f"{type(configured.scheduler).__name__} ends after {ends} optimizer steps, and"
                    f" the run takes {steps}: give model.lr_scheduler.total_steps {steps}, or"
                    f" trainer.max_steps {ends}"
                )

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """The loss of one batch, as if the batches of all processes were one."""
        sharding = self._sharding
        x, target = self._watched(batch)
        found = self._terms(x, target, batch_idx)
        losses = self.objective(found, self.global_step, sharding)
        self.firing.update(found.output.latents, sharding)
        if self._logs_this_step():
            self._log_step(target, found.output, losses, sharding)
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

    def constrain(self) -> None:
        """Bring rows back to norm 1 that a callback, such as one that averages, took from it."""
        for unit in self._constrained(dict(self.autoencoder.named_parameters())).values():
            with torch.no_grad():
                self.autoencoder.dictionary.copy_(unit)

    def _constrained(self, named: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
        """The rows of norm 1 among named tensors in place of others; none where all have it."""
        if not self.autoencoder.unit_norm or self._sharded is not None:
            return {}
        dictionary = self.autoencoder.dictionary
        own = {prefix + n for n, p in self.autoencoder.named_parameters() if p is dictionary}
        units = {name: unit_rows(named[name]) for name in own & named.keys()}
        return {name: unit for name, unit in units.items() if unit is not None}

    def on_fit_end(self) -> None:
        """Leave torch's precision as it was."""
        torch.set_float32_matmul_precision(self._precision_before)

    def on_train_epoch_end(self) -> None:
        """Do not end on activations that could not be read."""
        self.watch.check(self._sharding.rows)

    def on_train_end(self) -> None:
        """Leave every process with the whole run's firing counts."""
        self.firing.synchronize(world())

    def on_validation_epoch_start(self) -> None:
        """Begin to measure; the values stay until the next split begins."""
        self.evaluation.reset()
        # In a fit, a callback that averages has put its average here, which must stay as it is.
        if self.trainer.state.fn == TrainerFn.FITTING:
            self._unit_rows = self._constrained(dict(self.autoencoder.named_parameters()))

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Measure one batch of the validation split."""
        x, target = self._watched(batch)
        output = self._output(x, batch_idx)
        decorrelation = self.objective.decorrelation_weight > 0
        zero = self.output_scaling(torch.zeros_like(self.output_scaling.mean))
        self.evaluation.update(target, output, decorrelation, self._sharding, zero)

    def on_validation_epoch_end(self) -> None:
        """Log what was measured."""
        self._unit_rows = {}
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
            self.watch.check(self._sharding.rows)
            self.firing.synchronize(world())
        if "state_dict" in checkpoint:
            state = checkpoint["state_dict"]
            state["firing.tokens_since"] = self.firing.tokens_since
            units = self._constrained(state, "autoencoder.")
            if units:  # of averages, with which a run that resumes continues
                checkpoint["averaged_rows"] = {name: state[name] for name in units}
                state.update(units)
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
        if resume:
            checkpoint["state_dict"].update(checkpoint.get("averaged_rows", {}))
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
    def _sharding(self) -> Sharding:
        """Who has the other rows of the batch, and who the other latents."""
        return Sharding(rows=world()) if self._sharded is None else self._sharded.sharding

    def _terms(self, x: Tensor, target: Tensor, batch_idx: int) -> Terms:
        """What a batch adds to the loss, before weights."""
        step = Step(
            x,
            target=target,
            sharding=self._sharding,
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
            output: AutoencoderOutput = functional_call(self.autoencoder, self._unit_rows, (x,))
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
        output: AutoencoderOutput | SparseOutput,
        losses: Losses,
        sharding: Sharding,
    ) -> None:
        """Log the losses and metrics of this step's batch, over all processes."""
        self.watch.check(sharding.rows)
        named = losses.named
        values = torch.stack([term.detach().double() for term in named.values()])
        means = sum_over(values, sharding.rows) / world_size(sharding.rows)
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
                **measure_batch(target, output, self.autoencoder.latent_dim, sharding),
                "sparsity/dead": self.firing.dead(self.dead_after_tokens).double().mean(),
            },
            batch_size=len(target),
        )

    def _log_evaluation(self, split: str) -> None:
        self.watch.check(self._sharding.rows)
        values = self.evaluation.compute(self.objective)
        if has_own_terms(self.autoencoder):  # then a batch, or the run so far, is part of its loss
            values = {n: value for n, value in values.items() if not n.startswith("loss/")}
        self._log_values({f"{split}/{n}": v for n, v in values.items()}, sync_dist=True)

    def _log_values(self, values: dict[str, Tensor], **options: Any) -> None:
        for name, value in values.items():
            self.log(name, value, prog_bar=name in PROGRESS_BAR, **options)
