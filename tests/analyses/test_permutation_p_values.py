import numpy as np

from palinka.analyses.stats.permutation import permutation_p_values


def test_counts_what_is_at_least_as_good():
    null = [3.0, 1.0, 2.0, 2.0]
    observed = np.array([0.0, 2.0, 2.5, 4.0])
    assert permutation_p_values(observed, null).tolist() == [1.0, 0.8, 0.4, 0.2]


def test_rounding_does_not_break_a_tie():
    assert permutation_p_values(0.1 + 0.2, [0.3]) == 1.0
    assert permutation_p_values(0.3, [0.1 + 0.2]) == 1.0
