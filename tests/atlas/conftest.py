from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from palinka.analyses import ablation, head_scores, lesion, steering
from palinka.analyses.category_score import CategoryScore
from palinka.analyses.findings import Findings
from palinka.analyses.latent_statistics import LatentStatistics
from palinka.analyses.stats.latents import HistogramCounter, NearestLatents, TopActivations
from palinka.atlas.against import Against, match
from palinka.atlas.facts import LatentFacts
from palinka.atlas.site import About
from palinka.atlas.text import AFTER, BEFORE, TokenCounter, Windows
from palinka.training.callbacks.latent_report import LatentReport

ORDINARY = [f" word{i}".encode() for i in range(40)] + [b"\n", b" ", b",", b".", b"s"]


def synthetic_windows(random: np.random.Generator, latents: int, n: int, tokens: int) -> Windows:
    """Windows of made-up text; latent 7 is dead, and latent 3 fires hardest."""
    shape = (latents, n, BEFORE + 1 + AFTER)
    activations = random.gamma(2.0, 1.0, shape) * (random.random(shape) < 0.2)
    peaks = random.gamma(2.0, 1.0, shape[:2]) + 0.1
    activations[:, :, BEFORE] = -np.sort(-peaks, axis=1)
    activations[3, 0, BEFORE] = 99.0
    ids = random.integers(0, tokens, shape, dtype=np.int32)
    ids[:, 0, :3] = -1  # the beginning of a context
    places, documents, positions = random.integers(0, 99, (3, latents, n))
    activations[7], places[7] = 0.0, -1
    return Windows(places, ids, activations.astype(np.float32), documents, positions)


def synthetic_facts(
    latents: int = 150, vocabulary: list[bytes] | None = None, against: bool = False
) -> LatentFacts:
    """Facts of made-up latents; latent 7 is dead, latent 3 fires hardest, latent 5 on token 17."""
    random = np.random.default_rng(0)
    tokens = ORDINARY if vocabulary is None else vocabulary
    count = len(tokens)
    density = np.exp(random.normal(-1, 1.5, latents)).clip(1e-3, 90)
    activation = random.gamma(3.0, 0.2, latents)
    batch = random.gamma(2.0, 1.0, (40, latents)) * (random.random((40, latents)) < 0.5)
    density[7] = activation[7] = batch[:, 7] = 0.0
    top, bands = (synthetic_windows(random, latents, n, count) for n in (4, 6))
    raised, lowered = random.integers(0, count, (2, latents, 5))
    by = -np.sort(-random.gamma(3.0, 9.0, (latents, 5)), axis=1).astype(np.float32)
    cosines = -np.sort(-random.random((latents, 5)), axis=1).astype(np.float32)
    report = LatentReport(
        LatentStatistics(density, activation, density * activation, density == 0),
        NearestLatents(random.integers(0, latents, (latents, 5)), cosines),
        TopActivations(top.peak, top.places),
        {"raised": raised, "raised_by": by, "lowered": lowered, "lowered_by": -by},
        places={},
        decode=str,
    )
    counter = TokenCounter(np.arange(40) % count, latents)
    batch[17 % count, 5] = 50.0
    counter.add(batch.astype(np.float32))
    activations = counter.result()
    directions = random.standard_normal((latents, 8)).astype(np.float32)
    order = random.permutation(latents)
    other = None
    if against:
        matches = match(directions, directions[order], np.eye(8))
        other = Against("other.ckpt", matches, activations, density[order])
    histogram = HistogramCounter(latents)
    histogram.add(batch.astype(np.float32))
    return LatentFacts(
        report, histogram.result(), top, bands, 3, dict(enumerate(tokens)), 12345,
        activations, np.linalg.norm(directions, axis=1), 20.0, other,
    )  # fmt: skip


@pytest.fixture(scope="session")
def about() -> About:
    metrics = {
        "val/fvu": 0.10879,
        "val/ce_delta": 0.029524,
        "val_interval/ce_delta/low": 0.024641,
        "val_interval/ce_delta/high": 0.034962,
        "val_interval/documents": 32.0,
    }
    return About("mini", "blocks.3.mlp.pre", "KSparseAutoencoder", metrics)


@pytest.fixture(scope="session")
def facts() -> LatentFacts:
    return synthetic_facts()


@pytest.fixture(scope="session")
def make_facts() -> Callable[..., LatentFacts]:
    return synthetic_facts


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
    score, auc, p = random.gamma(2.0, 1.0, latents), *random.random((2, latents))
    figure = Figure((3, 2))
    figure.subplots().plot([1, 2], [3, 4])
    figure.set_label(f"What it shows. {remark}")
    settings = {
        "analysis": "category_score", "units": "latents", "sites": ["blocks.3.mlp.pre"],
        "stimuli": "/home/somebody/secret/passage.yaml",
    }  # fmt: skip
    result = {part: CategoryScore(score, auc, p, notes=(remark,))}
    Findings("geography", result, {"score": figure}, {}, settings, "- `x`").write(folder)
    return folder


@pytest.fixture(scope="session")
def make_interventions() -> Callable[..., dict[str, Any]]:
    return write_interventions


def write_interventions(folder: Path) -> dict[str, Any]:
    """Write findings of interventions on latents 3 and 5, and of six heads; return the results."""
    random, zeros = np.random.default_rng(2), np.zeros(8)
    alphas = np.array([-0.2, -0.1, 0.0, 0.1, 0.2])
    pushes = alphas[:, None] * np.array([[[6.0]], [[0.1]]]) + 0.01 * random.random((2, 5, 8))
    controls = {"isotropic": alphas[:, None] * random.normal(size=(9, 1, 8))}
    kl = np.stack([40 * alphas**2, alphas**2])  # the second never reaches 0.1 nats
    axes = {"latents": {"value": ["zero", "mean"], "latent": [3, 5]}}
    sums = {name: random.random((2, 3, 8)) for name in ("previous_token", "entropy", "induction")}
    ones = dict.fromkeys(sums, np.ones(8))
    found = {
        "ablation": ablation({"latents": random.normal(size=(2, 2, 8))}, zeros, axes=axes),
        "head_scores": head_scores(sums, ones, {name: 0.1 * ones[name] for name in sums}),
        "lesion": lesion(random.normal(size=(1, 1, 10, 8)), zeros, units=[[5, 9]]),
        "steering": steering(pushes, zeros, alphas, controls, kl, {"isotropic": kl[:1]},
                             directions=["latent_3", "latent_5"]),
    }  # fmt: skip
    for kind, result in found.items():
        settings = {
            "analysis": kind, "units": "latents", "sites": ["blocks.3.mlp.pre"], "options": {},
            "intervention": {}, "outcomes": ["logit_difference"],
        }  # fmt: skip
        Findings(f"my_{kind}", {"": result}, {}, {}, settings).write(folder)
    return found
