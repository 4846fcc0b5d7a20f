"""Wall and CPU time of short commands, each in a new process, against `import torch`.

python benchmarks/startup.py

Help and mistakes are answered from `options.json`, before torch is imported. What trains needs
Lightning, and `import lightning.pytorch` takes nearly four times as long as torch alone: it imports
`torch._dynamo` (for the type of a compiled model) and torchmetrics, which imports `scipy.signal`,
matplotlib, and transformers where it is installed. Neither has a switch for that, and a fit needs
most of it later: the optimizer's first step imports `torch._dynamo`, and reading activations
transformers. So a command saves elsewhere: it imports without collecting garbage, and does not look
for any at its end. `analyze` of neurons needs no Lightning; half of its time is drawing.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import Row, Seconds, duration, medians, publish, table

ROUNDS = 5
YARDSTICK = "`import torch`"
BROKEN = "data: {batch_sise: 64}\n"


def processes(folder: Path) -> dict[str, tuple[list[str], int]]:
    """Arguments of Python, and the exit status, of each side."""
    broken = folder / "broken.yaml"
    broken.write_text(BROKEN, encoding="utf-8")
    palinka = ["-m", "palinka"]
    fit = [*palinka, "fit", "--config"]
    him_her = [*palinka, "analyze", "--config", "him_her", "--output", str(folder)]
    return {
        YARDSTICK: (["-c", "import torch"], 0),
        "`import lightning.pytorch`": (["-c", "import lightning.pytorch"], 0),
        "`import palinka.cli.fit`": (["-c", "import palinka.cli.fit"], 0),
        "`palinka --help`": ([*palinka, "--help"], 0),
        "`palinka fit --help`": ([*palinka, "fit", "--help"], 0),
        "`palinka completion bash`": ([*palinka, "completion", "bash"], 0),
        "`fit --config`, no such file": ([*fit, str(folder / "nope.yaml")], 2),
        "`fit --config`, a wrong key in it": ([*fit, str(broken)], 2),
        "`fit --config quickstart --print_config`": ([*fit, "quickstart", "--print_config"], 0),
        "`analyze --config him_her`": (him_her, 0),
    }


def timed(arguments: list[str], expected: int) -> Seconds:
    """Times of a new process that ends as expected."""
    wall, before = time.perf_counter(), os.times()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
    wall, after = time.perf_counter() - wall, os.times()
    assert done.returncode == expected, done.stderr.decode()
    cpu = after.children_user + after.children_system
    return Seconds(wall, cpu - before.children_user - before.children_system)


def main() -> None:
    """Measure and report."""
    with tempfile.TemporaryDirectory() as folder:
        sides = processes(Path(folder))
        rounds = [{name: timed(*side) for name, side in sides.items()} for _ in range(ROUNDS + 1)]
    found = {name: medians([each[name] for each in rounds[1:]]) for name in sides}
    torch = found[YARDSTICK]
    rows = [
        Row(
            "" if t is not torch else "a new process",
            name,
            duration(t.wall),
            duration(t.cpu),
            f"{t.cpu / torch.cpu:.2g}",
        )
        for name, t in found.items()
    ]
    remarks = (
        f"Medians of {ROUNDS} interleaved rounds after a first one; the ratio is that of the CPU "
        f"times to {YARDSTICK}. `analyze` draws and writes nine figures."
    )
    publish("startup", "Start-up time of the commands", table(rows), remarks)


if __name__ == "__main__":
    main()
