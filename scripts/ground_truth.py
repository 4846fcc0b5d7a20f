"""Recovery of the features of synthetic data by each architecture.

Trains every architecture on `StructuredData.small()` at half, once and twice the true number of
active features, five seeds each, and writes what `palinka.evaluation.recovery` measures, as means
with 95 % intervals over seeds, beside dictionaries at initialization. Penalties are first tuned
with another seed, on other rows:

    python scripts/ground_truth.py
"""

import argparse
import platform
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import product
from math import exp, log
from pathlib import Path
from typing import NamedTuple

import torch

from palinka.analyses.stats.comparison import format_number
from palinka.autoencoders import (
    Autoencoder,
    BatchTopKAutoencoder,
    GatedAutoencoder,
    JumpReLUAutoencoder,
    KSparseAutoencoder,
    MatryoshkaAutoencoder,
    ReLUAutoencoder,
    TopKAutoencoder,
)
from palinka.autoencoders.kernels.topk import normalize_rows_, project_gradient_
from palinka.data import StructuredData
from palinka.errors import track
from palinka.evaluation.recovery import recovery
from palinka.evaluation.values import Dictionary, Value, value_of
from palinka.training import DeadLatentTracker
from palinka.training.losses import Objective, StepContext, loss_terms

RESULT = Path(__file__).parent.parent / "benchmarks" / "results" / "ground_truth.md"
SHARES = {"half": 0.5, "equal": 1.0, "twice": 2.0}  # of the true number of active features
TEST_ROWS = 8192
# Seeds of rows: of the test 0, of training from 1 on, of tuning from here on.
TUNING = 1 << 40
TUNING_SEED = 1000
TOLERANCE, PASSES = 0.05, 8
COLUMNS = {
    "mcc": "MCC", "coverage": "coverage", "uniqueness": "uniqueness", "f1": "F1",
    "f1_matched": "F1, matched", "explained_variance": "explained variance",
    "shrinkage": "shrinkage", "absorption": "absorption", "hedging": "hedging", "l0": "L0",
    "dead": "dead",
}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """Settings of one architecture.

    Attributes:
        make: From the width, the number of latents and the number that should be active.
        penalties: Weight at each of `SHARES` with which tuning begins, against the sum of squared
            errors over the width, as papers state it; empty for none.
    """

    make: Callable[[int, int, int], Autoencoder]
    penalties: tuple[float, ...] = ()


@dataclass(frozen=True)
class Schedule:
    """Length of all trainings, by Adam with a learning rate that decays to zero."""

    steps: int
    rows: int = 256
    learning_rate: float = 3e-3
    warmup: float = 0.25
    """The share of steps over which the sparsity weight grows."""


RECIPES = {
    "KSparse": Recipe(lambda d, n, k: KSparseAutoencoder(d, n, k, decoder_bias=True)),
    "TopK": Recipe(lambda d, n, k: TopKAutoencoder(d, n, k)),
    "BatchTopK": Recipe(lambda d, n, k: BatchTopKAutoencoder(d, n, k)),
    "Matryoshka": Recipe(lambda d, n, k: MatryoshkaAutoencoder(d, n, k)),
    "ReLU": Recipe(lambda d, n, k: ReLUAutoencoder(d, n), (14.5, 13.0, 10.0)),
    "Gated": Recipe(lambda d, n, k: GatedAutoencoder(d, n), (17.0, 13.5, 8.5)),
    "JumpReLU": Recipe(
        lambda d, n, k: JumpReLUAutoencoder(d, n, bandwidth=2.0, initial_threshold=2.0),
        (20.0, 4.5, 0.6),
    ),
}


class Tuned(NamedTuple):
    """A penalty, and the mean number of active latents of the seed of the tuning."""

    penalty: float
    l0: float


class Training:
    """One autoencoder in training."""

    def __init__(
        self, autoencoder: Autoencoder, penalty: float, schedule: Schedule, width: int
    ) -> None:
        self.autoencoder, self._schedule = autoencoder, schedule
        self._objective = Objective(
            sparsity_weight=penalty / width,
            decorrelation_weight=0.0,
            sparsity_warmup_steps=round(schedule.warmup * schedule.steps),
        )
        self._clock = DeadLatentTracker(autoencoder.latent_dim)
        self._adam = torch.optim.Adam(autoencoder.parameters(), lr=schedule.learning_rate)
        self._decay = torch.optim.lr_scheduler.LinearLR(self._adam, 1.0, 0.0, schedule.steps)

    def step(self, x: torch.Tensor, number: int) -> None:
        """Take one step on a batch."""
        dead = partial(self._clock.dead, 20 * self._schedule.rows)
        found = loss_terms(self.autoencoder, StepContext(x, x, dead=dead))
        self._adam.zero_grad()
        self._objective(found, number).total.backward()  # type: ignore[no-untyped-call]
        unit_norm, dictionary = self.autoencoder.unit_norm, self.autoencoder.dictionary
        if unit_norm and dictionary.grad is not None:
            project_gradient_(dictionary.grad, dictionary)
        self._adam.step()
        self._decay.step()
        if unit_norm:
            normalize_rows_(dictionary)
        self._clock.update(found.output.latents)


def train(
    made: Sequence[tuple[str, int, float, int]], data: StructuredData, latents: int,
    schedule: Schedule, first: int,
) -> list[Autoencoder]:  # fmt: skip
    """Train on the same rows, of which none is seen twice.

    Args:
        made: Architecture, number of active latents, penalty and seed of the weights of each.
        data: The data.
        latents: Number of latents.
        schedule: Length.
        first: Seed of the first batch of rows.
    """
    trainings = []
    for name, k, penalty, seed in made:
        torch.manual_seed(seed)
        autoencoder = RECIPES[name].make(data.width, latents, k)
        trainings.append(Training(autoencoder, penalty, schedule, data.width))
    for number in track(range(schedule.steps), f"training {len(made)} dictionaries"):
        x = data.sample(schedule.rows, first + number).x
        for one in trainings:
            one.step(x, number)
    return [one.autoencoder.eval() for one in trainings]


def tune(
    data: StructuredData, latents: int, schedule: Schedule, ks: Sequence[int]
) -> dict[tuple[str, int], Tuned]:
    """Find penalties with which as many latents are active as asked, of one seed of its own."""
    places = [
        (name, k, penalty)
        for name, recipe in RECIPES.items()
        for k, penalty in zip(ks, recipe.penalties, strict=bool(recipe.penalties))
    ]
    x = data.sample(TEST_ROWS, TUNING - 1).x
    found = {(name, k): [(log(penalty), 0.0)] for name, k, penalty in places}
    done = set[tuple[str, int]]()
    for number in range(PASSES):
        left = [one for one in found if one not in done]
        made = [(name, k, exp(found[name, k][-1][0]), TUNING_SEED) for name, k in left]
        start = TUNING + number * schedule.steps
        for (name, k), trained in zip(
            left, train(made, data, latents, schedule, start), strict=True
        ):
            points = found[name, k]
            with torch.no_grad():
                active = float((trained.encode(x) != 0).sum(dim=1).double().mean())
            points[-1] = (points[-1][0], log(max(active, 1e-3) / k))
            print(f"{latents} {name} {k}: {exp(points[-1][0]):.4g} gives {active:.3g}", flush=True)
            if abs(active / k - 1.0) < 0.6 * TOLERANCE:
                done.add((name, k))
            points.append((next_penalty(points), 0.0))
        if len(done) == len(found):
            break
    best = {key: min(own[:-1], key=lambda point: abs(point[1])) for key, own in found.items()}
    return {(name, k): Tuned(exp(at), k * exp(off)) for (name, k), (at, off) in best.items()}


def next_penalty(points: Sequence[tuple[float, float]]) -> float:
    """Next logarithm of a penalty, from those so far with the logarithm of L0 over its target."""
    nearest = sorted(points, key=lambda point: abs(point[1]))
    a, at_a = nearest[0]
    for b, at_b in nearest[1:]:
        if at_a * at_b < 0:  # on both sides of the target
            return a + (b - a) * at_a / (at_a - at_b)
    return a + max(-1.0, min(1.0, at_a))


def measure(
    latents: int, data: StructuredData, schedule: Schedule, seeds: int
) -> tuple[list[Value], dict[tuple[str, int], Tuned], list[int]]:
    """Values of all recipes and of the random dictionaries, penalties, and the targets of L0."""
    torch.set_num_threads(1)
    true = float((data.sample(TEST_ROWS, TUNING - 1).latents > 0).sum(dim=1).double().mean())
    ks = [round(share * true) for share in SHARES.values()]
    penalties = tune(data, latents, schedule, ks)
    made = [
        (name, k, penalties[name, k].penalty if (name, k) in penalties else 0.0, seed)
        for name, k, seed in product(RECIPES, ks, range(seeds))
    ]
    dictionaries = [
        Dictionary(
            f"{name}, {k}, {seed}", f"{name}, {k}", seed, trained, name, latents, "",
            trained.dictionary.detach().numpy(),
        )
        for (name, k, _, seed), trained in zip(
            made, train(made, data, latents, schedule, 1), strict=True
        )
    ]  # fmt: skip
    group = recovery(dictionaries, data, TEST_ROWS)
    recipes = {one.name: one.recipe for one in dictionaries}
    by_recipe: dict[tuple[str, str], list[int]] = {}
    for at, one in enumerate(group.measurements):
        by_recipe.setdefault((recipes[one.of], one.metric), []).append(at)
    values = [
        value_of([group.measurements[at] for at in places], recipe)
        for (recipe, _), places in by_recipe.items()
    ]
    return [*values, *group.values], penalties, ks


def table(values: Iterable[Value], ks: Sequence[int]) -> str:
    """Markdown, one line for each recipe."""
    found = {(one.of, one.metric): one for one in values}
    lines = [f"| architecture | k | {' | '.join(COLUMNS.values())} |"]
    lines.append("|---|---:|" + "---:|" * len(COLUMNS))
    rows = [(name, k, f"{name}, {k}") for k in ks for name in RECIPES]
    rows += [("random, TopK", k, f"random_dictionary of TopK, {k}") for k in ks]
    for name, k, of in rows:
        cells = " | ".join(cell(found[of, metric]) for metric in COLUMNS)
        lines.append(f"| {name} | {k} | {cells} |")
    return "\n".join(lines)


def cell(value: Value) -> str:
    """A mean and the half-width of its interval."""
    if value.value != value.value:
        return "n/a"
    half = (value.high - value.low) / 2
    mean = format_number(value.value, half)
    return mean if not half > 0 else f"{mean} ± {format_number(half, half)}"


def main() -> None:
    """Tune, train and compare, and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = "of each dictionary; a process for each"
    parser.add_argument("--latents", type=int, nargs="+", default=[512, 256], help=sizes)
    parser.add_argument("--steps", type=int, default=1000, help="of training")
    parser.add_argument("--seeds", type=int, default=5, help="of weights")
    parser.add_argument("--output", type=Path, default=RESULT, help="where the table goes")
    asked = parser.parse_args()
    data, schedule = StructuredData.small(), Schedule(asked.steps)
    run = partial(measure, data=data, schedule=schedule, seeds=asked.seeds)
    sections = []
    with ProcessPoolExecutor(len(asked.latents)) as pool:
        for latents, (values, penalties, ks) in zip(
            asked.latents, pool.map(run, asked.latents), strict=True
        ):
            tuned = ", ".join(
                f"{name} {k}: {own.penalty:.3g} ({own.l0:.3g})"
                for (name, k), own in penalties.items()
            )
            below = f"Penalties, with the L0 of the seed of the tuning: {tuned}."
            sections.append(f"## {latents} latents\n\n{table(values, ks)}\n\n{below}")
    true = float((data.sample(TEST_ROWS, 0).latents > 0).sum(dim=1).double().mean())
    tables = "\n\n".join(sections)
    text = f"""# Ground truth

{tables}

`StructuredData.small()`: {data.features} features in {data.width} dimensions, {true:.2f} active in
a row on average, with frequencies by Zipf's law, correlations, and 16 trees of parents with
exclusive children. {asked.steps} steps of {schedule.rows} rows, none seen twice; k is half, once
and twice the true number of active features, and penalties are tuned to it, with another
seed and other rows. Means over {asked.seeds} seeds of the weights with 95 % intervals (t),
on {TEST_ROWS:,} other rows. All dictionaries see the same batches: the intervals leave out the
variance of data order. The metrics are those of `palinka.evaluation.recovery`; hedging and
absorption are of latents that have a feature with a cosine of at least 0.5, and n/a where none has.
*Random*: TopK at initialization.

Written by `python scripts/ground_truth.py`. torch {torch.__version__}, {platform.system()},
Python {platform.python_version()}; {datetime.now(UTC):%Y-%m-%d}.
"""
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    asked.output.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
