"""Recovery of known dictionaries by each architecture.

Trains every architecture on synthetic data of three kinds: features that are active by
themselves, features of which groups co-occur, and children that are active only where their
parent is. Writes the mean over true directions of the highest cosine with a latent's, the
fraction of variance unexplained, the mean number of active latents and the share of dead ones:

    python scripts/ground_truth.py
"""

import argparse
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from statistics import mean

import torch
from torch import Generator, Tensor

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
from palinka.data import SyntheticData, mean_max_cosine
from palinka.errors import track
from palinka.training import DeadLatentTracker
from palinka.training.losses import Objective, StepContext, loss_terms

RESULT = Path(__file__).parent.parent / "benchmarks" / "results" / "ground_truth.md"
TEST_ROWS = 8192


@dataclass(frozen=True, eq=False)
class CorrelatedData(SyntheticData):
    """Data whose features co-occur by a given correlation matrix.

    A feature is active where a normal variable exceeds a threshold; the variables of a row have
    the given correlations. Each feature is active as often as it would be without them.

    Attributes:
        correlation: Correlations of the normal variables, a symmetric `(features, features)`
            matrix without negative eigenvalues, with ones on the diagonal; see
            `grouped_correlation`.

    Source:
        Emrich & Piedmonte (1991), A method for generating high-dimensional multivariate binary
        variates.
    """

    correlation: Sequence[Sequence[float]] | Tensor = ()

    @property
    def _matrix(self) -> Tensor:
        return torch.as_tensor(self.correlation, dtype=torch.float64)

    @cached_property
    def _root(self) -> Tensor:
        """Factor of independent normal variables, `(features, features)`."""
        values, vectors = torch.linalg.eigh(self._matrix)
        root: Tensor = vectors * values.clamp(min=0).sqrt()
        return root.T.float()

    def _active(self, rows: int, generator: Generator) -> Tensor:
        normal = torch.randn(rows, self.features, generator=generator) @ self._root
        active: Tensor = normal < torch.special.ndtri(torch.tensor(self.active / self.features))
        return active


def grouped_correlation(features: int, group_size: int, correlation: float) -> Tensor:
    """Correlation matrix of consecutive groups, with none between groups.

    Args:
        features: Number of features.
        group_size: Features per group; the last may have fewer.
        correlation: Correlation within a group, from 0 to 1.

    Returns:
        `(features, features)`, float64.
    """
    group = torch.arange(features) // group_size
    together = (group[:, None] == group).double()
    return correlation * together + (1.0 - correlation) * torch.eye(features, dtype=torch.float64)


@dataclass(frozen=True)
class HierarchicalData(SyntheticData):
    """Data in which a child feature is active only where its parent is.

    Features without a parent are active independently, with the one probability that makes
    `active` the mean number of active features.

    Attributes:
        parents: Index of each feature's parent, which must come before it; None for those
            that have none. See `families`.
        child_probability: Probability of a child where its parent is active.

    Source:
        Chanin et al. (2024), A is for absorption, arXiv 2409.14507; Bussmann et al. (2025),
        Matryoshka sparse autoencoders, arXiv 2503.17547.
    """

    parents: Sequence[int | None] = ()
    child_probability: float = 0.5

    @cached_property
    def _probabilities(self) -> Tensor:
        """Probability of each feature, given its parent if it has one, `(features,)`."""
        share: list[float] = []
        for parent in self.parents:
            share.append(1.0 if parent is None else share[parent] * self.child_probability)
        root = self.active / sum(share)
        return torch.tensor(
            [root if parent is None else self.child_probability for parent in self.parents]
        )

    def _active(self, rows: int, generator: Generator) -> Tensor:
        active = torch.rand(rows, self.features, generator=generator) < self._probabilities
        for child, parent in enumerate(self.parents):
            if parent is not None:
                active[:, child] &= active[:, parent]
        return active


def families(features: int, children: int) -> list[int | None]:
    """Parents of `HierarchicalData`: one parent followed by its children, again and again.

    Args:
        features: Number of features; the last family may have fewer.
        children: Children of each parent.
    """
    size = children + 1
    return [None if i % size == 0 else i - i % size for i in range(features)]


@dataclass(frozen=True)
class Recipe:
    """Training settings of one architecture.

    Attributes:
        make: From the width, the number of latents and the number that should be active.
        penalty: Weight of the penalty, where the architecture has one, against the sum of squared
            errors over the width, as papers state it.
    """

    make: Callable[[int, int, int], Autoencoder]
    penalty: float = 0.0


@dataclass(frozen=True)
class Schedule:
    """Length of all trainings, by Adam with a learning rate that decays to zero."""

    steps: int
    rows: int = 256
    learning_rate: float = 3e-3
    warmup: float = 0.25
    """The share of steps over which the sparsity weight grows."""


@dataclass(frozen=True)
class Found:
    """Results of one training on held-out rows."""

    cosine: float
    fvu: float
    l0: float
    dead: float


RECIPES = {
    "KSparse": Recipe(lambda d, n, k: KSparseAutoencoder(d, n, k, decoder_bias=True)),
    "TopK": Recipe(lambda d, n, k: TopKAutoencoder(d, n, k)),
    "BatchTopK": Recipe(lambda d, n, k: BatchTopKAutoencoder(d, n, k)),
    "Matryoshka": Recipe(lambda d, n, k: MatryoshkaAutoencoder(d, n, k)),
    "ReLU": Recipe(lambda d, n, k: ReLUAutoencoder(d, n), 0.6),
    "Gated": Recipe(lambda d, n, k: GatedAutoencoder(d, n), 1.2),
    "JumpReLU": Recipe(
        lambda d, n, k: JumpReLUAutoencoder(d, n, bandwidth=0.1, initial_threshold=0.1), 0.3
    ),
    "JumpReLU, tanh": Recipe(
        lambda d, n, k: JumpReLUAutoencoder(
            d, n, bandwidth=0.1, initial_threshold=0.1, sparsity="tanh", tanh_scale=1.0
        ),
        0.6,
    ),
}


def train(
    recipe: Recipe, data: SyntheticData, latents: int, schedule: Schedule, seed: int
) -> Autoencoder:
    """A new autoencoder, trained on rows of the data that are never seen twice."""
    torch.manual_seed(seed)
    autoencoder = recipe.make(data.width, latents, round(data.active))
    objective = Objective(
        sparsity_weight=recipe.penalty / data.width,
        decorrelation_weight=0.0,
        sparsity_warmup_steps=round(schedule.warmup * schedule.steps),
        decorrelation_warmup_steps=0,
    )
    clock = DeadLatentTracker(latents)
    adam = torch.optim.Adam(autoencoder.parameters(), lr=schedule.learning_rate)
    decay = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.0, schedule.steps)
    for i in range(schedule.steps):
        x = data.sample(schedule.rows, seed=1 + i + schedule.steps * seed).x
        step = StepContext(x, x, dead=partial(clock.dead, 20 * schedule.rows))
        found = loss_terms(autoencoder, step)
        adam.zero_grad()
        objective(found, i).total.backward()  # type: ignore[no-untyped-call]
        if autoencoder.unit_norm and autoencoder.dictionary.grad is not None:
            project_gradient_(autoencoder.dictionary.grad, autoencoder.dictionary)
        adam.step()
        decay.step()
        if autoencoder.unit_norm:
            normalize_rows_(autoencoder.dictionary)
        clock.update(found.output.latents)
    return autoencoder.eval()


@torch.no_grad()
def measure(autoencoder: Autoencoder, data: SyntheticData) -> Found:
    """Compare a trained autoencoder with what its data was made of."""
    x = data.sample(TEST_ROWS, seed=0).x
    reconstruction, latents = autoencoder(x)
    active = latents != 0
    error = (x - reconstruction).square().sum() / (x - x.mean(dim=0)).square().sum()
    return Found(
        cosine=mean_max_cosine(autoencoder.dictionary, data.directions),
        fvu=float(error),
        l0=float(active.sum(dim=1).double().mean()),
        dead=float((~active.any(dim=0)).double().mean()),
    )


def cases(features: int, width: int, active: float) -> dict[str, SyntheticData]:
    """The three kinds of data, which differ in nothing but in which features are active."""
    return {
        "easy": SyntheticData(features, width, active),
        "correlated": CorrelatedData(
            features, width, active, correlation=grouped_correlation(features, 4, 0.8)
        ),
        "hierarchical": HierarchicalData(
            features, width, active, parents=families(features, 3), child_probability=0.3
        ),
    }


def table(results: dict[str, dict[str, list[Found]]]) -> str:
    """Markdown, one line for each architecture and case, the means over seeds."""
    lines = [
        "| architecture | data | mean maximum cosine | (lowest seed) | FVU | L0 | dead |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for architecture, by_case in results.items():
        for case, found in by_case.items():
            cosines = [one.cosine for one in found]
            lines.append(
                f"| {architecture} | {case} | {mean(cosines):.3f} | {min(cosines):.3f}"
                f" | {mean(one.fvu for one in found):.3f} | {mean(one.l0 for one in found):.2f}"
                f" | {mean(one.dead for one in found):.2f} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Train everything on everything, and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--features", type=int, default=64, help="true directions")
    parser.add_argument("--width", type=int, default=64, help="dimensions they are in")
    parser.add_argument("--active", type=float, default=4.0, help="features of a row, on average")
    parser.add_argument("--latents", type=int, default=128, help="of each autoencoder")
    parser.add_argument("--steps", type=int, default=1000, help="of training")
    parser.add_argument("--seeds", type=int, default=2, help="of weights and rows")
    parser.add_argument("--output", type=Path, default=RESULT, help="where the table goes")
    asked = parser.parse_args()
    schedule = Schedule(asked.steps)
    kinds = cases(asked.features, asked.width, asked.active)
    results: dict[str, dict[str, list[Found]]] = {
        architecture: {case: [] for case in kinds} for architecture in RECIPES
    }
    runs = [
        (architecture, case, seed)
        for architecture in RECIPES
        for case in kinds
        for seed in range(asked.seeds)
    ]
    for architecture, case, seed in track(runs, "training"):
        trained = train(RECIPES[architecture], kinds[case], asked.latents, schedule, seed)
        results[architecture][case].append(measure(trained, kinds[case]))
    text = f"""# Ground truth

{table(results)}

{asked.features} random directions of norm 1 in {asked.width} dimensions, {asked.active:g} of them
active in a row on average, with amplitudes uniform in 0.5 to 1.5 and no noise; {asked.latents}
latents, {asked.steps} steps of {schedule.rows} rows, none seen twice; means over {asked.seeds}
seeds, on {TEST_ROWS:,} other rows. *Correlated*: groups of four that co-occur (a correlation of
0.8 of the normal variables behind them). *Hierarchical*: every parent has three children, each
active in 0.3 of the rows in which the parent is. FVU: the fraction of variance unexplained; L0:
latents active in a row; dead: the share of latents active in no row.

Written by `python scripts/ground_truth.py`. torch {torch.__version__}, {platform.system()},
Python {platform.python_version()}; {datetime.now(UTC):%Y-%m-%d}.
"""
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    asked.output.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
