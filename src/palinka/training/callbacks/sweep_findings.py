"""Compare sweep variants."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from matplotlib.figure import Figure

from palinka.analyses.figures.sparsity_frontier import sparsity_frontier
from palinka.analyses.findings import Findings
from palinka.analyses.result import Result, Table
from palinka.errors import escape_control_chars
from palinka.training.callbacks.summary import ROWS, log_locations
from palinka.training.callbacks.tensorboard import write_findings
from palinka.training.callbacks.variants import TrainedModel, iter_models
from palinka.training.sweep import SweepModule

# Columns of the table in the terminal; the file has all metrics.
SHOWN = {
    "val/fvu": "FVU",
    "val/l0": "L0",
    "val/dead": "dead",
    "val/mse": "MSE",
    "val/ce_delta": "ΔCE",
    "val/loss_recovered": "recovered",
}

# Settings that move a dictionary along its L0-FVU curve, not onto another.
ALONG = ("k", "sparsity_weight", "initial_threshold", "seed")


@dataclass(frozen=True)
class SweepResult(Result):
    """The final metrics of every variant.

    Attributes:
        variants: Overrides and metrics of each variant, by name.
    """

    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def tables(self) -> dict[str, Table]:
        """One row for each variant."""
        rows = self.variants.values()
        names = dict.fromkeys(column for row in rows for column in row)
        # Overrides first, although not every variant has all of them.
        columns = sorted(names, key=lambda name: "/" in name)
        return {
            "variants": {
                "variant": list(self.variants),
                **{column: [row.get(column, "") for row in rows] for column in columns},
            }
        }


class SweepFindings(Callback):
    """Write the final metrics of a sweep's variants to `<log_dir>/analyses/sweep/`.

    A table, `variants.csv`, and a figure of FVU against L0, also in TensorBoard.
    """

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write them, on the process that logs."""
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            variants = list(iter_models(trainer, pl_module))
            result = SweepResult(variants={one.name: _row(one) for one in variants})
            write_findings(Findings("sweep", {"": result}, figures=_figures(variants)), trainer)


def sweep_report(trainer: pl.Trainer, sweep: SweepModule) -> str:
    """Table of the final metrics of each variant, with the output paths."""
    rows = list(iter_models(trainer, sweep))
    columns = [name for name in SHOWN if any(name in row.metrics for row in rows)]
    width = max(len("variant"), *(len(row.name) for row in rows))
    head = [f"  {'variant':<{width}}", *(f"{SHOWN[name]:>10}" for name in columns)]
    lines = ["", "  ".join(head)]
    for row in rows:
        values = [f"{float(row.metrics.get(name, math.nan)):>10.5g}" for name in columns]
        lines.append("  ".join([f"  {escape_control_chars(row.name):<{width}}", *values]))
    return "\n".join([*lines, *log_locations(trainer)])


def _figures(variants: Sequence[TrainedModel]) -> dict[str, Figure]:
    """FVU against L0; variants that differ in their sparsity alone form a curve."""
    points: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for one in variants:
        if {"val/l0", "val/fvu"} <= one.metrics.keys():
            alike = [other for other in variants if _architecture(other) == _architecture(one)]
            point = float(one.metrics["val/l0"]), float(one.metrics["val/fvu"])
            points[_family(one, alike)].append(point)
    if not points:
        return {}
    families = {
        name: ([l0 for l0, _ in found], [fvu for _, fvu in found]) for name, found in points.items()
    }
    return sparsity_frontier(families)


def _architecture(one: TrainedModel) -> str:
    return type(one.module.autoencoder).__name__.removesuffix("Autoencoder")


def _family(one: TrainedModel, alike: Sequence[TrainedModel]) -> str:
    """A variant's architecture, and settings other than sparsity in which variants differ."""
    settings = (
        f"{name.rpartition('.')[2]}={value}"
        for name, value in one.overrides.items()
        if name not in (*ALONG, "autoencoder")
        and any(other.overrides.get(name) != value for other in alike)
    )
    return " ".join([_architecture(one), *settings])


def _row(one: TrainedModel) -> dict[str, Any]:
    metrics = {
        name: float(value)
        for name, value in one.metrics.items()
        if name.startswith(("val/", "val_interval/")) or name in ROWS
    }
    return {**one.overrides, **metrics}
