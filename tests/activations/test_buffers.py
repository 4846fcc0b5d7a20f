import torch

from palinka.data.loader import BatchBuffers


def buffers(keep: int = 2) -> BatchBuffers:
    return BatchBuffers(width=3, dtype=torch.bfloat16, keep=keep, pin_memory=False)


def test_shape_and_dtype() -> None:
    taken = buffers().take(4)
    assert taken.shape == (4, 3)
    assert taken.dtype == torch.bfloat16
    assert taken.is_contiguous()
    assert buffers().take(0).shape == (0, 3)


def test_memory_comes_back_when_nobody_refers_to_it() -> None:
    pool = buffers()
    place = (first := pool.take(4)).data_ptr()
    del first
    assert pool.take(4).data_ptr() == place


def test_memory_in_use_is_left_alone() -> None:
    pool = buffers()
    tensor = pool.take(4).fill_(1)
    holders = [tensor[1:], tensor.view(torch.int16), tensor.T, tensor.view(torch.int16).numpy()]
    del tensor
    while holders:
        others = [pool.take(4) for _ in range(3)]
        for other in others:
            other.fill_(7)
        assert (torch.as_tensor(holders[-1]).view(torch.bfloat16) == 1).all()
        holders.pop()


def test_a_graph_keeps_its_memory() -> None:
    pool = BatchBuffers(width=3, dtype=torch.float32, keep=2, pin_memory=False)
    weight = torch.ones(3, requires_grad=True)
    batch = pool.take(2).fill_(5)
    loss = (batch * weight).sum()
    del batch
    pool.take(2).fill_(-1)
    loss.backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [10, 10, 10]


def test_no_more_is_kept_than_asked() -> None:
    pool = buffers(keep=2)
    taken = [pool.take(4) for _ in range(5)]
    places = {tensor.data_ptr() for tensor in taken}
    assert len(places) == 5
    taken.clear()
    assert len(pool._kept) == 2


def test_smaller_batches_fit_into_larger_memory() -> None:
    pool = buffers()
    place = (large := pool.take(8)).data_ptr()
    del large
    assert pool.take(3).data_ptr() == place
