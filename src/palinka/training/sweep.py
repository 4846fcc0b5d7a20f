"""Training of several variants on one pass."""

from collections.abc import Callable, Mapping
from functools import partial
from os import PathLike
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import ReduceLROnPlateau
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import Optimizer

from palinka.errors import InputError
from palinka.training.checkpoint import VARIANTS, check_matches, read
from palinka.training.module import SparseAutoencoderModule

# Entries of a schedule's state with one value for each parameter group.
PER_GROUP = ("base_lrs", "_last_lr", "lr_lambdas", "min_lrs")


def of_variant(checkpoint: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Extract the checkpoint of one variant, as a run of its own would have left it."""
    settings = checkpoint["hyper_parameters"][VARIANTS]
    index = list(settings).index(name)
    parts: dict[str, Callable[[Any], Any]] = {
        "state_dict": lambda state: strip_prefix(state, f"members.{index}."),
        # WeightAveraging's, which has put its average into the one above.
        "current_model_state": lambda state: strip_prefix(state, f"members.{index}."),
        "optimizer_states": lambda states: [_of_group(state, index) for state in states],
        "lr_schedulers": lambda states: _of_schedule(states, index, len(settings)),
        "run": lambda run: {
            key: strip_prefix(value, f"{name}/") if isinstance(value, Mapping) else value
            for key, value in run.items()
        },
    }
    own = {
        key: parts[key](value) if key in parts else value
        for key, value in checkpoint.items()
        if key not in (VARIANTS, "hparams_name")
    }
    return {**own, "hyper_parameters": settings[name], **checkpoint.get(VARIANTS, {}).get(name, {})}


def strip_prefix(named: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Entries whose names begin with a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in named.items() if k.startswith(prefix)}


def _of_group(state: Mapping[str, Any], index: int) -> dict[str, Any]:
    """Optimizer state of one parameter group, renumbered from zero."""
    group, values = state["param_groups"][index], state["state"]
    own = {new: values[old] for new, old in enumerate(group["params"]) if old in values}
    return {"state": own, "param_groups": [{**group, "params": list(range(len(group["params"])))}]}


def _of_schedule(state: Any, index: int, groups: int) -> Any:
    """Schedule state of one parameter group; schedules may hold other schedules."""
    if isinstance(state, Mapping):
        return {
            key: [value[index]]
            if key in PER_GROUP and len(value) == groups
            else _of_schedule(value, index, groups)
            for key, value in state.items()
        }
    if isinstance(state, list):
        return [_of_schedule(value, index, groups) for value in state]
    return state


def _for_each_variant(hook: str) -> Callable[..., None]:
    def call(self: "SweepModule", *args: Any) -> None:
        for member in self.variants.values():
            getattr(member, hook)(*args)

    return call


class SweepModule(LightningModule):
    """Train several sparse autoencoders on one pass over the same batches.

    Variants do not affect each other: a step is one backward pass of the sum of their
    losses, the optimizer has a parameter group for each variant, and gradients are clipped for
    each by itself. So every variant ends with the weights and metrics of a run of its own;
    metrics are logged as `NAME/loss/total`.

    Args:
        variants: The modules by name. Their optimizers are of one class, and may differ in
            options; the learning-rate schedule is that of the first.
        settings: Plain values in the checkpoint from which the same variants can be made.
        overrides: Settings by which each variant differs.
    """

    def __init__(
        self,
        variants: Mapping[str, SparseAutoencoderModule],
        settings: Mapping[str, Any] | None = None,
        overrides: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        widths = {member.autoencoder.input_dim for member in variants.values()}
        if len(widths) != 1:
            got = " and ".join(map(str, sorted(widths))) or "none"
            raise InputError(f"a sweep takes variants, all with the same input_dim; got {got}")
        self.names = tuple(variants)
        self.overrides = dict(overrides or {})
        self.members = nn.ModuleList(variants.values())
        for name, member in variants.items():
            # Members log through the sweep, with their name as prefix.
            member.log = partial(self._log_of, name)  # type: ignore[method-assign]
        hparams = {name: dict(member.hparams) for name, member in variants.items()}
        self.save_hyperparameters({VARIANTS: hparams, "settings": dict(settings or {})})
        # DDP would broadcast the first process's own counts at every step.
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in self.named_buffers()]

    @property
    def variants(self) -> dict[str, SparseAutoencoderModule]:
        """The modules by name."""
        return dict(zip(self.names, self.members, strict=True))  # type: ignore[arg-type]

    def setup(self, stage: str) -> None:
        """Set up every variant; reject loss scaling, by which an overflow in one affects all."""
        plugin = self.trainer.strategy.precision_plugin
        if stage == "fit" and getattr(plugin, "scaler", None) is not None:
            raise InputError("16-mixed skips all variants' step if one overflows: use bf16-mixed")
        for member in self.variants.values():
            member.trainer = self.trainer
            member.setup(stage)

    def configure_model(self) -> None:
        """Reject sharding of latents."""
        if self.device_mesh is not None:
            raise InputError("a sweep's latents cannot be sharded: use trainer.strategy ddp")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Make one optimizer with a parameter group for each variant, and its schedule."""
        members = list(self.variants.values())
        optimizers = [m.optimizer_factory(m.autoencoder.parameters()) for m in members]
        optimizer = optimizers[0]
        kinds = {type(o).__name__ for o in optimizers}
        # A line search would be over the parameters of all variants together.
        alike = len(kinds) == 1 and kinds != {"LBFGS"}
        if not alike or any(len(o.param_groups) != 1 for o in optimizers):
            got = f"one group of parameters each; got {', '.join(sorted(kinds))}"
            raise InputError(f"a sweep's optimizers are of one class other than LBFGS, with {got}")
        for other in optimizers[1:]:
            optimizer.add_param_group(other.param_groups[0])
        configured = members[0].scheduled(optimizer)
        schedule = configured.get("lr_scheduler") if isinstance(configured, dict) else None
        if isinstance(schedule, dict) and isinstance(schedule["scheduler"], ReduceLROnPlateau):
            raise InputError("ReduceLROnPlateau follows one variant alone: use CosineAnnealingLR")
        return configured

    on_fit_start = _for_each_variant("on_fit_start")
    on_train_start = _for_each_variant("on_train_start")
    on_after_backward = _for_each_variant("on_after_backward")
    on_before_optimizer_step = _for_each_variant("on_before_optimizer_step")
    constrain = _for_each_variant("constrain")
    on_train_epoch_end = _for_each_variant("on_train_epoch_end")
    on_train_end = _for_each_variant("on_train_end")
    on_validation_epoch_start = _for_each_variant("on_validation_epoch_start")
    validation_step = _for_each_variant("validation_step")
    on_validation_epoch_end = _for_each_variant("on_validation_epoch_end")

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Sum the variants' losses, which share no parameters."""
        losses = [member.training_step(batch, batch_idx) for member in self.variants.values()]
        return torch.stack(losses).sum()

    def configure_gradient_clipping(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:
        """Clip the gradient of each variant by its own norm."""
        by_value = self.trainer.gradient_clip_algorithm == "value"
        clip = clip_grad_value_ if by_value else clip_grad_norm_
        if amount := self.trainer.gradient_clip_val:
            for group in optimizer.param_groups:
                clip(group["params"], amount)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then normalize the rows of each variant."""
        super().optimizer_step(*args, **kwargs)
        for member in self.variants.values():
            member.after_optimizer_step()

    def on_fit_end(self) -> None:
        """Restore torch's matmul precision as it was before the first variant began."""
        next(iter(self.variants.values())).on_fit_end()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what each variant adds to its own checkpoint."""
        state = checkpoint["state_dict"]
        checkpoint[VARIANTS] = {}
        for index, (name, member) in enumerate(self.variants.items()):
            prefix = f"members.{index}."
            own: dict[str, Any] = {"state_dict": strip_prefix(state, prefix)}
            member.on_save_checkpoint(own)
            state.update({prefix + key: value for key, value in own.pop("state_dict").items()})
            checkpoint[VARIANTS][name] = own

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint has the same variants, and each variant's part."""
        self._check_names(checkpoint)
        state = checkpoint["state_dict"]
        for index, (name, member) in enumerate(self.variants.items()):
            own = of_variant(checkpoint, name)
            member.on_load_checkpoint(own)
            state.update({f"members.{index}.{key}": v for key, v in own["state_dict"].items()})

    def check_checkpoint(
        self, path: str | PathLike[str], data: LightningDataModule | None, *, resume: bool
    ) -> None:
        """Check before a run that the checkpoint to resume or to measure matches it."""
        checkpoint = read(path, allow_sweep=True)
        self._check_names(checkpoint)
        for name, member in self.variants.items():
            check_matches(of_variant(checkpoint, name), member.autoencoder, data, resume)

    def _check_names(self, checkpoint: Mapping[str, Any]) -> None:
        theirs = list(checkpoint["hyper_parameters"].get(VARIANTS, {}))
        if theirs != list(self.names):
            held = f"the checkpoint holds {', '.join(theirs) or 'a single autoencoder'}"
            ours = f"this run is a sweep of {', '.join(self.names)}"
            raise InputError(f"{held}, but {ours}: give the same variants in the same order")

    def _log_of(self, variant: str, name: str, value: Any, **options: Any) -> None:
        # The progress bar has no room for all variants.
        self.log(f"{variant}/{name}", value, **{**options, "prog_bar": False})
