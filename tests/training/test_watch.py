import pytest
import torch

from palinka.errors import InputError
from palinka.training.module import ActivationWatch


def test_batches_with_one_bad_number_are_counted() -> None:
    watch = ActivationWatch()
    watch.update(torch.full((4, 4), 6e4))
    watch.check()
    for value in (float("nan"), float("inf"), -float("inf")):
        batch = torch.zeros(4, 4)
        batch[1, 2] = value
        watch.update(batch)
    with pytest.raises(InputError, match="3 batches of activations hold NaN or Inf"):
        watch.check()


def test_the_count_is_no_part_of_a_checkpoint() -> None:
    assert not ActivationWatch().state_dict()
