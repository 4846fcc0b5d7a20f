import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from palinka.data.format import permutation

WORD = 2**64


def mix(word: int) -> int:
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB % WORD
    return word ^ (word >> 31)


def plain_permutation(length: int, *seeds: int) -> list[int]:
    state = 0
    for seed in seeds:
        state = mix(((state ^ (seed % WORD)) + 0x9E3779B97F4A7C15) % WORD)
    hashes = [mix((state + (i + 1) * 0x9E3779B97F4A7C15) % WORD) for i in range(length)]
    return sorted(range(length), key=lambda i: hashes[i])


@given(st.integers(0, 60), st.lists(st.integers(-(2**63), 2**64 - 1), max_size=3))
def test_permutation_equals_plain_transcription(length: int, seeds: list[int]) -> None:
    assert permutation(length, *seeds).tolist() == plain_permutation(length, *seeds)


def test_mixing_is_splitmix64() -> None:
    # The first outputs of the published generator for seed 0.
    assert mix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF
    assert mix(2 * 0x9E3779B97F4A7C15 % WORD) == 0x6E789E6AA1B965F4


def test_permutation_never_changes() -> None:
    assert permutation(8, 1, 2).tolist() == [2, 7, 3, 1, 5, 6, 0, 4]


def test_seeds_count_each_for_itself() -> None:
    orders = [permutation(50, *seeds).tolist() for seeds in ((0, 1), (1, 0), (0, 0), (1, 1), (0,))]
    assert len({tuple(order) for order in orders}) == 5


def test_places_are_uniform() -> None:
    orders = np.stack([permutation(10, seed) for seed in range(5000)])
    counts = np.stack([np.bincount(orders[:, place], minlength=10) for place in range(10)])
    # Sum of squared deviations over expectation: chi-squared with 81 degrees of freedom.
    assert ((counts - 500) ** 2 / 500).sum() < 81 + 4 * np.sqrt(2 * 81)
