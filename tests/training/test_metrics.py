import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from palinka.autoencoders import KSparseAutoencoder
from palinka.errors import InputError
from palinka.training import (
    DeadLatentTracker,
    ReconstructionMetrics,
    SparsityMetrics,
    decorrelation_loss,
)
from palinka.training.losses import Objective, StepContext, loss_terms
from palinka.training.metrics import Evaluation, NaNDetector

OBJECTIVE = Objective(2.0, 0.5, 7, 9)


def closed_form(x: np.ndarray, x_hat: np.ndarray) -> dict[str, float]:
    """The spec's table, on all data at once."""
    residual = ((x - x_hat) ** 2).sum()
    cosines = [
        0.0 if not a.any() or not b.any() else a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
        for a, b in zip(x, x_hat, strict=True)
    ]
    fvu = residual / ((x - x.mean(axis=0)) ** 2).sum()
    return {
        "mse": residual / x.size,
        "fvu": fvu,
        "explained_variance": 1 - fvu,
        "fvu_legacy": residual / (x**2).sum(),
        "cosine": float(np.mean(cosines)),
    }


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 30), st.integers(1, 5), st.integers(0, 10_000), st.data())
def test_reconstruction_is_exact_under_any_split_into_batches_and_processes(
    rows: int, width: int, seed: int, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, rows), max_size=4)))
    offset = data.draw(st.sampled_from([0.0, 1.0, 1e4]))
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((rows, width)) + offset
    x_hat = x + 0.3 * generator.standard_normal((rows, width))
    x[0] = 0.0
    batches, merged = ReconstructionMetrics(width), ReconstructionMetrics(width)
    processes = []
    for part, part_hat in zip(np.split(x, cuts), np.split(x_hat, cuts), strict=True):
        batches.update(torch.from_numpy(part_hat), torch.from_numpy(part))
        processes.append(ReconstructionMetrics(width))
        processes[-1].update(torch.from_numpy(part_hat)[None], torch.from_numpy(part)[None])
    merged.update(torch.zeros(0, width), torch.zeros(0, width))
    # As torchmetrics hands them to `compute`.
    merged.sums = torch.stack([process.sums for process in processes]).sum(dim=0)
    merged.moments = torch.stack([process.moments for process in processes])
    for metrics in (batches, merged):
        actual = {name: value.item() for name, value in metrics.compute().items()}
        assert actual == pytest.approx(closed_form(x, x_hat), rel=1e-11, abs=1e-11)


def test_float32_data_with_a_large_mean_costs_no_digits() -> None:
    torch.manual_seed(0)
    x = torch.randn(1000, 3) + 3000.0
    x_hat = x + 0.1
    metrics = ReconstructionMetrics(3)
    for part, part_hat in zip(x.split(70), x_hat.split(70), strict=True):
        metrics.update(part_hat, part)
    expected = closed_form(x.double().numpy(), x_hat.double().numpy())
    assert metrics.compute()["fvu"].item() == pytest.approx(expected["fvu"], rel=1e-10)


def test_the_legacy_variance_is_about_the_zero_of_raw_data() -> None:
    generator = np.random.default_rng(0)
    raw, raw_hat = generator.standard_normal((2, 20, 3)) + 2.0
    mean, scale = raw.mean(axis=0), 0.3
    metrics = ReconstructionMetrics(3)
    scaled, scaled_hat = (torch.from_numpy((x - mean) * scale) for x in (raw, raw_hat))
    metrics.update(scaled_hat, scaled, torch.from_numpy(-mean * scale))
    expected = ((raw - raw_hat) ** 2).sum() / (raw**2).sum()
    assert metrics.compute()["fvu_legacy"].item() == pytest.approx(expected, rel=1e-12)
    metrics.reset()
    metrics.update(torch.ones(3, 3), torch.zeros(3, 3))  # without any variance
    values = metrics.compute()
    assert math.isnan(values["fvu"])
    assert math.isnan(values["fvu_legacy"])
    assert values["mse"] == 1.0


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(1, 6), st.integers(0, 10_000), st.data())
def test_sparsity_is_exact_under_any_split(
    rows: int, width: int, seed: int, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, rows), max_size=3)))
    generator = np.random.default_rng(seed)
    latents = generator.standard_normal((rows, width)) * (generator.random((rows, width)) < 0.3)
    latents[:, 0] = 0.0
    metrics = SparsityMetrics(width)
    for part in np.split(latents, cuts):
        metrics.update(torch.from_numpy(part).float()[None])
    actual, fired = metrics.compute(), latents != 0
    assert actual["l0"].item() == pytest.approx(fired.sum() / rows, rel=1e-12)
    assert actual["l1"].item() == pytest.approx(np.abs(latents).sum() / rows, rel=1e-6)
    assert actual["dead"].item() == pytest.approx((~fired.any(axis=0)).mean(), rel=1e-12)
    np.testing.assert_allclose(actual["density"], fired.mean(axis=0), rtol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(0, 1000))
def test_it_counts_tokens_since_the_last_firing(batches: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    clock, fired_at, tokens = DeadLatentTracker(12), [0] * 12, 0
    for rows in batches:
        latents = torch.randn(rows, 12) * (torch.rand(rows, 12) < 0.1)
        clock.update(latents)
        tokens += rows
        fired_at = [tokens if latents[:, i].any() else at for i, at in enumerate(fired_at)]
    assert clock.tokens_since.tolist() == [tokens - at for at in fired_at]
    for after in (5, tokens, tokens + 1):
        assert clock.dead(after).tolist() == [tokens - at >= after for at in fired_at]
    again = DeadLatentTracker(12)
    again.load_state_dict(clock.state_dict())
    assert torch.equal(again.bfloat16().tokens_since, clock.tokens_since)


def test_batches_with_one_bad_number_are_counted() -> None:
    detector = NaNDetector()
    detector.update(torch.full((4, 4), 6e4))
    detector.check()
    for value in (float("nan"), float("inf"), -float("inf")):
        batch = torch.zeros(4, 4)
        batch[1, 2] = value
        detector.update(batch)
    with pytest.raises(InputError, match="3 batches of activations hold NaN or Inf"):
        detector.check()
    assert not detector.state_dict()  # not part of a checkpoint


def measured(evaluation: Evaluation, *batches: torch.Tensor, **options: bool) -> dict[str, float]:
    evaluation.reset()
    for batch in batches:
        evaluation.update(batch, SAE(batch), **{"decorrelation": True, **options})
    return {name: value.item() for name, value in evaluation.compute(OBJECTIVE).items()}


SAE = KSparseAutoencoder(5, 9, 3)


def test_everything_is_measured_with_the_full_weights() -> None:
    x = torch.randn(20, 5)
    values = measured(Evaluation(5, 9), x)
    losses = Objective(2.0, 0.5)(loss_terms(SAE, StepContext(x, x)), step=0)
    for name, loss in {**losses, "total": losses.total}.items():
        assert values[f"loss/{name}"] == pytest.approx(loss.item(), rel=1e-5)
    assert values["loss/reconstruction"] == values["mse"]
    assert {"fvu", "explained_variance", "cosine", "l0", "l1", "dead"} < values.keys()


def test_all_but_the_decorrelation_is_the_same_under_any_split() -> None:
    x, evaluation = torch.randn(20, 5), Evaluation(5, 9)
    whole, parts = measured(evaluation, x), measured(evaluation, x[:13], x[13:19], x[19:])
    penalties = [decorrelation_loss(SAE.encode(part)).item() for part in (x[:13], x[13:19])]
    assert parts["loss/decorrelation"] == pytest.approx(
        0.5 * (12 * penalties[0] + 5 * penalties[1]) / 17, rel=1e-6
    )
    for name in whole.keys() - {"loss/decorrelation", "loss/total"}:
        assert parts[name] == pytest.approx(whole[name], rel=1e-6)
    # A process that gets no rows of a batch adds nothing, and a reset forgets.
    assert measured(evaluation, x, x[:0]) == measured(evaluation, x)
    assert measured(evaluation, x) == measured(Evaluation(5, 9), x) == whole
    assert measured(evaluation, x, decorrelation=False)["loss/decorrelation"] == 0.0
