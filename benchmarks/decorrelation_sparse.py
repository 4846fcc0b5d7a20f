"""The decorrelation penalty of latents of which few are active, against the dense Gram matrix.

python benchmarks/decorrelation_sparse.py
"""

from collections.abc import Callable

import torch
from torch import Tensor

from decorrelation import Result, both_passes
from harness import Case, Rival, report
from palinka.autoencoders.kernels.decorrelation import squared_covariance
from palinka.autoencoders.kernels.sparse import SparseLatents
from palinka.training import decorrelation_loss


def kept(rows: int, latents: int, k: int) -> tuple[Tensor, Tensor]:
    """Values and indices of the `k` largest of each row of a batch drawn at random."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, latents, generator=generator).topk(k, dim=1)


def agree_at(indices: Tensor) -> Callable[[Result, Result], str]:
    """Compares values, and gradients at the latents that are kept."""

    def agree(dense: Result, ours: Result) -> str:
        value = abs(ours[0] / dense[0] - 1)
        there = dense[1].gather(1, indices)
        gradient = float((ours[1] - there).abs().max() / there.abs().max())
        assert value < 1e-5, value
        assert gradient < 1e-4, gradient
        return f"value within {value:.0e}, gradient within {gradient:.0e}"

    return agree


def main() -> None:
    """Measure and report."""
    cases = []
    for rows, latents, k, at_least in ((1024, 16384, 32, 6.0), (209, 6144, 1024, None)):
        values, indices = kept(rows, latents, k)
        narrow = indices.int()

        def penalty(z: Tensor, places: Tensor = narrow, width: int = latents) -> Tensor:
            return decorrelation_loss(SparseLatents(z, places, width))

        whole = SparseLatents(values, narrow, latents).dense()
        dense = both_passes(squared_covariance, whole)
        cases.append(
            Case(
                f"{rows:,} rows of {latents:,} latents, k = {k:,}",
                ours=both_passes(penalty, values),
                rivals=[
                    Rival("dense Gram form", dense, at_least=at_least, check=agree_at(indices))
                ],
                rounds=7,
            )
        )
    report("decorrelation_sparse", "The decorrelation penalty of sparse latents", cases)


if __name__ == "__main__":
    main()
