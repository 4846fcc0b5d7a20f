import numpy as np
import pytest

from palinka.analyses.joint_histogram import digitized_rows
from palinka.analyses.pairwise_mutual_information import outlying_units, pairwise_mutual_information
from palinka.analyses.plain_pairs import plain_pairs


@pytest.mark.parametrize("seed", range(5))
def test_plain_pairs_are_those_whose_edges_stay(seed: int) -> None:
    generator = np.random.default_rng(seed)
    x = generator.standard_t(2, size=(12, 60)).astype(np.float32)
    x[3] = 1.0  # an item without variance
    outlying = outlying_units(x, 2.5)
    assert outlying.any()
    plain = plain_pairs(digitized_rows(x, outlying, 15), outlying)
    found = 0
    for i in range(12):
        for j in range(12):
            kept = ~(outlying[i] | outlying[j])
            stays = all(
                x[item][kept].min() == x[item][~outlying[item]].min()
                and x[item][kept].max() == x[item][~outlying[item]].max()
                and np.ptp(x[item][kept]) > 0
                for item in (i, j)
            )
            if plain[i, j]:
                found += 1
                assert i < j
                assert stays
            elif i < j and stays:
                # Only another unit of the same extreme value can have kept the edge.
                assert any(
                    outlying[other][
                        (x[item] == x[item][kept].min()) | (x[item] == x[item][kept].max())
                    ].any()
                    for item, other in ((i, j), (j, i))
                )
    assert 0 < found < 66


def test_both_kinds_of_pairs_agree_with_numpy() -> None:
    generator = np.random.default_rng(7)
    x = generator.standard_t(2, size=(9, 200))
    result = pairwise_mutual_information(x, bins=15, outlier_z=3.0)
    outlying = outlying_units(x, 3.0)
    assert 0 < plain_pairs(digitized_rows(x, outlying, 15), outlying).sum() < 36
    for i in range(9):
        for j in range(i + 1, 9):
            kept = ~(outlying[i] | outlying[j])
            a, b = x[i][kept], x[j][kept]
            counts = np.histogram2d(a, b, bins=15)[0]
            p = counts / counts.sum()
            entropies = [-(q * np.log2(q + 1e-12)).sum() for q in (p.sum(1), p.sum(0), p)]
            expected = entropies[0] + entropies[1] - entropies[2]
            assert result.mutual_information[i, j] == pytest.approx(expected, abs=1e-10)
            assert result.covariance[i, j] == pytest.approx(np.cov(a, b)[0, 1], rel=1e-10)
            assert result.samples[i, j] == kept.sum()
