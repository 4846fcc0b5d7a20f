"""The time of a training step over the number of latents and how many are kept.

python benchmarks/growth_latents.py
"""

import gc

from harness import duration, medians, publish, timed
from peers import Setting
from process import product
from sparse_step import tied_step

ROWS, WIDTH = 512, 256
LATENTS = (4_096, 16_384, 65_536, 131_072)
KEPT = (8, 32, 128, 512)
ROUNDS = 3


def row(latents: int) -> list[str]:
    """One line of the table: the encoder's product alone, and a step for every k."""
    setting = Setting.drawn(ROWS, WIDTH, latents, 1)
    encode = product(setting.batch, setting.dictionary)
    encode()
    times = {0: medians([timed(encode)[0] for _ in range(ROUNDS)]).wall}
    del encode
    for k in KEPT:
        step = tied_step(Setting(setting.dictionary, setting.batch, k))
        step()
        times[k] = medians([timed(step)[0] for _ in range(ROUNDS)]).wall
        del step
        gc.collect()
    return [f"{latents:,}", *(duration(elapsed) for elapsed in times.values())]


def main() -> None:
    """Measure and report."""
    head = ["latents", "encoder's product", *(f"k = {k}" for k in KEPT)]
    lines = [head, ["---:"] * len(head), *(row(latents) for latents in LATENTS)]
    publish(
        "growth_latents",
        "Growth with the number of latents",
        "\n".join(f"| {' | '.join(line)} |" for line in lines),
        remarks=(
            f"A step of a tied autoencoder without penalties, {ROWS} rows of {WIDTH}, float32, "
            f"optimizer included; medians of {ROUNDS} steps after one."
        ),
    )


if __name__ == "__main__":
    main()
