import numpy as np

from palinka.data.format import RowStatistics


def test_merged_parts_equal_the_whole() -> None:
    rows = np.random.default_rng(0).normal(3, 2, (101, 4))
    merged = RowStatistics.merged(
        (RowStatistics.of(part) for part in np.array_split(rows, 7)), width=4
    )
    norms = np.linalg.norm(rows, axis=1)
    assert merged.rows == 101
    np.testing.assert_allclose(merged.mean, rows.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(merged.mean_norm, norms.mean(), rtol=1e-13)
    np.testing.assert_allclose(merged.mean_squared_norm, (norms**2).mean(), rtol=1e-13)
    np.testing.assert_allclose(merged.total_variance, rows.var(axis=0).sum(), rtol=1e-12)


def test_constant_rows_have_no_variance() -> None:
    assert RowStatistics.of(np.full((3, 2), 0.1)).total_variance < 1e-16
