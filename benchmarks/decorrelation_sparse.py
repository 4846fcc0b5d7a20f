"""The decorrelation penalty of latents of which few are active, against the dense Gram matrix.

python benchmarks/decorrelation_sparse.py
"""

from decorrelation import agree, both_passes, kept
from harness import Case, Rival, report
from palinka.kernels import squared_covariance
from palinka.kernels.decorrelation import _GramForm


def main() -> None:
    """Measure and report."""
    cases = []
    for rows, latents, k, at_least in ((1024, 16384, 32, 6.0), (209, 6144, 1024, None)):
        values = kept(rows, latents, k)
        dense = both_passes(lambda z: _GramForm.apply(z, None, None), values)
        cases.append(
            Case(
                f"{rows:,} rows of {latents:,} latents, k = {k:,}",
                ours=both_passes(squared_covariance, values),
                rivals=[Rival("dense Gram form", dense, at_least=at_least, check=agree)],
                rounds=7,
            )
        )
    report("decorrelation_sparse", "The decorrelation penalty of sparse latents", cases)


if __name__ == "__main__":
    main()
