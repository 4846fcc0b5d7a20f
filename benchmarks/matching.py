"""Time the one-to-one matching of two large dictionaries, and measure its memory.

    python benchmarks/matching.py

The other side is SciPy's dense assignment of the same cosines, which needs a matrix of float64.
"""

import resource
import subprocess
import sys
import time

import numpy as np
from scipy.optimize import linear_sum_assignment

from harness import Row, compared, duration, publish, table
from palinka.analyses import match_latents
from palinka.analyses.stats.dictionaries import unit_rows

WIDTH, FLOOR, SECONDS, BYTES = 768, 0.15, 60.0, 1.5e9


def dictionary(latents: int, seed: int) -> np.ndarray:
    """Directions in families; a third are those of every seed, with more or less noise."""
    fixed, random = np.random.default_rng(0), np.random.default_rng(seed)
    families = fixed.standard_normal((latents // 16, WIDTH), np.float32)
    common = fixed.standard_normal((latents // 3, WIDTH), np.float32)
    rows = random.standard_normal((latents, WIDTH), np.float32)
    strength = random.uniform(0.0, 1.2, latents).astype(np.float32)
    rows += strength[:, None] * families[random.integers(0, len(families), latents)]
    noise = random.uniform(0.1, 1.5, len(common)).astype(np.float32)
    rows[: len(common)] = common + noise[:, None] * random.standard_normal(common.shape, np.float32)
    return np.asarray(random.permutation(rows))


def side(name: str, latents: int) -> str:
    """Seconds of wall and of CPU time, bytes at most, value and share of one side."""
    a, b = dictionary(latents, 1), dictionary(latents, 2)
    wall, cpu = time.perf_counter(), time.process_time()
    if name == "palinka":
        found = match_latents(a, b, FLOOR)
        chosen = np.where(found.partner >= 0, found.cosine, FLOOR).astype(np.float64)
    else:
        cosines = np.maximum(unit_rows(a) @ unit_rows(b).T, np.float32(FLOOR))
        chosen = cosines[linear_sum_assignment(cosines, maximize=True)].astype(np.float64)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return f"{wall} {cpu} {largest} {chosen.sum()} {(chosen > 0.7).mean()}"


def in_a_process(name: str, latents: int) -> list[float]:
    """The same in a process of its own, whose memory is that of one side."""
    command = [sys.executable, __file__, name, str(latents)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


def main() -> None:
    """Measure and report, or measure one side."""
    if len(sys.argv) > 1:
        print(side(sys.argv[1], int(sys.argv[2])))
        return
    rows = []
    for latents in (4096, 24576):
        wall, cpu, largest, value, share = in_a_process("palinka", latents)
        matched = f"{100 * share:.2f} % above 0.7"
        name = f"{latents:,} latents each, {WIDTH} wide"
        rows.append(Row(name, "palinka", duration(wall), duration(cpu), agreement=matched))
        if latents > 4096:
            ratio, promised = compared(wall, SECONDS, at_most=1.0)
            rows.append(Row("", "60 s", duration(SECONDS), ratio=ratio, promised=promised))
            ratio, promised = compared(largest, BYTES, at_most=1.0)
            memory = f"{largest / 1e9:.2f} GB"
            rows.append(Row("", "1.5 GB", memory, ratio=ratio, promised=promised))
            continue
        theirs, its_cpu, _, its_value, its_share = in_a_process("SciPy", latents)
        np.testing.assert_allclose([value, share], [its_value, its_share], rtol=1e-5)
        ratio, _ = compared(wall, theirs)
        agreement = f"value {abs(value - its_value) / its_value:.0e} apart, same share"
        rows.append(
            Row("", "SciPy, dense", duration(theirs), duration(its_cpu), ratio, "", agreement)
        )
    remarks = (
        f"Cosines above a floor of {FLOOR} and the assignment, once, each side in a process of its "
        "own; the column of times also has the largest resident set, with libraries and both "
        "dictionaries."
    )
    publish("matching", "Matching latents of two dictionaries", table(rows), remarks)


if __name__ == "__main__":
    main()
