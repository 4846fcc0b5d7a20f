import numpy as np
import pytest

from palinka.analyses.stats.latents import choose_latents
from palinka.errors import InputError


def test_ranks_count_from_the_highest_and_ties_from_the_lowest_number():
    values = np.array([0.0, 5.0, 2.0, 5.0, -1.0])
    assert choose_latents(values, ranks=(1, 2, 3, 5)) == (1, 3, 2, 4)


def test_numbers_come_after_ranks_and_nothing_twice():
    assert choose_latents([3.0, 2.0, 1.0], ranks=(2,), numbers=(2, 1, 0)) == (1, 2, 0)
    assert choose_latents([3.0, 2.0, 1.0], ranks=(), numbers=(1,)) == (1,)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"ranks": (0,)}, "rank 0 .* expected 1 to 3"),
        ({"ranks": (4,)}, "rank 4"),
        ({"ranks": (), "numbers": (3,)}, "latent 3 .* expected 0 to 2"),
        ({"ranks": (), "numbers": (-1,)}, "latent -1"),
    ],
)
def test_refuses_what_is_no_latent(choice, message):
    with pytest.raises(InputError, match=message):
        choose_latents([1.0, 2.0, 3.0], **choice)
