import gc
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from palinka.data import ActivationLoader, Context, MemoryRows
from palinka.data.format import permutation
from palinka.data.loader import ReadAhead
from palinka.errors import InputError

if TYPE_CHECKING:
    from conftest import Corpora


def counting(drawn: list[int]) -> Generator[int, None, None]:
    try:
        for number in range(10):
            drawn.append(number)
            yield number
    finally:
        drawn.append(-1)


def test_no_more_is_read_ahead_than_asked_and_the_generator_is_closed() -> None:
    drawn: list[int] = []
    with closing(ReadAhead(counting(drawn), 3)) as items:
        for taken in range(4):
            deadline = time.monotonic() + 10
            while len(drawn) < taken + 3 and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(0.02)
            assert len(drawn) == taken + 3
            assert next(items) == taken
    assert drawn[-1] == -1
    assert list(items) == []


UNFINISHED = """
from contextlib import closing
from palinka.data.loader import ReadAhead

def numbers():
    while True:
        yield bytes(100_000)

def batches():
    with closing(ReadAhead(numbers(), 2)) as items:
        yield from items

running = batches()
next(running)
"""


def test_an_unfinished_iteration_does_not_keep_the_process_alive() -> None:
    command = [sys.executable, "-c", UNFINISHED]
    assert not subprocess.run(command, check=True, timeout=60, capture_output=True).stderr


def counted_rows(rows: int, run_rows: int = 1) -> MemoryRows:
    """Rows whose only number is their own."""
    table = np.arange(rows)
    text = Context(table, table, table)
    source = MemoryRows(torch.arange(float(rows)).reshape(-1, 1), text, f"{rows} rows")
    source.run_rows = run_rows
    return source


def numbers(batches: Iterator[torch.Tensor] | ActivationLoader) -> list[list[int]]:
    return [batch[:, 0].int().tolist() for batch in batches]


def plain_epoch(
    rows: int,
    run_rows: int,
    batch_size: int,
    seeds: tuple[int, int] | None,
    *,
    start: int = 0,
    drop_last: bool = True,
    rank: int = 0,
    world_size: int = 1,
) -> list[list[int]]:
    """One rank's batches of an epoch, written down as the specification says it."""
    runs = [list(range(rows))[first : first + run_rows] for first in range(0, rows, run_rows)]
    order = permutation(len(runs), *seeds) if seeds else range(len(runs))
    stream = [row for run in order for row in runs[run]]
    batches = []
    while start < rows:
        together = stream[start : start + batch_size * world_size]
        if len(together) < batch_size * world_size and drop_last:
            break
        bounds = [len(together) * r // world_size for r in range(world_size + 1)]
        batches.append(together[bounds[rank] : bounds[rank + 1]])
        start += batch_size * world_size
    return batches


@settings(deadline=None)
@given(
    *(st.integers(1, most) for most in (70, 20, 12, 4)),
    *(st.booleans(), st.booleans(), st.integers(0, 3)),
)
def test_batches_equal_plain_transcription(
    rows: int, run_rows: int, size: int, world: int, shuffle: bool, drop_last: bool, epoch: int
) -> None:
    if drop_last and rows < size * world:
        return
    source = counted_rows(rows, run_rows)
    for rank in range(world):
        share = {"drop_last": drop_last, "rank": rank, "world_size": world}
        loader = ActivationLoader(source, size, seed=9, shuffle=shuffle, **share)
        loader.set_epoch(epoch)
        expected = plain_epoch(rows, run_rows, size, (9, epoch) if shuffle else None, **share)
        assert numbers(loader) == expected
        assert len(loader) == len(expected)


@settings(deadline=None)
@given(st.integers(8, 70), st.integers(1, 4), st.integers(1, 2), st.integers(0, 30), st.data())
def test_resumed_anywhere_on_any_number_of_ranks_the_stream_goes_on(
    rows: int, batch_size: int, world: int, steps: int, data: st.DataObject
) -> None:
    source = counted_rows(rows, run_rows=3)
    first = ActivationLoader(source, batch_size, seed=4, rank=world - 1, world_size=world)
    epoch, steps = divmod(steps, len(first) + 1)
    first.set_epoch(epoch)
    running = iter(first)
    list(islice(running, steps))
    state = first.state_dict()
    first.close()
    new_world = data.draw(st.integers(1, 3))
    new_size = data.draw(st.integers(1, rows // new_world // 2))
    start = steps * batch_size * world
    seeds = (4, epoch)
    if rows - start < new_size * new_world:
        start, seeds = 0, (4, epoch + 1)
    for rank in range(new_world):
        second = ActivationLoader(source, new_size, seed=4, rank=rank, world_size=new_world)
        second.load_state_dict(state)
        assert numbers(second) == plain_epoch(
            rows, 3, new_size, seeds, start=start, rank=rank, world_size=new_world
        )


def test_each_iteration_is_a_new_epoch_from_its_first_batch_on() -> None:
    loader = ActivationLoader(counted_rows(20), 5)
    epochs = [plain_epoch(20, 1, 5, (0, epoch)) for epoch in range(8)]
    assert [numbers(loader) for _ in range(3)] == epochs[:3]
    for _ in range(2):
        loader.set_epoch(1)
        assert numbers(loader) == epochs[1]
    next(iter(loader))  # of epoch 2, and left early
    early = iter(loader)
    assert numbers(loader) == epochs[3]
    loader.set_epoch(7)
    assert numbers(early) == epochs[7]


def test_the_state_counts_what_was_handed_out_not_what_was_read() -> None:
    loader = ActivationLoader(counted_rows(40), 5, world_size=2, rank=1)
    batches = iter(loader)
    assert loader.state_dict()["samples_seen"] == 0
    for count in range(1, 5):
        next(batches)
        time.sleep(0.01)
        assert loader.state_dict()["samples_seen"] == 10 * count
    assert {type(value) for value in loader.state_dict().values()} <= {int, str, bool}


def test_a_loaded_place_yields_to_another_epoch() -> None:
    source = counted_rows(21)
    loader = ActivationLoader(source, 5)
    next(iter(loader))
    begun = loader.state_dict()
    loader.set_epoch(0)
    numbers(loader)
    finished = loader.state_dict()
    following, rest = plain_epoch(21, 1, 5, (0, 1)), plain_epoch(21, 1, 5, (0, 0), start=5)
    for state, told, expected in (
        (begun, 0, rest),
        (begun, 1, following),
        *((finished, told, following) for told in (None, 0, 1)),
    ):
        resumed = ActivationLoader(source, 5)
        resumed.load_state_dict(state)
        if told is not None:
            resumed.set_epoch(told)
        assert numbers(resumed) == expected


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ((counted_rows(21), {}), "rows_identity"),
        ((counted_rows(20, run_rows=2), {}), "run_rows 1, this run 2"),
        ((counted_rows(20), {"seed": 3}), "seed 0, this run 3"),
        ((counted_rows(20), {"shuffle": False}), "shuffle True, this run False"),
    ],
)
def test_the_state_of_other_rows_is_rejected(
    other: tuple[MemoryRows, dict[str, int]], message: str
) -> None:
    state = ActivationLoader(counted_rows(20), 5).state_dict()
    source, settings = other
    loader = ActivationLoader(source, 5, **settings)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=message + ".*: resume with the settings of the first run"):
        loader.load_state_dict(state)


def test_batches_that_are_not_filled_are_rejected() -> None:
    with pytest.raises(InputError, match=r"20 rows do not fill one batch of 22 .11 on each"):
        ActivationLoader(counted_rows(20), 11, world_size=2)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_cache_gives_the_batches_of_its_rows(
    corpus: "Corpora", tmp_path: Path, dtype: str
) -> None:
    cache = corpus(dtype=dtype).write(tmp_path)
    rows = cache.read_rows(0, cache.rows)
    order = torch.from_numpy(permutation(40, 2, 0))
    batches = list(ActivationLoader(cache, 7, seed=2, drop_last=False))
    assert all(batch.dtype == cache.dtype for batch in batches)
    assert torch.equal(torch.cat(batches), rows[order])
    in_order = ActivationLoader(cache, 7, shuffle=False, drop_last=False)
    assert torch.equal(torch.cat(list(in_order)), rows)


def test_batches_that_are_kept_do_not_change_and_memory_of_others_is_used_again() -> None:
    loader = ActivationLoader(counted_rows(600), 3)
    kept = list(loader)
    expected = plain_epoch(600, 1, 3, (0, 0))
    assert numbers(iter(kept)) == expected
    for view in (lambda batch: batch[1:], lambda batch: batch.view(torch.int32).numpy()):
        loader.set_epoch(0)
        views = [torch.as_tensor(view(batch)) for batch in loader]
        seen = [v.view(torch.float32)[:, 0].int().tolist() for v in views]
        assert [row[-2:] for row in seen] == [row[-2:] for row in expected]
    weight = torch.ones(1, requires_grad=True)
    sum((batch * weight).sum() for batch in loader).backward()  # the graph keeps the batches
    assert weight.grad is not None
    assert weight.grad.item() == sum(range(600))
    assert len({batch.data_ptr() for batch in loader}) <= 5


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "read-ahead_0"]


def test_no_thread_outlives_its_iteration() -> None:
    loader = ActivationLoader(counted_rows(200), 2)
    numbers(loader)
    assert not readers()
    batches = iter(loader)
    assert not readers()
    next(batches)
    assert len(readers()) == 1
    loader.close()
    assert not readers()
    assert list(batches) == []
    abandoned = iter(loader)
    next(abandoned)
    del abandoned
    assert not readers()

    def fail() -> None:
        for batch in loader:
            raise RuntimeError(batch.shape)

    with pytest.raises(RuntimeError):
        fail()
    gc.collect()
    assert not readers()


def test_waiting_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    source = counted_rows(20)
    read_into = MemoryRows.read_into

    def slow(self: MemoryRows, out: torch.Tensor, runs: np.ndarray) -> None:
        time.sleep(0.02)
        read_into(self, out, runs)

    monkeypatch.setattr(MemoryRows, "read_into", slow)
    loader = ActivationLoader(source, 5)
    assert loader.wait_seconds == 0
    numbers(loader)
    once = loader.wait_seconds
    assert once >= 4 * 0.02 * 0.9
    numbers(loader)
    assert loader.wait_seconds >= 1.9 * 0.08 * 0.9


def others_of_own_context(batches: Iterator[torch.Tensor], context_length: int) -> float:
    """How many other rows of its own context a row meets in its batch, on average."""
    met = rows = 0
    for batch in batches:
        _, counts = torch.unique(batch[:, 0].long() // context_length, return_counts=True)
        met += int((counts * (counts - 1)).sum())
        rows += len(batch)
    return met / rows


def test_a_row_meets_few_others_of_its_own_context(corpus: "Corpora", tmp_path: Path) -> None:
    context, window_blocks, windows, batch = 8, 512, 16, 256
    cache = corpus(
        contexts=windows * window_blocks, contexts_per_shard=window_blocks, width=1
    ).write(tmp_path)
    rows, window, run = cache.rows, window_blocks * context, cache.run_rows
    measured = others_of_own_context(iter(ActivationLoader(cache, batch)), context)
    # Of its run's others, which are shuffled within the window, those that the batch's edge does
    # not cut off; and of the batch's other runs, those that happen to be of the same window.
    of_run = run - 1 - (run**2 - 1) / (3 * batch)
    of_window = (batch - 1 - of_run) * (window - run) / (rows - run)
    expected = (of_run + of_window) * (context - 1) / (window - 1)
    assert expected < 0.2
    assert measured == pytest.approx(expected, rel=0.1)
    in_text_order = cache.read_rows(0, rows)[:, 0].sort().values.reshape(-1, 1).split(batch)
    assert others_of_own_context(iter(in_text_order), context) == context - 1
