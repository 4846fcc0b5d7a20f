import pytest
import torch
from torch import Tensor

from palinka.autoencoders.kernels import dispatch
from palinka.autoencoders.kernels.autoencode import autoencode
from palinka.autoencoders.kernels.sparse import Weights
from palinka.autoencoders.kernels.topk import SparseLatents


def test_threads_share_all_rows() -> None:
    done: list[int] = []
    for count in (0, 1, 5, 100):
        done.clear()
        dispatch.in_parallel(lambda start, stop: done.extend(range(start, stop)), count)
        assert sorted(done) == list(range(count))


def test_few_latents_of_many_are_sparse(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.empty(64, 1), torch.empty(1 << 14, 1)
    assert dispatch.use_sparse(x, weight, 32)
    assert not dispatch.use_sparse(x, weight, 1 << 13)
    assert not dispatch.use_sparse(x[:8], weight, 32)
    assert not dispatch.use_sparse(x, weight.bfloat16(), 32)
    assert not dispatch.use_sparse(x, weight.to("meta"), 32)
    x, weights = torch.randn(4, 3), Weights(torch.randn(30, 3))
    assert isinstance(autoencode(x, weights, 2)[1], Tensor)
    monkeypatch.setattr(dispatch, "SPARSE_DENSITY", 1.0)
    monkeypatch.setattr(dispatch, "SPARSE_ELEMENTS", 1)
    assert isinstance(autoencode(x, weights, 2)[1], SparseLatents)
