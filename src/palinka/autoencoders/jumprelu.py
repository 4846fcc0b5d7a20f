"""The JumpReLU autoencoder and its straight-through estimators."""

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from palinka.autoencoders.untied import UntiedAutoencoder
from palinka.errors import InputError


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


Sparsity = Literal["l0", "tanh"]


class JumpReLUAutoencoder(UntiedAutoencoder):
    """`a · 1[a > threshold]` with `a = W_enc (x - b_dec) + b_enc`.

    The thresholds learn by straight-through gradients. What suits `bandwidth` and
    `first_threshold` goes with the scale of the activations; the defaults are the paper's, for
    rows of norm 1 on average, as the data's `unit_norm` makes them.

    Args:
        input_dim: Width of the activations.
        latent_dim: Number of latents; `2 * input_dim` where left out.
        bandwidth: Width of the rectangle in which an `a` moves its threshold.
        first_threshold: Every latent's threshold at the start.
        sparsity: What is penalized: the number of active latents, or `tanh(tanh_scale · z ‖d‖)`
            of each latent `z` that writes `d`, which nears that number.
        tanh_scale: How steeply it nears it.
        subtract_decoder_bias: Subtract the decoder's bias before encoding.
        unit_norm: Give every latent's direction norm 1, at first and throughout training.
        output_dim: Width of what a transcoder gives.

    Raises:
        InputError: If a dimension is not a positive integer, a width, threshold or scale is not
            a positive number, or the sparsity is another.

    Source:
        Rajamanoharan et al. (2024), Jumping ahead: improving reconstruction fidelity with JumpReLU
        sparse autoencoders, arXiv 2407.14435; for the tanh, Jermyn et al. (2024), Tanh penalty in
        dictionary learning, and Conerly et al. (2025), Dictionary learning optimization
        techniques (Transformer Circuits, February 2024 and January 2025).
    """

    def __init__(
        self,
        input_dim: int,
        latent_dim: int | None = None,
        bandwidth: float = 0.001,
        first_threshold: float = 0.001,
        sparsity: Sparsity = "l0",
        tanh_scale: float = 4.0,
        subtract_decoder_bias: bool = True,
        unit_norm: bool = True,
        output_dim: int | None = None,
    ) -> None:
        super().__init__(
            input_dim,
            latent_dim,
            subtract_decoder_bias=subtract_decoder_bias,
            unit_norm=unit_norm,
            output_dim=output_dim,
        )
        self.bandwidth = _positive("bandwidth", bandwidth)
        self.first_threshold = _positive("first_threshold", first_threshold)
        self.tanh_scale = _positive("tanh_scale", tanh_scale)
        if sparsity not in get_args(Sparsity):
            raise InputError(f"sparsity must be 'l0' or 'tanh', got {sparsity!r}")
        self.sparsity = sparsity
        self.log_threshold = nn.Parameter(torch.empty(self.latent_dim))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the directions anew; every threshold begins at `first_threshold`."""
        super().reset_parameters()
        self.log_threshold.fill_(math.log(self.first_threshold))

    @property
    def threshold(self) -> Tensor:
        """What each latent has to exceed, `(latent_dim,)`, always positive."""
        return self.log_threshold.exp()

    def encode(self, x: Tensor) -> Tensor:
        """Activations `(…, input_dim)` to latents `(…, latent_dim)`, none of them negative."""
        return jump_relu(self.encoder_output(x), self.threshold, self.bandwidth)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON holds them."""
        return {
            **super().config(),
            "bandwidth": self.bandwidth,
            "first_threshold": self.first_threshold,
            "sparsity": self.sparsity,
            "tanh_scale": self.tanh_scale,
        }


def _positive(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InputError(f"{name} must be a positive number, got {value!r}")
    return float(value)
