"""A step of the reference run: all three losses on one passage, against a plain transcription.

python benchmarks/reference_step.py
"""

import torch
from torch import Tensor

from harness import Case, Rival, report
from palinka.autoencoders import KSparseAutoencoder
from palinka.language_models.cpu import slow_products
from process import at_precision, onednn_is_exact
from training_step import PalinkaStep

ROWS, WIDTH, LATENTS, K = 209, 3072, 6144, 1024
SPARSITY, DECORRELATION = 1.0, 5e-4


class PlainStep:
    """The specification, line by line, with PyTorch's Adam as it is by default.

    Args:
        weight: First weights, `(latents, width)`.
        batch: The activations, `(rows, width)`.
    """

    def __init__(self, weight: Tensor, batch: Tensor) -> None:
        self.weight = weight.clone().requires_grad_()
        self.batch = batch
        self.optimizer = torch.optim.Adam([self.weight], lr=1e-4)

    def __call__(self) -> tuple[float, Tensor]:
        """Take a step; the loss before it, and its gradient."""
        self.optimizer.zero_grad()
        a = torch.relu(self.batch @ self.weight.T)
        z = a * (a >= torch.topk(a, K, dim=1).values[:, -1:])
        reconstruction = ((z @ self.weight - self.batch) ** 2).mean()
        covariance = torch.cov(z.T)
        decorrelation = (covariance**2).sum() - (covariance.diagonal() ** 2).sum()
        loss = reconstruction + SPARSITY * z.abs().mean() + DECORRELATION * decorrelation
        loss.backward()
        self.optimizer.step()
        return float(loss.detach()), self.weight.grad


class OurStep(PalinkaStep):
    """The same by the library, handing out the gradient too."""

    def __call__(self) -> tuple[float, Tensor]:  # type: ignore[override]
        """Take a step; the loss before it, and its gradient."""
        loss = super().__call__()
        return loss, self.module.autoencoder.encoder.weight.grad


def our_step(weight: Tensor, batch: Tensor, autocast: torch.dtype | None = None) -> OurStep:
    """The library's step from given weights."""
    autoencoder = KSparseAutoencoder(WIDTH, LATENTS, K)
    with torch.no_grad():
        autoencoder.encoder.weight.copy_(weight)
    return OurStep(
        autoencoder,
        batch,
        autocast,
        sparsity_weight=SPARSITY,
        decorrelation_weight=DECORRELATION,
    )


def agree_within(loss: float, gradient: float) -> object:
    """Compares first losses and gradients, relative to the loss and the gradient's norm."""

    def agree(plain: tuple[float, Tensor], ours: tuple[float, Tensor]) -> str:
        losses = abs(ours[0] / plain[0] - 1)
        gradients = float((ours[1] - plain[1]).norm() / plain[1].norm())
        assert losses < loss, losses
        assert gradients < gradient, gradients
        return f"first loss within {losses:.0e}, its gradient within {gradients:.0e}"

    return agree


def main() -> None:
    """Measure and report."""
    generator = torch.Generator().manual_seed(0)
    bound = WIDTH**-0.5
    weight = torch.empty(LATENTS, WIDTH).uniform_(-bound, bound, generator=generator)
    batch = torch.randn(ROWS, WIDTH, generator=generator)
    sizes = f"{ROWS} rows of {WIDTH:,}, {LATENTS:,} latents, k = {K:,}"
    cases = []
    for name, autocast, at_least, check in (
        ("float32", None, 6.0, agree_within(1e-5, 1e-3)),
        ("bfloat16 autocast", torch.bfloat16, 10.0, agree_within(2e-2, 2e-1)),
    ):
        if autocast is not None and slow_products(autocast) is not None:
            continue
        plain = PlainStep(weight, batch)
        rivals = [Rival("plain, float32", plain, at_least=at_least, check=check)]
        if onednn_is_exact():
            onednn = at_precision("medium", PlainStep(weight, batch))
            rivals.append(Rival("plain, float32 by oneDNN (`medium`)", onednn, check=check))
        cases.append(
            Case(
                f"{sizes}, {name}",
                ours=our_step(weight, batch, autocast),
                rivals=rivals,
                rounds=5,
            )
        )
    report(
        "reference_step",
        "A step of the reference run",
        cases,
        remarks=(
            "Plain: the specification line by line, the penalty through `torch.cov`, Adam as "
            "PyTorch has it by default. Ours: a step of `SparseAutoencoderModule` with fused Adam, "
            "as the configurations have it. Losses and gradients of the first step are compared; "
            "in bfloat16 those of the float32 step, so that what is seen is bfloat16's rounding, "
            "which also changes which latents a row keeps."
        ),
    )


if __name__ == "__main__":
    main()
