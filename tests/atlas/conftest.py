from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from palinka.analyses.category_score import CategoryScore
from palinka.analyses.figures.text_heatmap import display_tokens
from palinka.analyses.findings import Findings
from palinka.analyses.latent_statistics import LatentStatistics
from palinka.analyses.stats.latents import HistogramCounter, NearestLatents, TopActivations
from palinka.atlas.facts import LatentFacts
from palinka.atlas.site import About
from palinka.atlas.text import AFTER, BEFORE, Windows, Word
from palinka.training.callbacks.latent_report import LatentReport

ORDINARY = [f" word{i}".encode() for i in range(40)] + [b"\n", b" ", b",", b".", b"s"]


def synthetic_windows(random: np.random.Generator, shape: tuple[int, int], tokens: int) -> Windows:
    size = (*shape, BEFORE + 1 + AFTER)
    activations = random.gamma(2.0, 1.0, size) * (random.random(size) < 0.2)
    activations[:, :, BEFORE] = random.gamma(2.0, 1.0, shape) + 0.1
    ids = random.integers(0, tokens, size)
    ids[:, 0, :3] = -1  # the beginning of a context
    return Windows(
        random.integers(0, 1000, shape),
        ids.astype(np.int32),
        activations.astype(np.float32),
        random.integers(0, 99, shape),
        random.integers(0, 99, shape),
    )


def synthetic_facts(latents: int = 150, vocabulary: list[bytes] | None = None) -> LatentFacts:
    """Facts of made-up latents; latent 7 is dead, and latent 3 fires hardest."""
    random = np.random.default_rng(0)
    tokens = ORDINARY if vocabulary is None else vocabulary
    count = len(tokens)
    density = np.exp(random.normal(-1, 1.5, latents)).clip(1e-3, 90)
    activation = random.gamma(3.0, 0.2, latents)
    batch = (random.gamma(2.0, 1.0, (40, latents)) * (random.random((40, latents)) < 0.5)).astype(
        np.float32
    )
    top = synthetic_windows(random, (latents, 4), count)
    # Strongest first, and the hardest of all at latent 3.
    top.activations[:, :, BEFORE] = -np.sort(-top.activations[:, :, BEFORE], axis=1)
    top.activations[3, 0, BEFORE] = 99.0
    bands = synthetic_windows(random, (latents, 6), count)
    density[7] = activation[7] = 0.0
    batch[:, 7] = 0.0
    for windows in (top, bands):
        windows.places[7] = -1
        windows.activations[7] = 0.0
    cosines = -np.sort(-random.random((latents, 5)), axis=1).astype(np.float32)
    effects = {
        "raised": random.integers(0, count, (latents, 5)),
        "raised_by": -np.sort(-random.gamma(3.0, 9.0, (latents, 5)), axis=1).astype(np.float32),
        "lowered": random.integers(0, count, (latents, 5)),
        "lowered_by": np.sort(-random.gamma(3.0, 9.0, (latents, 5)), axis=1).astype(np.float32),
    }
    report = LatentReport(
        LatentStatistics(density, activation, density * activation, density == 0),
        NearestLatents(random.integers(0, latents, (latents, 5)), cosines),
        TopActivations(top.peak, top.places),
        effects,
        places={},
        decode=str,
    )
    shown = display_tokens(tokens)
    words = [
        [Word(shown[(i + j) % count].strip() or "␣", 9 - j, 1.5) for j in range(6 * (i != 7))]
        for i in range(latents)
    ]
    histogram = HistogramCounter(latents)
    histogram.add(batch)
    return LatentFacts(
        report,
        histogram.result(),
        top,
        bands,
        3,
        (density > 0).astype(np.int64) * 40,
        words,
        dict(enumerate(tokens)),
        12345,
    )


METRICS = {
    "val/fvu": 0.10879,
    "val/ce_delta": 0.029524,
    "val_interval/ce_delta/low": 0.024641,
    "val_interval/ce_delta/high": 0.034962,
}
ABOUT = About("mini", "blocks.3.mlp.pre", "KSparseAutoencoder", METRICS)


@pytest.fixture(scope="session")
def facts() -> LatentFacts:
    return synthetic_facts()


@pytest.fixture(scope="session")
def make_facts() -> Callable[..., LatentFacts]:
    return synthetic_facts


@pytest.fixture(scope="session")
def about() -> About:
    return ABOUT


@pytest.fixture
def findings(tmp_path: Path) -> Path:
    """A folder of findings, as analyses write it, of 150 latents."""
    return write_findings(tmp_path / "analyses")


@pytest.fixture(scope="session")
def make_findings() -> Callable[..., Path]:
    return write_findings


def write_findings(
    folder: Path, latents: int = 150, part: str = "place", remark: str = "a note"
) -> Path:
    random = np.random.default_rng(1)
    score, auc, p = random.gamma(2.0, 1.0, latents), random.random(latents), random.random(latents)
    figure = Figure((3, 2))
    figure.subplots().plot([1, 2], [3, 4])
    figure.set_label(f"What it shows. {remark}")
    settings = {
        "analysis": "category_score",
        "units": "latents",
        "sites": ["blocks.3.mlp.pre"],
        "stimuli": "/home/somebody/secret/passage.yaml",
    }
    result = {part: CategoryScore(score, auc, p, notes=(remark,))}
    figures = {"score": figure}
    Findings("geography", result, figures, settings=settings, summary="- `x`").write(folder)
    return folder
