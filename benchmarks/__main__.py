"""Run the benchmarks, each in its own process, and report the outcome of each.

    python benchmarks                  # all of them
    python benchmarks sparse_step      # some

A benchmark that fails does not keep the others from running. The pages are in
`benchmarks/results/`.
"""

import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).parent
# From the first figures of a training step to what only takes long.
ORDER = (
    "reference_step",
    "decorrelation",
    "decorrelation_sparse",
    "sparse_step",
    "sparse_step_auxk",
    "dense_step",
    "gpu_step",
    "harvest",
    "patching",
    "loader",
    "verify",
    "lightning_overhead",
    "memory",
    "startup",
    "growth_tokens",
    "growth_latents",
    "category_score",
    "generalized_eigendecomposition",
    "pairwise_mutual_information",
    "matching",
    "probing",
    "exports",
    "explain",
    "validity",
)
SECONDS_EACH = 900


def run(name: str) -> str:
    """Run one benchmark and describe its outcome in a few words."""
    started = time.perf_counter()
    try:
        code = subprocess.run(
            [sys.executable, FOLDER / f"{name}.py"], timeout=SECONDS_EACH, check=False
        ).returncode
    except subprocess.TimeoutExpired:
        return f"stopped after {SECONDS_EACH} s"
    ended = "done" if code == 0 else f"failed with exit status {code}"
    return f"{ended} after {time.perf_counter() - started:.0f} s"


def main() -> int:
    """Run the benchmarks of the command line; return 1 if any failed."""
    names = sys.argv[1:] or ORDER
    unknown = sorted(set(names) - set(ORDER))
    if unknown:
        print(f"there is no benchmark {', '.join(unknown)}; there are {', '.join(ORDER)}")
        return 2
    ended = {}
    for name in names:
        print(f"--- {name}", flush=True)
        ended[name] = run(name)
    print("---")
    for name, words in ended.items():
        print(f"{name}: {words}")
    return int(any(not words.startswith("done") for words in ended.values()))


if __name__ == "__main__":
    sys.exit(main())
