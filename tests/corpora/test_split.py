import pytest
from hypothesis import given
from hypothesis import strategies as st

from palinka.data import split_of
from palinka.errors import InputError

fractions = st.floats(0.01, 0.5)


@given(fractions, st.integers(0, 2**32), st.integers(0, 500))
def test_exactly_one_of_each_group_is_for_validation(
    fraction: float, seed: int, group: int
) -> None:
    size = round(1 / fraction)
    members = range(group * size, (group + 1) * size)
    splits = [split_of(document, fraction, seed) for document in members]
    assert splits.count("validation") == 1
    assert splits.count("train") == size - 1
    assert splits == [split_of(document, fraction, seed) for document in members]


def test_is_the_same_on_every_machine_and_in_every_version() -> None:
    chosen = [d for d in range(60) if split_of(d, 0.1, seed=0) == "validation"]
    assert chosen == [2, 14, 20, 36, 40, 52]


def test_the_seed_and_the_group_choose_the_place() -> None:
    def places(seed: int) -> list[int]:
        return [d % 10 for d in range(1000) if split_of(d, 0.1, seed) == "validation"]

    assert places(0) != places(1)
    # Every place is taken now and then: 100 draws out of ten.
    assert set(places(0)) == set(range(10))


def test_no_fraction_means_no_validation() -> None:
    assert {split_of(document, 0, 0) for document in range(100)} == {"train"}


@pytest.mark.parametrize("fraction", [-0.1, 0.6, 1.0, float("nan")])
def test_refuses_fractions_out_of_range(fraction: float) -> None:
    with pytest.raises(InputError, match=r"validation_fraction is .*; expected 0"):
        split_of(0, fraction, 0)
