"""The JumpReLU autoencoder and its straight-through estimators."""

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from palinka.autoencoders.linear import UntiedAutoencoder
from palinka.errors import InputError


def jump_relu(values: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """Keep values `(…, latents)` above their positive threshold, `(latents,)`.

    The gradient passes to the values that are above, and straight through to the threshold by
    `-threshold / bandwidth` of those within half of the bandwidth.
    """
    return _step(values, threshold, bandwidth, True)


def heaviside_ste(values: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """1 where a value is above its threshold, 0 elsewhere.

    The gradient passes to the threshold alone, by `-1 / bandwidth` of those nearby.
    """
    return _step(values, threshold, bandwidth, False)


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, threshold: Tensor, bandwidth: float, jump: bool
    ) -> Tensor:
        ctx.save_for_backward(values, threshold)
        ctx.bandwidth, ctx.jump = bandwidth, jump
        above = values > threshold
        return values * above if jump else above.to(values.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        values, threshold = ctx.saved_tensors
        to_values = grad_output * (values > threshold) if ctx.jump else None
        to_threshold = None
        if ctx.needs_input_grad[1]:
            distance = (values - threshold) / ctx.bandwidth
            nearby = grad_output * ((distance > -0.5) & (distance < 0.5))
            total = nearby.sum(dim=tuple(range(values.ndim - 1)), dtype=threshold.dtype)
            rate = -threshold / ctx.bandwidth
            to_threshold = rate * total if ctx.jump else -total / ctx.bandwidth
        return to_values, to_threshold, None, None


_step: Callable[..., Tensor] = _Step.apply

Sparsity = Literal["l0", "tanh"]


class JumpReLUAutoencoder(UntiedAutoencoder):
    """`a · 1[a > threshold]` with `a = W_enc (x - b_dec) + b_enc`.

    The thresholds learn by straight-through gradients. Good values of `bandwidth` and
    `initial_threshold` scale with the activations; the defaults are the paper's, for rows of norm
    1 on average, as the data's `unit_norm` makes them.

    Args:
        bandwidth: Width of the rectangle in which an `a` moves its threshold.
        initial_threshold: Every latent's threshold at the start.
        sparsity: Penalty: the number of active latents, or its smooth approximation, the sum of
            `tanh(tanh_scale · z ‖d‖)` over latents `z` with decoder directions `d`.
        tanh_scale: Steepness of the tanh.

    Source:
        Rajamanoharan et al. (2024), JumpReLU sparse autoencoders, arXiv 2407.14435; for the tanh,
        Jermyn et al. (2024), Tanh penalty in dictionary learning, and Conerly et al. (2025),
        Dictionary learning optimization techniques (Transformer Circuits).
    """

    def __init__(
        self, input_dim: int, latent_dim: int | None = None, bandwidth: float = 0.001,
        initial_threshold: float = 0.001, sparsity: Sparsity = "l0", tanh_scale: float = 4.0,
        **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(input_dim, latent_dim, **settings)
        if sparsity not in get_args(Sparsity):
            raise InputError(f"sparsity must be 'l0' or 'tanh', got {sparsity!r}")
        self.bandwidth = _positive("bandwidth", bandwidth)
        self.initial_threshold = _positive("initial_threshold", initial_threshold)
        self.tanh_scale = _positive("tanh_scale", tanh_scale)
        self.sparsity = sparsity
        initial = torch.full((self.latent_dim,), math.log(self.initial_threshold))
        self.log_threshold = nn.Parameter(initial)

    @property
    def threshold(self) -> Tensor:
        """Threshold of each latent, `(latent_dim,)`, always positive."""
        return self.log_threshold.exp()

    def encode(self, x: Tensor) -> Tensor:
        """Activations `(…, input_dim)` to latents `(…, latent_dim)`, none of them negative."""
        return jump_relu(self.encoder_output(x), self.threshold, self.bandwidth)


def _positive(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InputError(f"{name} must be a positive number, got {value!r}")
    return float(value)
