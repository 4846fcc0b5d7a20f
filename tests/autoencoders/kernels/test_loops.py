import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from palinka.autoencoders.kernels import loops
from palinka.autoencoders.kernels.topk import keep_positive_


def test_threads_share_all_rows() -> None:
    done: list[int] = []
    for count in (0, 1, 5, 100):
        done.clear()
        loops.in_parallel(lambda start, stop: done.extend(range(start, stop)), count)
        assert sorted(done) == list(range(count))


def selected(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """What the loop selects of each row, and the columns, with room for all."""
    kept, array = torch.full_like(values, 7.0), values.numpy()
    indices = torch.full(values.shape, 7, dtype=torch.int32)
    counts = np.zeros(len(values), np.int64)
    outputs = kept.numpy(), indices.numpy(), counts
    bits = array.view(loops.INTEGERS[values.dtype])
    loops.select_positive(0, len(values), array, bits, k, 0, *outputs)
    return kept, indices


def plain(values: Tensor, k: int) -> Tensor:
    """Whatever of a row is positive and at least its k-th largest; rows with a NaN stay as are."""
    kept = torch.zeros_like(values)
    for out, row in zip(kept, values, strict=True):
        threshold = max(sorted(row.tolist(), reverse=True)[k - 1], 0.0)
        out[:] = torch.where((row >= threshold) & (row > 0), row, 0.0)
    return kept


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from([torch.float32, torch.float64]))
def test_of_wide_rows_the_largest_are_selected_in_order_with_ties(
    data: st.DataObject, dtype: torch.dtype
) -> None:
    # Around the edges of the tiles in which a row is gone through.
    width = data.draw(st.sampled_from([15, 16, 17, 255, 256, 257, 511, 513, 700]))
    k = data.draw(st.integers(1, width) | st.integers(1, 3))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    values = torch.randn(3, width, generator=generator, dtype=dtype)
    if data.draw(st.booleans()):
        values = values.mul(2).round().div(2)  # many ties, and zeros of either sign
    if data.draw(st.booleans()):
        values[0, data.draw(st.integers(0, width - 1))] = torch.inf
        values[1, data.draw(st.integers(0, width - 1))] = -torch.inf
    kept, indices = selected(values, k)
    expected = plain(values, k)
    assert torch.equal(keep_positive_(values.clone(), k), expected)
    for row, columns, wanted in zip(kept, indices.long(), expected, strict=True):
        where = wanted.nonzero().flatten()
        assert torch.equal(columns[: len(where)], where)
        assert torch.equal(row[: len(where)], wanted[where])
        assert not row[len(where) :].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_nan_of_either_sign_is_seen_wherever_it_is(dtype: torch.dtype, sign: float) -> None:
    for column in (0, 255, 256, 299):
        values = torch.ones(2, 300, dtype=dtype)
        values[0, column] = torch.nan
        values = values.copysign(torch.tensor(sign))
        assert values[0, column].signbit() == (sign < 0)
        kept, _ = selected(values, 4)
        assert kept.isnan().any(dim=1).tolist() == [True, False]


PENALTY = """
import torch
from palinka.autoencoders.kernels.decorrelation import squared_covariance
from palinka.autoencoders.kernels.sparse import SparseLatents
values = torch.linspace(0.1, 2.0, 4000, dtype=torch.float64).sin().view(200, 20).requires_grad_()
indices = (torch.arange(4000) * 7 % 900).int().view(200, 20)
loss = squared_covariance(SparseLatents(values, indices, 900))
loss.backward()
print(loss.item().hex(), values.grad.sum().item().hex())
"""


@pytest.mark.slow
def test_loops_from_the_cache_round_as_when_they_were_compiled(tmp_path: Path) -> None:
    command, environment = [sys.executable, "-c", PENALTY], {"NUMBA_CACHE_DIR": str(tmp_path)}
    runs = [
        subprocess.run(command, env=os.environ | environment, capture_output=True, check=True)
        for _ in range(2)
    ]
    assert any(tmp_path.iterdir())
    assert runs[0].stdout == runs[1].stdout
