from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Buffer
from torchmetrics import SumMetric

from palinka.autoencoders.base import FullPrecisionState
from palinka.autoencoders.kernels.dispatch import in_parallel

Convert = Callable[[nn.Module], nn.Module]


class Running(FullPrecisionState):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.mean = Buffer(torch.full((2,), 1 / 3, dtype=torch.float32))
        self.count = Buffer(torch.tensor(1001))


class Sum(FullPrecisionState, SumMetric):
    pass


@pytest.mark.parametrize(
    "convert",
    [
        lambda m: m.to(torch.bfloat16),
        lambda m: m.to("cpu", torch.float16),
        lambda m: m.bfloat16(),
        lambda m: m.half(),
        lambda m: nn.ModuleList([m]).to(torch.bfloat16)[0],
    ],
)
def test_narrower_dtypes_reach_parameters_alone(convert: Convert) -> None:
    module = Running()
    module.inner(torch.ones(1, 2)).sum().backward()
    convert(module)
    weight = module.inner.weight
    assert weight.element_size() == 2
    assert weight.grad is not None
    assert weight.grad.dtype == weight.dtype
    assert torch.equal(module.mean, torch.full((2,), 1 / 3))
    assert module.count.dtype == torch.int64
    total = Sum()
    total.set_dtype(torch.float64)
    total.update(1001.0)
    assert convert(total).compute() == 1001.0
    assert total.sum_value.dtype == torch.float64


def test_wider_dtypes_and_devices_are_followed() -> None:
    assert Running().double().mean.dtype == torch.float64
    moved: Tensor = Running().to("meta", torch.bfloat16).mean
    assert (moved.device.type, moved.dtype) == ("meta", torch.float32)


def test_threads_share_all_rows() -> None:
    done: list[int] = []
    for count in (0, 1, 5, 100):
        done.clear()
        in_parallel(lambda start, stop: done.extend(range(start, stop)), count)
        assert sorted(done) == list(range(count))
