"""Final metrics and output paths of a run."""

import shlex
from collections.abc import Mapping
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from palinka.errors import escape_control_chars, expanded

# In the order of the table.
ROWS = {
    "val/fvu": "fraction of variance unexplained",
    "val/fvu_legacy": "the same, about zero (legacy)",
    "val/explained_variance": "explained variance",
    "val/mse": "mean squared error",
    "val/cosine": "mean cosine",
    "val/l0": "latents per token (L0)",
    "val/l1": "mean L1 norm of the latents",
    "val/dead": "share of dead latents",
    "val/ce_clean": "cross-entropy, clean (nats)",
    "val/ce_spliced": "cross-entropy, spliced",
    "val/ce_delta": "increase of the cross-entropy",
    "val/ce_ablated": "cross-entropy, site at zero",
    "val/ce_ablated_mean": "cross-entropy, site at its mean",
    "val/loss_recovered": "loss recovered, from zero",
    "val/loss_recovered_mean": "loss recovered, from the mean",
    "val/kl": "KL(clean ‖ spliced) (nats)",
    "val/site_mse": "mean squared error at the error_site",
    "val/site_recovered": "recovered there, from the mean",
    "loss/total": "training loss, last logged",
    "throughput/tokens_per_second": "tokens per second",
}


def final_report(trainer: pl.Trainer, split: str = "val") -> str:
    """Table of the final metrics, with the output paths.

    Args:
        trainer: A trainer whose run has ended.
        split: `val` or `test`.
    """
    metrics = {
        name.replace(split, "val", 1) if name.startswith(split) else name: float(value)
        for name, value in trainer.callback_metrics.items()
    }
    rows = [
        (text, f"{metrics[name]:.5g}", _interval(metrics, name.removeprefix("val/")))
        for name, text in ROWS.items()
        if name in metrics
    ]
    width = max((len(text) for text, _, _ in rows), default=0)
    lines = ["", *(f"  {text:<{width}}  {value:>10}{bounds}" for text, value, bounds in rows)]
    if any(bounds for _, _, bounds in rows):
        lines.append("  in brackets: 95 % intervals over documents")
    return "\n".join([*lines, *log_locations(trainer)])


def log_locations(trainer: pl.Trainer) -> list[str]:
    """Lines with the log folder and each logger's output; none of a fast_dev_run."""
    if trainer.fast_dev_run or trainer.barebones:  # type: ignore[attr-defined]
        return []
    lines = ["", f"results in   {shell_path(log_folder(trainer))}"]
    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger):
            lines.append(f"metrics in   {shell_path(metrics_file(logger))}")
        elif isinstance(logger, TensorBoardLogger):
            folder = shell_path(expanded(logger.root_dir))
            lines.append(f"look at them with   tensorboard --logdir {folder}")
        else:
            files = isinstance(logger, WandbLogger) and Path(logger.experiment.dir)
            written = files.parent if files else logger.save_dir
            if written:
                lines.append(f"{type(logger).__name__} in   {shell_path(Path(written))}")
    return list(dict.fromkeys(lines))  # the variants of a sweep log below its folder


def metrics_file(logger: CSVLogger) -> Path:
    """Output file of a CSV logger."""
    return expanded(logger.log_dir) / ExperimentWriter.NAME_METRICS_FILE


def _interval(metrics: Mapping[str, float], name: str) -> str:
    low, high = (f"val_interval/{name}/{end}" for end in ("low", "high"))
    return f"  [{metrics[low]:.5g}, {metrics[high]:.5g}]" if low in metrics else ""


def log_folder(trainer: pl.Trainer) -> Path:
    """`trainer.log_dir` without its broadcast, a collective."""
    run_folder: Path | None = getattr(trainer, "run_folder", None)
    if run_folder is not None:
        return run_folder
    for logger in trainer.loggers:
        folder = getattr(logger, "log_dir", None) or logger.save_dir
        if folder is not None:
            return Path(folder)
    return Path(trainer.default_root_dir)


def shell_path(path: Path) -> str:
    """Path to type in a shell: relative to the working directory if within it, and quoted."""
    path = path.absolute()
    here = Path.cwd()
    typed = str(path.relative_to(here) if path.is_relative_to(here) else path)
    if escape_control_chars(typed) == typed:
        return shlex.quote(typed)
    escaped = escape_control_chars(typed.replace("\\", r"\\").replace("'", r"\'"))
    return f"$'{escaped}'"
