"""Jumps at a threshold that can learn, by a stand-in for the derivative that they do not have.

A jump has no useful derivative by its threshold. The expected loss has one, though, and the mean
over a batch of what is given here estimates it: a kernel density estimate, with a rectangle one
bandwidth wide, of how much the loss changes with what crosses the threshold.

Source:
    Rajamanoharan et al. (2024), Jumping ahead, arXiv 2407.14435, sections 3 and 4.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def jump_relu(values: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """Each value where it is above its threshold, zero elsewhere.

    Args:
        values: `(…, latents)`.
        threshold: `(latents,)`, positive.
        bandwidth: Width of the rectangle; values within half of it move the threshold.

    Returns:
        `(…, latents)`. The gradient passes to the values that are above, and by
        `-threshold / bandwidth` of those nearby to the threshold.
    """
    kept: Tensor = _JumpReLU.apply(values, threshold, bandwidth)  # type: ignore[no-untyped-call]
    return kept


def step_up(values: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """1 where a value is above its threshold, 0 elsewhere.

    Args:
        values: `(…, latents)`.
        threshold: `(latents,)`.
        bandwidth: Width of the rectangle; values within half of it move the threshold.

    Returns:
        `(…, latents)`. No gradient passes to the values; to the threshold, it is by
        `-1 / bandwidth` of those nearby.
    """
    active: Tensor = _Step.apply(values, threshold, bandwidth)  # type: ignore[no-untyped-call]
    return active


def _nearby(values: Tensor, threshold: Tensor, bandwidth: float, grad_output: Tensor) -> Tensor:
    """The sum over all rows of the gradients within the rectangle, `(latents,)`."""
    distance = (values - threshold) / bandwidth
    inside = (distance > -0.5) & (distance < 0.5)
    leading = tuple(range(values.ndim - 1))
    return (grad_output * inside).sum(dim=leading, dtype=threshold.dtype)


class _JumpReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(values, threshold)
        ctx.bandwidth = bandwidth
        return values * (values > threshold)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor | None, None]:
        values, threshold = ctx.saved_tensors
        to_threshold = None
        if ctx.needs_input_grad[1]:
            nearby = _nearby(values, threshold, ctx.bandwidth, grad_output)
            to_threshold = -threshold / ctx.bandwidth * nearby
        return grad_output * (values > threshold), to_threshold, None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(values, threshold)
        ctx.bandwidth = bandwidth
        return (values > threshold).to(values.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[None, Tensor, None]:
        values, threshold = ctx.saved_tensors
        nearby = _nearby(values, threshold, ctx.bandwidth, grad_output)
        return None, -nearby / ctx.bandwidth, None
