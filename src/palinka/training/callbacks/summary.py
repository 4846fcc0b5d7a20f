"""Final metrics and output paths of a run, or of a sweep's variants side by side."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.trainer.states import TrainerFn
from matplotlib.figure import Figure

from palinka.analyses.figures.sparsity_frontier import sparsity_frontier
from palinka.analyses.findings import Findings
from palinka.analyses.result import Result, Table
from palinka.autoencoders import BatchTopKAutoencoder
from palinka.errors import escape_control_chars, expanded, shell_path
from palinka.training.callbacks.base import TrainedModel, iter_models, log_folder
from palinka.training.callbacks.checkpoints import FOLDER, MEASURED_AT, NEWEST, metrics_file
from palinka.training.callbacks.tensorboard import write_findings
from palinka.training.sweep import SweepModule

# Labels and units in the table's order; `%` takes a share times 100, `{kind}` is InputScaling's.
ROWS = {
    "val/fvu": ("variance unexplained (FVU)", "%"),
    "val/fvu_legacy": ("FVU about zero, as in older papers", "%"),
    "val/mse": ("mean squared error (MSE)", "per number, of {kind} activations"),
    "val/cosine": ("cosine of input and output, mean", "of {kind} activations"),
    "val/l0": ("active per token (L0)", "latents"),
    "val/l1": ("sum of a token's latents (L1)", ""),
    "val/dead": ("never active", "% of latents on this text"),
    "val/ce_clean": ("cross-entropy, clean", "nats per token"),
    "val/ce_spliced": ("cross-entropy, spliced", "nats per token"),
    "val/ce_delta": ("increase of the cross-entropy", "nats per token"),
    "val/ce_ablated": ("cross-entropy, site at zero", "nats per token"),
    "val/ce_ablated_mean": ("cross-entropy, site at its mean", "nats per token"),
    "val/loss_recovered": ("loss recovered, from zero", "%"),
    "val/loss_recovered_mean": ("loss recovered, from the mean", "%"),
    "val/kl": ("KL(clean ‖ spliced)", "nats per token"),
    "val/site_mse": ("MSE at the error_site", "per number"),
    "val/site_recovered": ("recovered there, from the mean", "%"),
    "reconstruction/fvu": ("FVU of the last training batch logged", "%"),
    "throughput/tokens_per_second": ("training speed", "tokens per second when last logged"),
}
# Columns of a sweep's table in the terminal; the file has all metrics.
SHOWN = {
    "val/fvu": "FVU",
    "val/l0": "L0",
    "val/dead": "silent",
    "val/mse": "MSE",
    "val/ce_delta": "ΔCE",
    "val/loss_recovered": "recovered",
}
DOCUMENTS = "val_interval/documents"  # the number that the intervals are over
# Settings that move a dictionary along its L0-FVU curve, not onto another.
ALONG = ("k", "sparsity_weight", "initial_threshold", "seed")


def final_report(trainer: Trainer, split: str = "val") -> str:
    """Table of the final metrics of a split, `val` or `test`, with the output paths."""
    metrics = {
        name.replace(split, "val", 1) if name.startswith(split) else name: float(value)
        for name, value in trainer.callback_metrics.items()
    }
    kind = getattr(getattr(trainer.lightning_module, "output_scaling", None), "kind", "raw")
    rows = {n: (label, u.format(kind=kind)) for n, (label, u) in ROWS.items() if n in metrics}
    width = max((len(label) for label, _ in rows.values()), default=0)
    lines = [""]
    for name, (label, unit) in rows.items():
        low, high = interval(metrics, name)
        bounds = "" if low is None else f" [{_in_unit(low, unit)}, {_in_unit(high, unit)}]"
        value = f"{_in_unit(metrics[name], unit):>8} {unit}{bounds}"
        lines.append(f"  {label:<{width}}  {value}".rstrip())
    if any(interval(metrics, name)[0] is not None for name in rows):
        documents = metrics.get(DOCUMENTS, math.nan)
        lines.append(f"  in brackets: 95 % intervals over {documents:.0f} documents")
    lines += _unsettled(trainer, metrics)
    lines += _worse_than_mean(trainer, metrics.get("val/fvu", metrics.get("reconstruction/fvu", 0)))
    lines += _validated_at(trainer)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        for found in getattr(callback, "headlines", {}).values():
            lines += ["", *(f"  {line}" for line in found)]
    return "\n".join([*lines, *log_locations(trainer)])


def _in_unit(value: float | None, unit: str) -> str:
    value = (value or 0.0) * (100 if unit.startswith("%") else 1)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _unsettled(trainer: Trainer, metrics: Mapping[str, float]) -> list[str]:
    """Line on the L0 of a BatchTopK that is far from k, as it is early in training."""
    model = getattr(trainer.lightning_module, "autoencoder", None)
    if not isinstance(model, BatchTopKAutoencoder):
        return []
    if abs(metrics.get("val/l0", model.k) - model.k) <= model.k / 5:
        return []
    average = f"L0 is not k = {model.k}: outside training, a running mean of the batches'"
    return [f"  {average} thresholds chooses latents, which takes some hundred steps to settle"]


def _worse_than_mean(trainer: Trainer, *fvu: float) -> list[str]:
    """Line with what to try, where any FVU is above 1."""
    if not any(value > 1 for value in fvu):
        return []
    check = "check data.language_model and data.site, or " * (trainer.state.fn != TrainerFn.FITTING)
    remedy = f"{check}train longer (trainer.max_epochs), with data.center and data.unit_norm true"
    return [f"  an FVU above 100 % is worse than predicting the mean: {remedy}"]


def _validated_at(trainer: Trainer) -> list[str]:
    """Line with the step of the last validation, unless that is the last step."""
    step, last = trainer.callback_metrics.get(MEASURED_AT), trainer.global_step
    return [] if step in (None, last) else [f"  validated at step {step:.0f}; the last is {last}"]


def interval(metrics: Mapping[str, Any], name: str) -> tuple[float | None, float | None]:
    """Bounds of the interval of a metric such as `val/kl`; None where there is none."""
    prefix = name.replace("/", "_interval/")
    return metrics.get(f"{prefix}/low"), metrics.get(f"{prefix}/high")


def sweep_report(trainer: Trainer, sweep: SweepModule) -> str:
    """Table of the final metrics of each variant, with the output paths."""
    rows = list(iter_models(trainer, sweep))
    columns = [name for name in SHOWN if any(name in row.metrics for row in rows)]
    width = max(len("variant"), *(len(row.name) for row in rows))
    head = [f"  {'variant':<{width}}", *(f"{SHOWN[name]:>10}" for name in columns)]
    lines = ["", "  ".join(head)]
    for row in rows:
        values = [f"{float(row.metrics.get(name, math.nan)):>10.5g}" for name in columns]
        lines.append("  ".join([f"  {escape_control_chars(row.name):<{width}}", *values]))
    lines += _worse_than_mean(trainer, *(float(row.metrics.get("val/fvu", 0)) for row in rows))
    return "\n".join([*lines, *_validated_at(trainer), *log_locations(trainer)])


def log_locations(trainer: Trainer) -> list[str]:
    """Lines with the log folder and each logger's output; none of a fast_dev_run."""
    if trainer.fast_dev_run or trainer.barebones:  # type: ignore[attr-defined]
        return []
    folder = log_folder(trainer)
    last, found = folder / FOLDER / NEWEST, folder / "analyses"
    lines = ["", f"results in   {shell_path(folder)}"]
    lines += [f"checkpoint in   {shell_path(last)}"] * last.exists()
    lines += [f"findings in   {shell_path(found)}"] * found.exists()
    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger):
            lines.append(f"metrics in   {shell_path(metrics_file(logger))}")
        elif isinstance(logger, TensorBoardLogger):
            root = shell_path(expanded(logger.root_dir))
            lines.append(f"look at the curves with   tensorboard --logdir {root}")
        else:
            files = isinstance(logger, WandbLogger) and Path(logger.experiment.dir)
            if written := files.parent if files else logger.save_dir:
                lines.append(f"{type(logger).__name__} in   {shell_path(Path(written))}")
    return list(dict.fromkeys(lines))  # the variants of a sweep log below its folder


@dataclass(frozen=True)
class SweepResult(Result):
    """Overrides and final metrics of every variant."""

    variants: Table

    def tables(self) -> dict[str, Table]:
        """One row for each variant."""
        return {"variants": self.variants}


class SweepFindings(Callback):
    """Write the final metrics of a sweep's variants to `<log_dir>/analyses/sweep/`.

    A table, `variants.csv`, and a figure of FVU against L0, also in TensorBoard.
    """

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Write the table and the figure, on the process that logs."""
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        variants = list(iter_models(trainer, module))
        metrics = [
            {n: float(v) for n, v in one.metrics.items() if n.startswith("val") or n in ROWS}
            for one in variants
        ]
        table: Table = {"variant": [one.name for one in variants]}
        # Not every variant has all of the overrides.
        for rows in ([one.overrides for one in variants], metrics):
            for name in {name: None for row in rows for name in row}:
                table[name] = [row.get(name, "") for row in rows]
        results, figures = {"": SweepResult(table)}, _figures(variants)
        write_findings(Findings("sweep", results, figures=figures), trainer)


def _figures(variants: Sequence[TrainedModel]) -> dict[str, Figure]:
    """FVU against L0; variants that differ in their sparsity alone form a curve."""
    families: dict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for one in variants:
        if {"val/l0", "val/fvu"} <= one.metrics.keys():
            alike = [other for other in variants if _architecture(other) == _architecture(one)]
            settings = (
                f"{name.rpartition('.')[2]}={value}"
                for name, value in one.overrides.items()
                if name not in (*ALONG, "autoencoder")
                and any(other.overrides.get(name) != value for other in alike)
            )
            l0, fvu = families[" ".join([_architecture(one), *settings])]
            l0.append(float(one.metrics["val/l0"]))
            fvu.append(float(one.metrics["val/fvu"]))
    return sparsity_frontier(families) if families else {}


def _architecture(one: TrainedModel) -> str:
    return type(one.module.autoencoder).__name__.removesuffix("Autoencoder")
