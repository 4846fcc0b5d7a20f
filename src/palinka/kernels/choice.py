"""Which form of a step costs less: the one place where that is decided."""

import os
from functools import cache
from importlib.util import find_spec

import torch

# The largest share of kept latents for which gathering rows beats multiplying matrices, and the
# least work for which either matters. `docs/performance.md` has the sweep.
SPARSE_DENSITY = 0.08
SPARSE_ELEMENTS = 1 << 20
LOOP_DTYPES = frozenset({torch.float32, torch.float64})
# On GPUs, where matrix products are faster still and nothing has been measured: well below.
TRITON_DENSITY = 1 / 64
TRITON_DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float16})
# The first that multiply bfloat16.
TRITON_CAPABILITY = (8, 0)


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


def triton_pays(rows: int, width: int, k: int, weight: torch.Tensor) -> bool:
    """As `sparse_pays`, for the lists that Triton's kernels make."""
    few = k <= TRITON_DENSITY * width and rows * width >= SPARSE_ELEMENTS
    return few and triton_takes(weight)


def triton_takes(tensor: torch.Tensor) -> bool:
    """Whether Triton's kernels can work on a tensor: a plain one of a GPU that is recent enough."""
    return (
        tensor.device.type == "cuda"
        and tensor.dtype in TRITON_DTYPES
        and type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and _has_triton(tensor.device.index)
    )


@cache
def _has_triton(device: int) -> bool:
    # Whoever trains on a GPU asks for them: they have never run on one.
    return (
        os.environ.get("PALINKA_TRITON") == "1"
        and find_spec("triton") is not None
        and torch.cuda.get_device_capability(device) >= TRITON_CAPABILITY
    )
