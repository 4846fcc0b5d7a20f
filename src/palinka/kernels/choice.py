"""Which form of a step costs less: the one place where that is decided."""

import torch

# The largest share of kept latents for which gathering rows beats multiplying matrices, and the
# least work for which either matters. `docs/performance.md` has the sweep.
SPARSE_DENSITY = 0.08
SPARSE_ELEMENTS = 1 << 20
LOOP_DTYPES = frozenset({torch.float32, torch.float64})


def sparse_pays(rows: int, width: int, k: int, weight: torch.Tensor) -> bool:
    """Whether to keep the `k` largest of `width` latents of each row as a list.

    Args:
        rows: Rows of the batch.
        width: Latents.
        k: How many of them a row keeps.
        weight: What they are computed with.
    """
    return loops_take(weight) and k <= SPARSE_DENSITY * width and rows * width >= SPARSE_ELEMENTS


def loops_take(*tensors: torch.Tensor) -> bool:
    """Whether compiled loops can work on tensors: plain ones of the CPU, in one full precision."""
    return all(
        tensor.device.type == "cpu"
        and tensor.dtype in LOOP_DTYPES
        and tensor.dtype == tensors[0].dtype
        and type(tensor) in (torch.Tensor, torch.nn.Parameter)
        for tensor in tensors
    )
