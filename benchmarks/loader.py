"""The loader's batches from a warm cache, against copying as many bytes.

python benchmarks/loader.py
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from harness import Case, Rival, report
from palinka.data import ActivationLoader, Cache, Context
from palinka.data.format import CacheKey, Layout
from palinka.data.writer import CacheWriter

ROWS, WIDTH, BATCHES = 4096, 3072, 16
CONTEXT, BLOCKS, SHARDS = 128, 256, 4


def random_cache(root: Path) -> Cache:
    """A cache of float16 rows drawn at random, in shards of 32,768 rows."""
    layout = Layout(
        width=WIDTH,
        dtype="float16",
        context_length=CONTEXT,
        contexts_per_shard=BLOCKS,
        skip=0,
        seed=0,
    )
    writer = CacheWriter(root, CacheKey(layout, {"corpus": "drawn at random"}))
    contexts = [Context(*np.zeros((3, CONTEXT), dtype=np.int64))] * BLOCKS
    generator = torch.Generator().manual_seed(0)
    for index in range(SHARDS):
        rows = torch.randn(BLOCKS * CONTEXT, WIDTH, generator=generator).half()
        with writer.claim(index) as mine:
            if mine:
                writer.write(index, rows, contexts)
    return writer.finish(SHARDS)


def endless(loader: ActivationLoader) -> Iterator[Tensor]:
    """Epoch after epoch."""
    while True:
        yield from loader


def take(batches: Iterator[Tensor]) -> Callable[[], Tensor]:
    """The next batches, each let go before the one after it, as a step does."""

    def run() -> Tensor:
        for _ in range(BATCHES):
            batch = next(batches)
        return batch

    return run


def copy(source: Tensor) -> Callable[[], Tensor]:
    """Copies of as many bytes, from memory to memory that has been touched."""
    out = torch.empty_like(source).copy_(source)

    def run() -> Tensor:
        for _ in range(BATCHES):
            np.copyto(out.numpy(), source.numpy())
        return out

    return run


def agree(cache: Cache, loader: ActivationLoader) -> str:
    """An epoch has as many rows as the cache, and they add up to the same, bit by bit."""
    totals = []
    for rows in (loader, ActivationLoader(cache, ROWS, shuffle=False)):
        total, count = 0, 0
        for batch in rows:
            total += int(batch.view(torch.int16).sum(dtype=torch.int64))
            count += len(batch)
        totals.append((count, total))
    assert totals == [(cache.rows, totals[1][1])] * 2, totals
    return f"all {cache.rows:,} rows of an epoch, by count and sum of bits"


def main() -> None:
    """Measure and report."""
    root = Path(tempfile.mkdtemp())
    try:
        cache = random_cache(root)
        loader = ActivationLoader(cache, ROWS)
        agreement = agree(cache, loader)
        batch = next(iter(loader)).clone()
        bound = Rival(
            "bound: memcpy of the same bytes", copy(batch), at_most=2.5, agreement=agreement
        )
        megabytes = batch.nbytes / 1e6
        report(
            "loader",
            "The loader",
            [
                Case(
                    f"{BATCHES} shuffled batches of {ROWS:,} rows of {WIDTH:,} in float16 "
                    f"({megabytes:.1f} MB each), warm",
                    ours=take(endless(loader)),
                    rivals=[bound],
                    rounds=9,
                )
            ],
            remarks=(
                "From shards in the page cache, verified before, read ahead by the loader's one "
                "thread; at most 2.5 times memcpy's time is at least 0.4 of its speed. Fresh "
                "memory is touched by neither side."
            ),
        )
        loader.close()
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
