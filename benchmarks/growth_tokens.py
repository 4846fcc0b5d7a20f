"""Time per token and memory over ten million tokens, under a limit of a tenth of the cache.

python benchmarks/growth_tokens.py
"""

import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from harness import Row, duration, publish, table
from palinka.autoencoders import KSparseAutoencoder
from palinka.data import ActivationLoader, Cache, Context
from palinka.data.format import CacheKey, Layout
from palinka.data.writer import CacheWriter
from training_step import PalinkaStep

TOKENS, WIDTH, LATENTS, K, ROWS = 10_000_000, 32, 64, 4, 4096
MARKS = (100_000, 1_000_000, 10_000_000)
CONTEXT, BLOCKS = 128, 2048


def random_cache(root: Path) -> Cache:
    """A cache of at least `TOKENS` rows drawn at random."""
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
    shards = -(-TOKENS // (BLOCKS * CONTEXT))
    for index in range(shards):
        rows = torch.randn(BLOCKS * CONTEXT, WIDTH, generator=generator).half()
        with writer.claim(index) as mine:
            if mine:
                writer.write(index, rows, contexts)
    return writer.finish(shards)


def status(name: str) -> int:
    """A figure of this process in bytes, as Linux gives it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def train(folder: Path) -> None:
    """Train on every row once under the limit, and print tokens, seconds and memory at marks."""
    torch.set_num_threads(1)  # a step this small has nothing to share out
    cache = Cache.open(folder)
    batches = iter(ActivationLoader(cache, ROWS))
    step = PalinkaStep(KSparseAutoencoder(WIDTH, LATENTS, K), torch.zeros(ROWS, WIDTH))
    step.batch = next(batches)
    step()
    # From here on the process may take no more than a tenth of the size of the cache.
    limit = status("VmData") + cache.bytes // 10
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    tokens, marks, since, counted = 0, list(MARKS), time.perf_counter(), 0
    for batch in batches:
        step.batch = batch
        step()
        tokens += len(batch)
        if marks and (tokens >= marks[0] or tokens + 2 * ROWS > cache.rows):
            elapsed = time.perf_counter() - since
            print(tokens, elapsed / (tokens - counted), status("VmRSS"), flush=True)
            marks.pop(0)
            since, counted = time.perf_counter(), tokens


def main() -> None:
    """Measure and report, or train on a cache."""
    if len(sys.argv) > 1:
        train(Path(sys.argv[1]))
        return
    root = Path(tempfile.mkdtemp())
    try:
        cache = random_cache(root)
        output = subprocess.check_output([sys.executable, __file__, cache.folder], text=True)
        size, count = cache.bytes, cache.rows
    finally:
        shutil.rmtree(root, ignore_errors=True)
    rows = []
    for line in output.splitlines():
        tokens, seconds, resident = line.split()
        memory = f"{int(resident) / 1e6:.0f} MB resident"
        name = f"up to {int(tokens):,} tokens"
        rows.append(Row(name, "palinka", f"{duration(float(seconds))} a token", agreement=memory))
    publish(
        "growth_tokens",
        "Growth with the number of tokens",
        table(rows),
        remarks=(
            f"One pass over a cache of {count:,} rows of {WIDTH} numbers, {size / 1e6:.0f} MB, in "
            f"batches of {ROWS:,}, with training steps so small that the loader counts. After the "
            f"first step the process may take {size / 1e7:.0f} MB more, a tenth of the cache: "
            "the limit is set with `RLIMIT_DATA`, and going over it is an error. The time is that "
            "of the tokens since the mark before."
        ),
    )


if __name__ == "__main__":
    main()
