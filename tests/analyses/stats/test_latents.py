import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import rankdata

from palinka.analyses.stats.latents import (
    MAX_FLOAT32_ROWS,
    HistogramCounter,
    TopHeap,
    auc_of_ranks,
    choose_latents,
    column_ranks,
    nearest_latents,
)
from palinka.errors import InputError


def rank_auc(values, targets):
    return auc_of_ranks(column_ranks(values), targets[None])[0]


@given(st.lists(st.tuples(st.integers(-2, 2), st.booleans()), min_size=2, max_size=25))
@settings(max_examples=100, deadline=None)
def test_equals_counting_pairs_in_the_right_order(rows):
    values, targets = np.array(rows, dtype=np.float32).T
    targets = targets > 0
    if targets.all() or not targets.any():
        return
    differences = np.subtract.outer(values[targets], values[~targets])
    expected = np.mean((differences > 0) + 0.5 * (differences == 0))
    found = rank_auc(np.stack([values, -values], axis=1), targets)
    assert found == pytest.approx([expected, 1 - expected], abs=1e-12)


def test_agrees_with_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    random = np.random.default_rng(0)
    values = random.poisson(1.0, size=(80, 5)).astype(float)
    targets = random.random(80) < 0.3
    expected = [metrics.roc_auc_score(targets, column) for column in values.T]
    np.testing.assert_allclose(rank_auc(values, targets), expected, rtol=1e-12)


@pytest.mark.parametrize("rows", [50, MAX_FLOAT32_ROWS, MAX_FLOAT32_ROWS + 1])
def test_many_labellings_are_exact_in_the_dtype_of_the_ranks(rows):
    random = np.random.default_rng(1)
    values = random.integers(0, rows // 2, size=(rows, 3)).astype(float)
    targets = random.random((4, rows)) < np.array([[0.1], [0.3], [0.5], [0.9]])
    found = auc_of_ranks(column_ranks(values), targets)
    ranks = rankdata(values, axis=0)
    for mask, of_mask in zip(targets, found, strict=True):
        n = mask.sum()
        wins = ranks[mask].sum(axis=0) - n * (n + 1) / 2
        np.testing.assert_array_equal(of_mask, wins / (n * (rows - n)))


@pytest.mark.parametrize(
    ("choice", "latents"),
    [
        ({"ranks": (1, 2, 3, 5)}, (1, 3, 2, 4)),  # from the highest; ties from the lowest number
        ({"ranks": (2,), "numbers": (3, 1, 0)}, (3, 1, 0)),  # after ranks, and none twice
        ({"ranks": (), "numbers": (1,)}, (1,)),
    ],
)
def test_latents_are_chosen_by_rank_and_by_number(choice, latents):
    assert choose_latents([0.0, 5.0, 2.0, 5.0, -1.0], **choice) == latents


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"ranks": (0,)}, "rank is 0; expected 1 to 3"),
        ({"ranks": (4,)}, "rank is 4"),
        ({"ranks": (), "numbers": (3,)}, "latent is 3; expected 0 to 2"),
        ({"ranks": (), "numbers": (-1,)}, "latent is -1"),
    ],
)
def test_indices_out_of_range_are_rejected(choice, message):
    with pytest.raises(InputError, match=message):
        choose_latents([1.0, 2.0, 3.0], **choice)


@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 10), st.integers(1, 30))
def test_it_agrees_with_all_pairs(seed: int, latents: int, n: int, piece: int) -> None:
    random = np.random.default_rng(seed)
    dictionary = random.normal(size=(latents, 3)) * random.integers(0, 2, (latents, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(nearest_latents.__globals__, "CHUNK_ELEMENTS", piece)
        found = nearest_latents(dictionary, n)
    norms = np.linalg.norm(dictionary, axis=1, keepdims=True)
    unit = dictionary / np.where(norms > 0, norms, 1.0)
    for latent, (others, cosines) in enumerate(zip(found.latents, found.cosines, strict=True)):
        known = unit @ unit[latent]
        expected = np.sort(np.delete(known, latent))[::-1][:n]
        assert cosines == pytest.approx(expected, abs=1e-6)
        assert cosines == pytest.approx(known[others], abs=1e-6)
        assert len({latent, *others.tolist()}) == 1 + len(expected)


def test_of_equal_ones_the_lower_number_comes_first() -> None:
    found = nearest_latents([[1.0, 0.0]] * 4, 2)
    assert found.latents.tolist() == [[1, 2], [0, 2], [0, 1], [0, 1]]


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_length_does_not_matter(scale: float) -> None:
    dictionary = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    found, expected = nearest_latents(dictionary * scale, 2), nearest_latents(dictionary, 2)
    assert found.latents.tolist() == expected.latents.tolist()
    np.testing.assert_allclose(found.cosines, expected.cosines, atol=1e-6)


shapes = st.tuples(st.integers(1, 30), st.integers(1, 5))


@given(st.integers(0, 2**31), shapes, st.integers(1, 6), st.lists(st.integers(0, 30), max_size=4))
def test_batches_of_any_size_give_what_sorting_gives(
    seed: int, shape: tuple[int, int], n: int, cuts: list[int]
) -> None:
    # Few different values, so that many are equal, and some negative.
    latents = np.random.default_rng(seed).integers(-1, 4, shape).astype(np.float32)
    heap = TopHeap(shape[1], n)
    for batch in np.split(latents, sorted(cuts)):
        heap.add(batch)
    found = heap.result()
    for column, values, rows in zip(latents.T, found.values, found.rows, strict=True):
        active = sorted((-value, row) for row, value in enumerate(column) if value > 0)[:n]
        padded = [*active, *[(0.0, -1)] * (n - len(active))]
        assert list(zip((-values).tolist(), rows.tolist(), strict=True)) == padded


@pytest.mark.parametrize("counter", [TopHeap(2, 3), HistogramCounter(2)])
def test_batches_of_other_than_numbers_are_rejected(counter: TopHeap | HistogramCounter) -> None:
    with pytest.raises(InputError, match="NaN"):
        counter.add([[np.nan, 0.0]])


numbers = st.one_of(
    st.just(0.0),
    st.floats(-1e6, 1e6, width=32, allow_subnormal=False),
    st.sampled_from([2.0**-100, 1.0, 2.0, 1e30]),
)
matrices = arrays(np.float32, st.tuples(st.integers(1, 12), st.just(3)), elements=numbers)


@given(st.lists(matrices, min_size=1, max_size=4))
def test_counts_are_those_of_a_plain_histogram_however_batches_come(
    batches: list[np.ndarray],
) -> None:
    counter = HistogramCounter(3, bins=8)
    for batch in batches:
        counter.add(batch)
    found = counter.result()
    together = np.abs(np.concatenate(batches).astype(np.float64))
    for latent in range(3):
        values = together[:, latent][together[:, latent] > 0]
        if len(values) == 0:
            assert found.width[latent] == 0
            assert not found.counts[latent].any()
            continue
        width = found.width[latent]
        expected, _ = np.histogram(values / width, bins=np.arange(9))
        # The end of the last bin is the next one's beginning; here nothing may lie there.
        assert values.max() / width < 8
        np.testing.assert_array_equal(found.counts[latent], expected)
        assert 2 * values.max() / width >= 8, "half of the bins are in use"
