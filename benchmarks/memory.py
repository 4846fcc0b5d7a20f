"""Peak memory of the sparse training step, each side in its own process.

python benchmarks/memory.py
"""

import resource
import subprocess
import sys

from harness import Row, compared, publish, table
from peers import PEERS, Absent, Setting
from sparse_step import LATENTS, ROWS, WIDTH, K, tied_step
from sparse_step_auxk import DEAD, untied_step

STEPS = 3
OURS = {"palinka, tied": tied_step, "palinka, untied with AuxK": untied_step}
PROMISES = {"SAELens": 0.6}


def peak(side: str, dead: int) -> int:
    """Bytes that this process held at most, once it has taken some steps of a side."""
    setting = Setting.drawn(ROWS, WIDTH, LATENTS, K, dead)
    step = {**PEERS, **OURS}[side](setting)
    for _ in range(STEPS):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def in_a_process(side: str, dead: int = 0) -> int | str:
    """Peak memory of a side in a new process, or the last line of its error."""
    done = subprocess.run(
        [sys.executable, __file__, side, str(dead)], capture_output=True, text=True, check=False
    )
    last = (done.stdout.strip() or done.stderr.strip()).splitlines()[-1]
    return int(last) if last.isdigit() else last


def gigabytes(size: int) -> str:
    """Bytes in GB."""
    return f"{size / 1e9:.2f} GB"


def rows_of(case: str, side: str, rivals: list[str], dead: int) -> list[Row]:
    """One comparison."""
    ours = in_a_process(side, dead)
    assert isinstance(ours, int), ours
    rows = [Row(case, side, gigabytes(ours))]
    for name in rivals:
        theirs = in_a_process(name, dead)
        if isinstance(theirs, str):
            rows.append(Row("", name, "not run", agreement=theirs))
            continue
        ratio, promised = compared(ours, theirs, at_most=PROMISES.get(name))
        if name not in PROMISES:
            ratio = f"{ours / theirs:.3g} times it"
        rows.append(Row("", name, gigabytes(theirs), ratio=ratio, promised=promised))
    return rows


def main() -> None:
    """Measure and report, or measure one side."""
    if len(sys.argv) > 1:
        try:
            print(peak(sys.argv[1], int(sys.argv[2])))
        except Absent as reason:
            print(reason)
        return
    sizes = f"{ROWS:,} rows of {WIDTH}, {LATENTS:,} latents, k = {K}"
    everyone = ["SAELens", "dictionary_learning", "overcomplete", "sparsify"]
    rows = rows_of(sizes, "palinka, tied", everyone, 0)
    rows += rows_of(f"{sizes}, {DEAD:,} dead", "palinka, untied with AuxK", ["SAELens"], DEAD)
    publish(
        "memory",
        "Peak memory of a sparse step",
        table(rows),
        remarks=(
            f"The largest resident set of a process that draws the weights and the batch and takes "
            f"{STEPS} steps, its libraries included; the column of times holds it."
        ),
    )


if __name__ == "__main__":
    main()
