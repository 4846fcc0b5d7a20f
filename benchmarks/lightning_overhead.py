"""Overhead of Lightning's loop and logging on a step of the reference run.

python benchmarks/lightning_overhead.py
"""

import gc
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from harness import Row, compared, duration, medians, publish, table, timed
from palinka.autoencoders import KSparseAutoencoder
from palinka.cli.trainer import Trainer
from palinka.training.callbacks import ThroughputMonitor
from palinka.training.metrics import measure_batch
from reference_step import LATENTS, ROWS, WIDTH, K, our_step
from training_step import PalinkaStep

# So small a step that the loop around it is most of its time.
SMALL_ROWS, SMALL_WIDTH, SMALL_LATENTS, SMALL_K = 8, 16, 32, 4
STEPS, LOG_EVERY, ROUNDS = 400, 50, 5
# The operations by which a host waits for what a device has computed.
WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal")


@dataclass(frozen=True)
class Repeated:
    """A loader that hands out one batch again and again."""

    batch: Tensor
    times: int

    def __len__(self) -> int:
        return self.times

    def __iter__(self) -> Iterator[Tensor]:
        return repeat(self.batch, self.times)


def small_step(batch: Tensor) -> PalinkaStep:
    """A step that costs next to nothing."""
    return PalinkaStep(
        KSparseAutoencoder(SMALL_WIDTH, SMALL_LATENTS, SMALL_K),
        batch,
        sparsity_weight=1.0,
        decorrelation_weight=5e-4,
    )


def fit(batch: Tensor, steps: int, folder: Path, log_every: int) -> None:
    """As many steps by `Trainer.fit`, with what `palinka fit` has at work in each of them."""
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=TensorBoardLogger(folder, default_hp_metric=False),
        callbacks=[ThroughputMonitor()],
        log_every_n_steps=log_every,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(small_step(batch).module, train_dataloaders=Repeated(batch, steps))


class Waits(TorchDispatchMode):
    """Counts the operations that wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.count += function.overloadpacket.__name__ in WAITS
        return function(*args, **(kwargs or {}))


def waits(batch: Tensor, folder: Path) -> float:
    """Number of times that a step without logging waits for its device."""
    counts = []
    for steps, log_every in ((10, 10_000), (60, 10_000), (60, 1)):
        with Waits() as mode:
            fit(batch, steps, folder, log_every)
        counts.append(mode.count)
    # Values that are logged are read back, so a count that misses those counts nothing.
    assert counts[2] >= counts[1] + 50, counts
    return (counts[1] - counts[0]) / 50


def per_step(batch: Tensor, folder: Path) -> tuple[float, float]:
    """Seconds per step: of the bare loop, and of Lightning's."""
    step = small_step(batch)

    def bare() -> None:
        for _ in range(STEPS):
            step()

    def in_lightning(steps: int) -> Callable[[], None]:
        return lambda: fit(batch, steps, folder, LOG_EVERY)

    loops: dict[str, list[float]] = {"bare": [], "lightning": []}
    for _ in range(ROUNDS):
        loops["bare"].append(timed(bare)[0].wall / STEPS)
        # The one-off cost of a fit is not part of a step.
        once = timed(in_lightning(LOG_EVERY))[0].wall
        whole = timed(in_lightning(LOG_EVERY + STEPS))[0].wall
        loops["lightning"].append((whole - once) / STEPS)
    return (sorted(loops["bare"])[ROUNDS // 2], sorted(loops["lightning"])[ROUNDS // 2])


def main() -> None:
    """Measure and report."""
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    folder = Path(tempfile.mkdtemp())
    try:
        small = torch.randn(SMALL_ROWS, SMALL_WIDTH)
        fit(small, 10, folder, LOG_EVERY)
        bare, lightning = per_step(small, folder)
        waiting = waits(small, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert waiting == 0, f"{waiting:g} waits for the device per step"

    batch = torch.randn(ROWS, WIDTH)
    reference = our_step(torch.empty(LATENTS, WIDTH).uniform_(-0.018, 0.018), batch)
    output = reference.module(batch)
    for call in (reference, lambda: measure_batch(batch, output, LATENTS)):
        call()
    gc.collect()
    step = medians([timed(reference)[0] for _ in range(7)]).wall
    metrics = medians(
        [timed(lambda: measure_batch(batch, output, LATENTS))[0] for _ in range(7)]
    ).wall
    loop = lightning - bare
    added = loop + metrics / LOG_EVERY
    ratio, promised = compared(step + added, step, at_most=1.03)
    rows = [
        Row(f"a step of {SMALL_ROWS} rows, bare loop", "palinka", duration(bare)),
        Row("the same, Lightning", "palinka", duration(lightning)),
        Row("so Lightning's loop and log", "difference", duration(loop)),
        Row(f"metrics of a step of {ROWS} rows, every {LOG_EVERY}", "palinka", duration(metrics)),
        Row(f"the reference step, k = {K:,}", "palinka", duration(step)),
        Row(
            "the reference step in Lightning",
            "sum",
            duration(step + added),
            ratio=ratio,
            promised=promised,
            agreement=f"{waiting:g} waits for the device per unlogged step",
        ),
    ]
    publish(
        "lightning_overhead",
        "What Lightning adds to a step",
        table(rows),
        remarks=(
            f"Lightning's `Trainer` with TensorBoard, the throughput monitor and the module's own "
            f"metrics every {LOG_EVERY} steps; what it adds to a step is measured where the step "
            "is next to nothing, and the metrics where it is the reference step, since the "
            "difference of two long times would be noise. Waits are the operations that read a "
            "value back, counted as PyTorch dispatches them."
        ),
    )


if __name__ == "__main__":
    main()
