from collections.abc import Mapping
from dataclasses import asdict
from os import PathLike
from typing import Any, Self

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from lightning.pytorch.utilities import GradClipAlgorithmType
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.func import functional_call
from torch.optim import Optimizer

from palinka.autoencoders import Autoencoder, AutoencoderOutput, InputScaling
from palinka.autoencoders.base import build, positive_integer
from palinka.autoencoders.distributed import Sharding, all_reduce, broadcast, world, world_size
from palinka.autoencoders.formats import fold
from palinka.autoencoders.kernels.topk import normalize_rows_, project_gradient_
from palinka.autoencoders.sharded import ShardedAutoencoder
from palinka.errors import InputError
from palinka.language_models.cpu import tune_cpu
from palinka.training import checkpoint as checkpoints
from palinka.training import losses
from palinka.training.metrics import DeadLatentTracker, Evaluation, NaNDetector, measure_batch

# Maximum number of training rows for data-dependent initialization.
FIRST_ROWS = 32_768
PROGRESS_BAR = frozenset({"loss/total", "reconstruction/fvu", "val/fvu"})


class SparseAutoencoderModule(LightningModule):
    """Train and evaluate a sparse autoencoder on activations.

    A batch is a tensor of raw activations, `(rows, input_dim)`, in any floating dtype; for a
    transcoder, `(rows, input_dim + output_dim)`, with the target on the right. The loss and the
    metrics are those of centered and scaled activations, if the data module sets them; `encode`,
    `decode` and calling the module take and give raw activations.

    Under Lightning's `ModelParallelStrategy` the latents are sharded over the devices of its
    `tensor_parallel` dimension, and the rows of a batch over those of `data_parallel`. Only
    checkpoints hold all latents then; to `encode`, `decode` or call the module, load one on a
    single device.

    Args:
        autoencoder: The autoencoder.
        sparsity_weight: Weight of the mean absolute latent, or of an architecture's own penalty;
            default that of the architecture: 1 for k-sparse, 0 for other top-k kinds.
        decorrelation_weight: Weight of the squared covariances between latents, summed; default
            that of the architecture: 5e-4 for k-sparse, 0 for others and for transcoders.
        sparsity_warmup_steps: Steps of linear growth of the weight from zero.
        decorrelation_warmup_steps: The same for the decorrelation penalty.
        auxiliary_weight: Weight of the auxiliary loss of some architectures; default that of
            its paper: 1/32 for AuxK, 1 for the gate's.
        auxiliary_k: Number of dead latents in AuxK; default `input_dim // 2`.
        dead_after_tokens: Tokens without firing that make a latent dead.
        optimizer: Makes the optimizer from the parameters.
        lr_scheduler: Makes the learning-rate schedule, in optimizer steps, from the optimizer.
    """

    def __init__(
        self, autoencoder: Autoencoder, sparsity_weight: float | None = None,
        decorrelation_weight: float | None = None, sparsity_warmup_steps: int = 0,
        decorrelation_warmup_steps: int = 0, auxiliary_weight: float | None = None,
        auxiliary_k: int | None = None, dead_after_tokens: int = 1_000_000,
        optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=1e-4, fused=True),
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        # A checkpoint has the class path and arguments, so that it loads without an autoencoder.
        if isinstance(autoencoder, Mapping):
            kind, arguments = str(autoencoder.get("class_path")), autoencoder.get("init_args", {})
            autoencoder = build(kind, arguments, Autoencoder)  # type: ignore[type-abstract]
        self.autoencoder = autoencoder
        self.scaling = InputScaling(autoencoder.input_dim)
        transcoder = autoencoder.is_transcoder
        self.target_scaling = InputScaling(autoencoder.output_dim) if transcoder else None
        defaults = losses.default_weights(autoencoder)
        given = sparsity_weight, decorrelation_weight
        sparsity, decorrelation = (
            d if g is None else g for g, d in zip(given, defaults, strict=True)
        )
        warmups = sparsity_warmup_steps, decorrelation_warmup_steps
        self.objective = losses.Objective(sparsity, decorrelation, *warmups, auxiliary_weight)
        if auxiliary_k is not None:
            positive_integer("auxiliary_k", auxiliary_k)
        self.auxiliary_k = auxiliary_k
        self.dead_after_tokens = positive_integer("dead_after_tokens", dead_after_tokens)
        self.optimizer_factory = optimizer
        self.lr_scheduler_factory = lr_scheduler
        described = {"autoencoder": checkpoints.describe(autoencoder)}
        limits = {"auxiliary_k": auxiliary_k, "dead_after_tokens": dead_after_tokens}
        self.save_hyperparameters({**described, **asdict(self.objective), **limits})
        self.firing = DeadLatentTracker(autoencoder.latent_dim)
        self.evaluation = Evaluation(autoencoder.output_dim, autoencoder.latent_dim)
        self.nan_detector = NaNDetector()
        self._scaling_was_loaded = False
        self._resumed_precision: str | None = None
        # Rows of norm 1 in place of averages, by their parameter's name, during validation.
        self._unit_rows: dict[str, Tensor] = {}
        # Not a submodule: the parameters stay the autoencoder's.
        self._sharded: ShardedAutoencoder | None = None
        # DDP would broadcast the first process's own counts at every step.
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in self.named_buffers()]

    @property
    def output_scaling(self) -> InputScaling:
        """Scaling of the output: the input's, except for a transcoder."""
        return self.scaling if self.target_scaling is None else self.target_scaling

    def encode(self, x: Tensor) -> Tensor:
        """Encode raw activations `(…, input_dim)` to latents `(…, latent_dim)`."""
        return self._whole().encode(self._scaled(x))

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents `(…, latent_dim)` to raw activations `(…, output_dim)`."""
        return self.output_scaling.inverse(self._whole().decode(latents))

    def decode_for(self, latents: Tensor, x: Tensor) -> Tensor:
        """Decode latents `(…, latent_dim)` of raw activations `x` to raw ones `(…, output_dim)`."""
        return self.output_scaling.inverse(self._whole().decode_for(latents, self._scaled(x)))

    def forward(self, x: Tensor) -> AutoencoderOutput:
        """Encode and decode raw activations `(…, input_dim)`."""
        latents = self.encode(x)
        return AutoencoderOutput(reconstruction=self.decode_for(latents, x), latents=latents)

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write the autoencoder for raw activations: centering and scaling go into the weights."""
        fold(self._whole(), self.scaling, self.target_scaling).save_pretrained(folder)

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Self:
        """Load as Lightning does, but raise an InputError if that fails."""
        with checkpoints.readable(checkpoint_path):
            return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)

    def setup(self, stage: str) -> None:
        """Set centering and scaling from the training data, unless a checkpoint has."""
        if stage != "fit" or self._scaling_was_loaded:
            return
        for of, scaling in (("input", self.scaling), ("target", self.target_scaling)):
            statistics = self._of_data(f"{of}_statistics")
            if scaling is not None and statistics is not None:
                scaling.set(torch.as_tensor(statistics.mean), float(statistics.scale))

    def configure_model(self) -> None:
        """Shard latents over devices where the trainer's strategy has a mesh of them."""
        if self.device_mesh is not None and self._sharded is None:
            checkpoints.check_strategy(self.trainer.strategy, self.trainer.world_size)
            self._sharded = ShardedAutoencoder(self.autoencoder, self.device_mesh)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Make the optimizer over the autoencoder's parameters, and its schedule."""
        return self.scheduled(self.optimizer_factory(self.autoencoder.parameters()))

    def scheduled(self, optimizer: Optimizer) -> OptimizerLRScheduler:
        """Combine an optimizer with this module's learning-rate schedule, if any."""
        if self.lr_scheduler_factory is None:
            return optimizer
        schedule = self.lr_scheduler_factory(optimizer)
        configured: Any = {"scheduler": schedule, "interval": "step"}
        if isinstance(schedule, ReduceLROnPlateau):
            configured = {"scheduler": schedule, "monitor": schedule.monitor}
        return {"optimizer": optimizer, "lr_scheduler": configured}

    def on_fit_start(self) -> None:
        """Initialize from data on rank 0 and broadcast."""
        self.train()  # a loaded checkpoint is in eval mode
        if self.autoencoder.dictionary.dtype == torch.float16:
            raise InputError("float16 weights have too little range: use bf16-true or 16-mixed")
        size = self.autoencoder.input_dim * self.autoencoder.latent_dim
        self._precision_before = tune_cpu(self.device, size, self._resumed_precision)
        if self._sharded is not None:
            return
        rows = self._of_data("training_rows")
        learns = type(self.autoencoder).initialize is not Autoencoder.initialize
        if rows is not None and learns and not self.autoencoder.is_initialized:
            self.autoencoder.initialize(self._inputs(rows(FIRST_ROWS).to(self.device), 0)[1])
        self.autoencoder.is_initialized = True
        for tensor in self.autoencoder.state_dict().values():
            broadcast(tensor, world())

    def on_train_start(self) -> None:
        """Reject a schedule that ends before the run: its next step would raise."""
        steps = self.trainer.estimated_stepping_batches
        for configured in self.trainer.lr_scheduler_configs:
            ends = getattr(configured.scheduler, "total_steps", steps)
            if ends < steps:
                hint = f"give model.lr_scheduler.total_steps {steps}, or trainer.max_steps {ends}"
                raise InputError(f"the schedule ends after {ends} of {steps} steps: {hint}")

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Compute the loss of one batch, as if the batches of all processes were one."""
        x, target = self._inputs(batch, batch_idx)
        step = losses.StepContext(x, target, self._sharding, self._dead, self.auxiliary_k)
        terms = losses.loss_terms(self._sharded or self.autoencoder, step)
        weighted = self.objective(terms, self.global_step, self._sharding)
        self.firing.update(terms.output.latents, self._sharding)
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every > 0 and (self.global_step + 1) % every == 0:
            self._log_step(target, terms, weighted)
        return weighted.total

    def _log_step(self, target: Tensor, terms: losses.LossTerms, weighted: losses.Losses) -> None:
        sharding = self._sharding
        self.nan_detector.check(sharding.rows)
        values = torch.stack([term.detach().double() for term in weighted.values()])
        means = all_reduce(values, sharding.rows) / world_size(sharding.rows)
        if not torch.isfinite(total := means.sum()):
            reached = f"the loss is {float(total)} at step {self.global_step}"
            raise InputError(f"{reached}: training diverged; use a lower learning rate")
        logged = {
            "loss/total": total,
            **{f"loss/{name}": mean for name, mean in zip(weighted, means, strict=True)},
            **measure_batch(target, terms.output, self.autoencoder.latent_dim, sharding),
            "sparsity/dead": self._dead().double().mean(),
        }
        for name, value in logged.items():
            self.log(name, value, prog_bar=name in PROGRESS_BAR, batch_size=len(target))

    def on_after_backward(self) -> None:
        """Average the gradients of a sharded autoencoder over all rows."""
        if self._sharded is not None:
            self._sharded.average_gradients()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Project out the gradient's part along rows of norm 1."""
        dictionary = self.autoencoder.dictionary
        if self.autoencoder.unit_norm and dictionary.grad is not None:
            project_gradient_(dictionary.grad, dictionary)

    def configure_gradient_clipping(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:
        """Clip as Lightning does, which rejects fused optimizers even without a scaler."""
        trainer, plugin = self.trainer, self.trainer.precision_plugin
        if isinstance(plugin, MixedPrecision) and plugin.scaler is None:
            kind = trainer.gradient_clip_algorithm or GradClipAlgorithmType.NORM
            Precision.clip_gradients(plugin, optimizer, trainer.gradient_clip_val or 0.0, kind)
        else:
            super().configure_gradient_clipping(optimizer, *args, **kwargs)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then normalize the rows before anything is saved or measured."""
        super().optimizer_step(*args, **kwargs)
        self.after_optimizer_step()

    def after_optimizer_step(self) -> None:
        """Normalize the rows where they have norm 1."""
        if self.autoencoder.unit_norm:
            normalize_rows_(self.autoencoder.dictionary)

    @torch.no_grad()
    def constrain(self) -> None:
        """Normalize rows that a callback, such as one that averages weights, has changed."""
        for unit in self._normalized(self.state_dict()).values():
            self.autoencoder.dictionary.copy_(unit)

    @torch.no_grad()
    def _normalized(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Normalized copy of the dictionary in a state dict, by name, if its rows lack norm 1."""
        dictionary = self.autoencoder.dictionary
        if not self.autoencoder.unit_norm or self._sharded is not None:
            return {}
        # Rounding error of normalized rows.
        tolerance = max(1e-5, 4 * torch.finfo(dictionary.dtype).eps)
        units = {}
        for name in [name for name, p in self.named_parameters() if p is dictionary]:
            norms = state[name].float().norm(dim=1)
            if bool((((norms - 1.0).abs() > tolerance) & (norms > 0)).any()):
                units[name] = state[name].clone()
                normalize_rows_(units[name])
        return units

    def on_fit_end(self) -> None:
        """Restore torch's matmul precision."""
        torch.set_float32_matmul_precision(self._precision_before)

    def on_train_epoch_end(self) -> None:
        """Raise if any batch had NaN or Inf."""
        self.nan_detector.check(self._sharding.rows)

    on_predict_epoch_end = on_train_epoch_end

    def on_train_end(self) -> None:
        """Synchronize the firing counts."""
        self.firing.synchronize(world())

    def on_validation_epoch_start(self) -> None:
        """Reset metrics; the values stay until the next split begins."""
        self.evaluation.reset()
        # In a fit, an averaging callback has put its average here, which must stay as it is.
        if self.trainer.state.fn == TrainerFn.FITTING:
            units = self._normalized(self.state_dict())
            self._unit_rows = {n.removeprefix("autoencoder."): unit for n, unit in units.items()}

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Update metrics with one batch of the validation split."""
        x, target = self._inputs(batch, batch_idx)
        if self._sharded is None:
            output = functional_call(self.autoencoder, self._unit_rows, (x,))
        else:
            output = self._sharded(x)
        penalized = self.objective.decorrelation_weight > 0
        zero = self.output_scaling(torch.zeros_like(self.output_scaling.mean))
        self.evaluation.update(target, output, penalized, self._sharding, zero)

    def on_validation_epoch_end(self) -> None:
        """Log metrics."""
        self._unit_rows = {}
        self.nan_detector.check(self._sharding.rows)
        split = "test" if self.trainer.testing else "val"
        # The loss of other architectures depends on the batch, or on the run so far.
        own_loss = losses.loss_function(self.autoencoder) is not losses.default_terms
        for measured, value in self.evaluation.compute(self.objective).items():
            name = f"{split}/{measured}"
            if not (own_loss and measured.startswith("loss/")):
                self.log(name, value, prog_bar=name in PROGRESS_BAR, sync_dist=True)

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Encode a batch of raw activations to latents, `(rows, latent_dim)`."""
        return self._whole().encode(self._inputs(batch, batch_idx)[0])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the identity of the data, and the firing counts of all processes."""
        # Afterwards `on_train_end` has done both, and collectives are no longer possible.
        if self.trainer.state.status == TrainerStatus.RUNNING:
            self.nan_detector.check(self._sharding.rows)
            self.firing.synchronize(world())
        if state := checkpoint.get("state_dict"):
            state["firing.tokens_since"] = self.firing.tokens_since
            if units := self._normalized(state):  # a resumed run continues with the averages
                checkpoint["averaged_rows"] = {name: state[name] for name in units}
                state.update(units)
        for name in ("source", "cache_identity"):
            if (value := self._of_data(name)) is not None:
                checkpoint[name] = value
        checkpoint["float32_matmul_precision"] = torch.get_float32_matmul_precision()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint matches the model and data."""
        trainer = self._trainer
        resume = trainer is not None and trainer.state.fn == TrainerFn.FITTING
        # A strategy that shards latents has taken the weights out, and loaded them itself.
        checkpoint = {"state_dict": self.state_dict(), **checkpoint}
        data = getattr(trainer, "datamodule", None)
        checkpoints.check_matches(checkpoint, self.autoencoder, data, resume)
        if resume:
            checkpoint["state_dict"].update(checkpoint.get("averaged_rows", {}))
        self._scaling_was_loaded = True
        self._resumed_precision = checkpoint.get("float32_matmul_precision")
        if trainer is None:  # loaded for inference
            self.eval()

    def check_checkpoint(
        self, path: str | PathLike[str], data: LightningDataModule | None, *, resume: bool
    ) -> None:
        """Check before a run that the checkpoint to resume or to measure matches it."""
        stored = checkpoints.read(path)
        if resume and "optimizer_states" not in stored:
            raise InputError(f"{path} holds weights alone: all commands but fit take it")
        checkpoints.check_matches(stored, self.autoencoder, data, resume)

    def _of_data(self, name: str) -> Any:
        """Attribute of the data module; None where there is none."""
        return getattr(getattr(self.trainer, "datamodule", None), name, None)

    @property
    def _sharding(self) -> Sharding:
        return Sharding(rows=world()) if self._sharded is None else self._sharded.sharding

    def _whole(self) -> Autoencoder:
        """The autoencoder, unless its latents are sharded."""
        if self._sharded is not None:
            raise InputError("no device holds all latents: load the checkpoint on a single device")
        return self.autoencoder

    def _dead(self) -> Tensor:
        """Mask of dead latents over all processes; a collective."""
        self.firing.synchronize(world())
        return self.firing.dead(self.dead_after_tokens)

    def _inputs(self, batch: Tensor, batch_idx: int) -> tuple[Tensor, Tensor]:
        """Scaled input `(rows, input_dim)` and target `(rows, output_dim)`, checked for NaN."""
        if self.target_scaling is None:
            x = target = self._scaled(batch)
        else:
            widths = [self.autoencoder.input_dim, self.autoencoder.output_dim]
            what = "activations with those of a target site"
            self.autoencoder.check_width(batch, sum(widths), what)
            x, target = torch.split(batch, widths, dim=-1)
            x, target = self._scaled(x), self._scaled(target, self.target_scaling)
            self.nan_detector.update(target)
        self.nan_detector.update(x)
        if self._sharded is not None and batch_idx == 0:
            self._sharded.check_rows(x)
        return x, target

    def _scaled(self, x: Tensor, scaling: InputScaling | None = None) -> Tensor:
        scaling = scaling or self.scaling
        self.autoencoder.check_width(x, len(scaling.mean), "activations")
        scaled: Tensor = scaling(x)
        return scaled.to(self.autoencoder.dictionary.dtype)
