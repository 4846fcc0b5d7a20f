import torch

from palinka.autoencoders.kernels import SparseLatents


def test_zeros_are_nowhere() -> None:
    values = torch.tensor([[2.0, 3.0], [5.0, 0.0], [0.0, 0.0]], requires_grad=True)
    indices = torch.tensor([[1, 3], [0, 0], [0, 0]], dtype=torch.int32)
    latents = SparseLatents(values, indices, 4)
    assert latents.dense().tolist() == [[0, 2, 0, 3], [5, 0, 0, 0], [0, 0, 0, 0]]
    assert latents.fired().tolist() == [1, 1, 0, 1]
    assert (len(latents), latents.dtype) == (3, torch.float32)
    assert not latents.detach().values.requires_grad
    weights = torch.arange(12.0).view(3, 4)
    (latents.dense() * weights).sum().backward()
    assert values.grad is not None
    assert values.grad[values != 0].tolist() == [1.0, 3.0, 4.0]
