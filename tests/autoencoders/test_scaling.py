import pytest
import torch

from palinka.autoencoders import InputScaling
from palinka.errors import InputError


def test_there_and_back() -> None:
    scaling, x = InputScaling(3), torch.tensor([[3.0, 2.0, 1.0]])
    assert torch.equal(scaling(x), x)
    assert torch.equal(scaling.inverse(x), x)
    scaling.set(torch.tensor([1.0, 2.0, 3.0]), 0.5)
    assert scaling(x).tolist() == [[1.0, 0.0, -1.0]]
    torch.testing.assert_close(scaling.inverse(scaling(x)), x)
    assert set(scaling.state_dict()) == {"mean", "scale"}


def test_statistics_that_do_not_fit() -> None:
    scaling = InputScaling(3)
    with pytest.raises(InputError, match=r"width \(4,\).*input_dim 3"):
        scaling.set(torch.zeros(4), 1.0)
    for scale in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(InputError, match="positive scale"):
            scaling.set(torch.zeros(3), scale)
    with pytest.raises(InputError, match="finite"):
        scaling.set(torch.full((3,), float("nan")), 1.0)
    assert torch.equal(scaling.mean, torch.zeros(3))
