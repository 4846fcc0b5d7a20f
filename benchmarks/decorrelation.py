"""The decorrelation penalty with its gradient, against the covariance matrix.

python benchmarks/decorrelation.py
"""

from collections.abc import Callable

import torch
from torch import Tensor

from harness import Case, Rival, report
from palinka.autoencoders import KSparseAutoencoder
from palinka.autoencoders.kernels.decorrelation import (
    squared_covariance,
    squared_covariance_plain,
)
from process import FitSettings, at_precision, onednn_is_exact
from reference_step import WIDTH

Result = tuple[float, Tensor]


def kept(rows: int, latents: int, k: int) -> Tensor:
    """Latents of which every row has `k`, as after ReLU and top-k."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(rows, latents, generator=generator)
    largest = values.topk(k, dim=1)
    return torch.zeros_like(values).scatter(1, largest.indices, largest.values)


def both_passes(penalty: Callable[[Tensor], Tensor], latents: Tensor) -> Callable[[], Result]:
    """Value and gradient of a penalty."""
    leaf = latents.clone().requires_grad_()

    def run() -> Result:
        leaf.grad = None
        value = penalty(leaf)
        value.backward()
        return float(value.detach()), leaf.grad

    return run


def agree(plain: Result, ours: Result) -> str:
    """Relative differences of values and gradients."""
    value = abs(ours[0] / plain[0] - 1)
    gradient = float((ours[1] - plain[1]).abs().max() / plain[1].abs().max())
    assert value < 1e-5, value
    assert gradient < 1e-4, gradient
    return f"value within {value:.0e}, gradient within {gradient:.0e}"


def main() -> None:
    """Measure and report."""
    rows, latents, k = 209, 6144, 1024
    values = kept(rows, latents, k)
    plain = both_passes(squared_covariance_plain, values)
    settings = FitSettings(KSparseAutoencoder(WIDTH, latents, k))
    rivals = [Rival("`torch.cov`", plain, at_least=60, check=agree)]
    if onednn_is_exact():
        onednn = at_precision("medium", plain)
        rivals.append(Rival("`torch.cov`, oneDNN (`medium`)", onednn, check=agree))
    report(
        "decorrelation",
        "The decorrelation penalty, forward and backward",
        [
            Case(
                f"{rows} rows of {latents:,} latents, {k:,} of them active",
                ours=settings.given_to(both_passes(squared_covariance, values)),
                rivals=rivals,
                rounds=5,
                repeats=5,
            )
        ],
        remarks=(
            "Ours with the precision of products and the kept memory that `palinka fit` sets for "
            "its process; `torch.cov` with what PyTorch has by default, or with oneDNN alone."
        ),
    )


if __name__ == "__main__":
    main()
