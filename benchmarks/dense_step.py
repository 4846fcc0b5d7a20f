"""A training step that keeps one latent in six, which is no longer sparse.

python benchmarks/dense_step.py
"""

from harness import Case, report
from peers import Setting, rivals
from sparse_step import tied_step
from sparse_step_auxk import untied_step

ROWS, WIDTH, LATENTS, K = 1024, 3072, 6144, 1024
PROMISES = {"SAELens": 1.6, "SAELens, given fused Adam": None}


def main() -> None:
    """Measure and report."""
    setting = Setting.drawn(ROWS, WIDTH, LATENTS, K)
    cases = []
    for name, step, promises in (
        ("tied", tied_step(setting), PROMISES),
        ("untied, biased, unit norm", untied_step(setting), dict.fromkeys(PROMISES)),
    ):
        others, missing = rivals(setting, step.reconstruction(), promises)
        cases.append(
            Case(
                f"{ROWS:,} rows of {WIDTH:,}, {LATENTS:,} latents, k = {K:,}, {name}",
                ours=step,
                rivals=others,
                missing=missing,
                rounds=3,
            )
        )
    report(
        "dense_step",
        "A dense training step",
        cases,
        remarks=(
            "As in the sparse step; SAELens has an encoder and a decoder of their own, with biases."
        ),
    )


if __name__ == "__main__":
    main()
