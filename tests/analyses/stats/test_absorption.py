"""Absorption against a plain transcription, and the latents of a concept."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from palinka.analyses.stats.absorption import absorption, balanced_probe, l1_weights, main_latents


def plain(x: Any, z: Any, decoder: Any, u: Any, main: list[int]) -> tuple[float, bool]:
    """One word after the calculator of SAEBench, with rows of norm 1."""
    u, norms = u / np.linalg.norm(u), np.linalg.norm(decoder, axis=1)
    z, cosines = z * norms, decoder @ u / norms
    a, parts = x @ u, z * cosines
    total = sum(parts[j] for j in main)
    others = [
        parts[j] for j in range(len(z)) if j not in main and cosines[j] >= 0.1 and parts[j] > 0
    ]
    top = sum(sorted(others)[-3:])
    if total >= a or top / a < 0.4:
        fraction = 0.0
    elif total <= 0:
        fraction = 1.0
    else:
        q = min(top, a - total)
        fraction = q / (q + total)
    first = int(np.argmax(parts))
    full = all(abs(z[j]) < 1e-8 for j in main) and cosines[first] >= 0.025 and a >= 0
    return fraction, full and parts[first] / a >= 0.4


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_absorption_is_that_of_a_plain_transcription(seed: int, count: int) -> None:
    random = np.random.default_rng(seed)
    decoder, u = random.normal(size=(12, 6)) * random.lognormal(size=(12, 1)), random.normal(size=6)
    z = np.maximum(random.normal(size=(40, 12)), 0.0) * (random.random((40, 12)) < 0.4)
    x = z @ decoder + 0.3 * random.normal(size=(40, 6))
    main = random.choice(12, count, replace=False).tolist()
    found = absorption(x, z, decoder, u, main)
    expected = [plain(*word, decoder, u, main) for word in zip(x, z, strict=True)]
    np.testing.assert_allclose(found.fraction, [one[0] for one in expected], rtol=1e-9)
    assert found.full.tolist() == [one[1] for one in expected]


def test_absorption_is_that_of_saebench(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "sae_bench.evals.absorption.feature_absorption_calculator"
    peer = pytest.importorskip(name).FeatureAbsorptionCalculator
    torch, random = pytest.importorskip("torch"), np.random.default_rng(0)
    decoder, u = random.normal(size=(24, 6)), random.normal(size=6)
    decoder /= np.linalg.norm(decoder, axis=1, keepdims=True)
    z = np.maximum(random.normal(size=(300, 24)), 0.0) * (random.random((300, 24)) < 0.3)
    x = z @ decoder + 0.2 * random.normal(size=(300, 6))
    x, z = x[x @ u > 0], z[x @ u > 0]  # what a probe finds
    rows, latents = iter(torch.from_numpy(x).split(10)), iter(torch.from_numpy(z).split(10))
    model = SimpleNamespace(
        run_with_cache=lambda *_, **__: (None, {"blocks.0.hook_resid_post": next(rows)[:, None]})
    )
    sae = SimpleNamespace(
        device="cpu", W_dec=torch.from_numpy(decoder), encode=lambda _: next(latents)
    )
    prompts = [SimpleNamespace(base="", word=str(at)) for at in range(len(x))]
    monkeypatch.setattr(peer, "_build_prompts", lambda *_: prompts)
    monkeypatch.setattr(peer, "_validate_prompts_are_same_length", lambda *_: None)
    given = ([], torch.from_numpy(u), [3, 8], 0, False)
    words = peer(model, [], word_token_pos=0).calculate_absorption(sae, *given).word_results
    found = absorption(x, z, decoder, u, [3, 8])
    fractions = [one.absorption_fraction for one in words]
    np.testing.assert_allclose(found.fraction, fractions, atol=1e-6)
    assert found.full.tolist() == [one.is_full_absorption for one in words]
    assert found.full.any()
    assert 0 < np.mean(found.fraction > 0) < 1


def test_probes_are_those_of_scikit_learn_and_optimal() -> None:
    random = np.random.default_rng(0)
    x = np.maximum(random.normal(size=(300, 8)), 0.0)
    y = np.stack([x[:, 0] + 0.3 * random.normal(size=300) > 1.5, x[:, 1] - x[:, 2] > 0.5], axis=1)
    found = l1_weights(x, y, steps=5000)
    for labels, w in zip(y.T, found.T, strict=True):
        own = balanced_probe(x, labels)
        peer = LogisticRegression(class_weight="balanced", tol=1e-8).fit(x / x.std(axis=0), labels)
        np.testing.assert_allclose(own[:-1] * x.std(axis=0), peer.coef_[0], rtol=1e-4)
        weight = np.where(labels, (~labels).sum() / labels.sum(), 1.0) / 300
        penalty = 0.01 * np.abs(x.T @ (weight * (labels - 0.5))).max()
        pull = weight * (expit(x @ w[:-1] + w[-1]) - labels)
        slope = (x.T @ pull) / penalty
        active = w[:-1] != 0
        np.testing.assert_allclose(slope[active], -np.sign(w[:-1][active]), atol=1e-3)
        assert (np.abs(slope) < 1 + 1e-3).all()
        assert 0 < active.sum() < 8
        assert abs(pull.sum()) < 1e-3 * penalty


def test_a_split_concept_has_several_main_latents() -> None:
    random = np.random.default_rng(1)
    labels = np.zeros((800, 2), bool)
    labels[:100, 0], labels[100:200, 1] = True, True
    z = random.lognormal(size=(800, 30)) * (random.random((800, 30)) < 0.1)
    z[:, [4, 7, 9]] = 0.0
    z[:100, 4], z[100:150, 7], z[150:200, 9] = 2.0, 2.0, 2.0
    half = random.random(800) < 0.5
    first, second = main_latents(z[half], labels[half], z[~half], labels[~half])
    assert (first.tolist(), sorted(second.tolist())) == ([4], [7, 9])
