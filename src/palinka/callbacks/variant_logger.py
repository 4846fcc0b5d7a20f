"""TensorBoard runs for the variants of a sweep, one below the other's log folder."""

from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from palinka.training.checkpoint import VARIANTS
from palinka.training.sweep_checkpoint import below


class VariantLogger(TensorBoardLogger):
    """Logs what belongs to one variant as a run of its own, under the names of such a run.

    Args:
        run: The logger of the sweep.
        variant: The variant's name, which is also that of its folder.
    """

    def __init__(self, run: TensorBoardLogger, variant: str) -> None:
        super().__init__(run.save_dir, run.name, default_hp_metric=False)
        self._run = run
        self.variant = variant

    @property
    def log_dir(self) -> str:
        """A folder below the sweep's, whose version may not have been chosen yet."""
        return str(Path(self._run.log_dir) / self.variant)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log those of the variant, and leave the others alone."""
        own = below(metrics, f"{self.variant}/")
        if own:
            epoch = {name: metrics[name] for name in ("epoch",) if name in metrics}
            super().log_metrics({**own, **epoch}, step)

    @rank_zero_only
    def log_hyperparams(
        self,
        params: dict[str, Any] | Namespace,
        metrics: dict[str, Any] | None = None,
        step: int | None = None,
    ) -> None:
        """Log the variant's own; Lightning hands those of the sweep to every logger."""
        named = vars(params) if isinstance(params, Namespace) else params
        super().log_hyperparams(named.get(VARIANTS, {}).get(self.variant, named), metrics, step)
        if metrics:  # under plain names, which `log_metrics` has passed over
            super().log_metrics(metrics, step)


def with_variants(loggers: Any, variants: Iterable[str]) -> Iterator[Logger]:
    """A trainer's loggers, those of TensorBoard followed by one for each variant.

    Args:
        loggers: A logger, several of them, or a truth value where there are none.
        variants: The variants' names.
    """
    given = loggers if isinstance(loggers, list) else [loggers]
    for logger in (one for one in given if isinstance(one, Logger)):
        yield logger
        if isinstance(logger, TensorBoardLogger):
            yield from (VariantLogger(logger, variant) for variant in variants)
