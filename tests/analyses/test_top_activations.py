import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palinka.analyses.stats.latents import TopHeap, top_activations
from palinka.errors import InputError


def plain_top(latents: np.ndarray, n: int) -> tuple[list[list[float]], list[list[int]]]:
    values, rows = [], []
    for column in latents.T:
        active = sorted(((-float(v), row) for row, v in enumerate(column) if v > 0))[:n]
        missing = n - len(active)
        values.append([-negative for negative, _ in active] + [0.0] * missing)
        rows.append([row for _, row in active] + [-1] * missing)
    return values, rows


@given(
    seed=st.integers(0, 2**31),
    tokens=st.integers(1, 30),
    width=st.integers(1, 5),
    n=st.integers(1, 6),
    cuts=st.lists(st.integers(0, 30), max_size=4),
)
def test_batches_of_any_size_give_what_sorting_gives(
    seed: int, tokens: int, width: int, n: int, cuts: list[int]
) -> None:
    # Few different values, so that many are equal, and some negative.
    latents = np.random.default_rng(seed).integers(-1, 4, (tokens, width)).astype(np.float32)
    found = top_activations(np.split(latents, sorted(cuts)), n)
    values, rows = plain_top(latents, n)
    assert found.values.tolist() == values
    assert found.rows.tolist() == rows


def test_what_does_not_fit_is_refused() -> None:
    heap = TopHeap(2, 3)
    with pytest.raises(InputError, match="a batch of 3 latents"):
        heap.add(np.zeros((1, 3)))
    with pytest.raises(InputError, match="NaN"):
        heap.add([[np.nan, 0.0]])
    with pytest.raises(InputError, match="at least one batch"):
        top_activations([], 3)
    with pytest.raises(InputError, match="at least one of each"):
        TopHeap(2, 0)
