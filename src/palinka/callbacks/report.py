"""The last lines of a fit: its figures, and where they are kept."""

import shlex
from pathlib import Path

import lightning.pytorch as pl

from palinka.printable import printable

# In the order of the table; what a run has not measured is left out.
ROWS = {
    "val/fvu": "fraction of variance unexplained",
    "val/explained_variance": "explained variance",
    "val/mse": "mean squared error",
    "val/cosine": "mean cosine",
    "val/l0": "latents per token (L0)",
    "val/l1": "mean L1 norm of the latents",
    "val/dead": "share of dead latents",
    "loss/total": "training loss, last logged",
    "throughput/tokens_per_second": "tokens per second",
}


def final_report(trainer: pl.Trainer) -> str:
    """The final metrics as a table, the log folder, and the command that shows it.

    Args:
        trainer: A trainer whose fit has ended.
    """
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    rows = [(text, f"{metrics[name]:.5g}") for name, text in ROWS.items() if name in metrics]
    width = max((len(text) for text, _ in rows), default=0)
    lines = ["", *(f"  {text:<{width}}  {value:>10}" for text, value in rows)]
    folder = log_folder(trainer)
    lines += [
        "",
        f"results in   {as_typed(folder)}",
        f"look at them with   tensorboard --logdir {as_typed(folder.parent)}",
    ]
    return "\n".join(lines)


def log_folder(trainer: pl.Trainer) -> Path:
    """`trainer.log_dir` without its broadcast, which would wait for the other processes."""
    for logger in trainer.loggers:
        folder = getattr(logger, "log_dir", None) or logger.save_dir
        if folder is not None:
            return Path(folder)
    return Path(trainer.default_root_dir)


def as_typed(path: Path) -> str:
    """The path as one would type it here: relative where it lies below, quoted if need be."""
    path = path.absolute()
    here = Path.cwd()
    typed = str(path.relative_to(here) if path.is_relative_to(here) else path)
    if printable(typed) == typed:
        return shlex.quote(typed)
    escaped = printable(typed.replace("\\", r"\\").replace("'", r"\'"))
    return f"$'{escaped}'"
