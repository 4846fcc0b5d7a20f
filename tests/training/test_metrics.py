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
from palinka.training.losses import Objective, StepContext, mse_l1_terms
from palinka.training.metrics import Evaluation, NaNDetector


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
def test_reconstruction_is_exact_under_any_split(
    rows: int, width: int, seed: int, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, rows), max_size=4)))
    offset = data.draw(st.sampled_from([0.0, 1.0, 1e4]))
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((rows, width)) + offset
    x_hat = x + 0.3 * generator.standard_normal((rows, width))
    x[0] = 0.0
    metrics = ReconstructionMetrics(width)
    for part, part_hat in zip(np.split(x, cuts), np.split(x_hat, cuts), strict=True):
        metrics.update(torch.from_numpy(part_hat), torch.from_numpy(part))
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


def test_data_without_variance_has_no_fvu() -> None:
    metrics = ReconstructionMetrics(2)
    metrics.update(torch.zeros(3, 2), torch.ones(3, 2))
    values = metrics.compute()
    assert math.isnan(values["fvu"])
    assert values["mse"] == 1.0


def test_the_legacy_variance_is_about_the_zero_of_raw_data() -> None:
    generator = np.random.default_rng(0)
    raw, raw_hat = generator.standard_normal((2, 20, 3)) + 2.0
    mean, scale = raw.mean(axis=0), 0.3
    metrics = ReconstructionMetrics(3)
    scaled, scaled_hat = (torch.from_numpy((x - mean) * scale) for x in (raw, raw_hat))
    metrics.update(scaled_hat, scaled, torch.from_numpy(-mean * scale))
    expected = ((raw - raw_hat) ** 2).sum() / (raw**2).sum()
    assert metrics.compute()["fvu_legacy"].item() == pytest.approx(expected, rel=1e-12)
    assert math.isnan(ReconstructionMetrics(3).compute()["fvu_legacy"].item())


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
        metrics.update(torch.from_numpy(part).float())
    actual = metrics.compute()
    fired = latents != 0
    assert actual["l0"].item() == pytest.approx(fired.sum() / rows, rel=1e-12)
    assert actual["l1"].item() == pytest.approx(np.abs(latents).sum() / rows, rel=1e-6)
    assert actual["dead"].item() == pytest.approx((~fired.any(axis=0)).mean(), rel=1e-12)
    np.testing.assert_allclose(actual["density"], fired.mean(axis=0), rtol=1e-12)


def test_the_parts_of_processes_merge() -> None:
    """What torchmetrics hands `compute` after it has gathered the states of processes."""
    torch.manual_seed(0)
    x = torch.randn(20, 3, dtype=torch.float64) + 5.0
    x_hat = x + torch.randn_like(x)
    whole, parts = ReconstructionMetrics(3), [ReconstructionMetrics(3) for _ in range(3)]
    whole.update(x_hat, x)
    # The third process got nothing.
    for part, rows in zip(parts, (slice(0, 7), slice(7, 20), slice(20, 20)), strict=True):
        part.update(x_hat[rows], x[rows])
    merged = ReconstructionMetrics(3)
    merged.update(x_hat[:0], x[:0])
    for name in ("rows", "mean", "squared_distance"):
        setattr(merged, name, torch.stack([getattr(part, name) for part in parts]))
    for name in ("squared_error", "squared_norm", "cosine_sum"):
        setattr(merged, name, torch.stack([getattr(part, name) for part in parts]).sum())
    torch.testing.assert_close(merged.compute(), whole.compute(), rtol=1e-12, atol=0)


def test_leading_dimensions_are_rows() -> None:
    torch.manual_seed(0)
    x, x_hat, latents = torch.randn(2, 3, 4), torch.randn(2, 3, 4), torch.randn(2, 3, 5).relu()
    nested, flat = ReconstructionMetrics(4), ReconstructionMetrics(4)
    nested.update(x_hat, x)
    flat.update(x_hat.reshape(6, 4), x.reshape(6, 4))
    assert nested.compute() == flat.compute()
    sparsity = SparsityMetrics(5)
    sparsity.update(latents)
    assert sparsity.compute()["l0"].item() == pytest.approx((latents > 0).sum().item() / 6)


def test_it_counts_tokens_since_the_last_firing() -> None:
    torch.manual_seed(0)
    clock = DeadLatentTracker(12)
    fired_at = [0] * 12
    tokens = 0
    for rows in (3, 1, 5, 4):
        latents = torch.randn(rows, 12) * (torch.rand(rows, 12) < 0.1)
        clock.update(latents)
        tokens += rows
        for latent in range(12):
            if latents[:, latent].any():
                fired_at[latent] = tokens
    assert clock.tokens_since.tolist() == [tokens - at for at in fired_at]
    dead = clock.dead(5)
    assert dead.tolist() == [tokens - at >= 5 for at in fired_at]
    assert 0 < dead.sum() < 12


def test_no_latent_is_dead_before_so_many_tokens_were_seen() -> None:
    clock = DeadLatentTracker(3)
    clock.update(torch.zeros(9, 3))
    assert not clock.dead(10).any()
    clock.update(torch.zeros(1, 3))
    assert clock.dead(10).all()


def test_firing_counts_are_part_of_the_state() -> None:
    clock = DeadLatentTracker(2)
    clock.update(torch.tensor([[0.0, 1.0], [0.0, -1.0]]))
    again = DeadLatentTracker(2)
    again.load_state_dict(clock.state_dict())
    assert again.tokens_since.tolist() == [2, 0]
    assert again.tokens_since.dtype == torch.int64
    assert again.bfloat16().tokens_since.dtype == torch.int64


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


def test_the_count_of_nan_batches_is_no_part_of_a_checkpoint() -> None:
    assert not NaNDetector().state_dict()


OBJECTIVE = Objective(2.0, 0.5, 7, 9)


def measured(sae: KSparseAutoencoder, batches: list[torch.Tensor]) -> dict[str, float]:
    evaluation = Evaluation(sae.input_dim, sae.latent_dim)
    for batch in batches:
        evaluation.update(batch, sae(batch), decorrelation=True)
    return {name: value.item() for name, value in evaluation.compute(OBJECTIVE).items()}


def test_everything_is_measured_with_the_full_weights() -> None:
    torch.manual_seed(0)
    sae, x = KSparseAutoencoder(5, 9, 3), torch.randn(20, 5)
    values = measured(sae, [x])
    losses = Objective(2.0, 0.5, 0, 0)(mse_l1_terms(sae(x), StepContext(x, x)), step=0)
    for name, loss in losses.named.items():
        assert values[f"loss/{name}"] == pytest.approx(loss.item(), rel=1e-5)
    assert values["loss/total"] == pytest.approx(losses.total.item(), rel=1e-5)
    assert values["loss/reconstruction"] == values["mse"]
    assert {"fvu", "explained_variance", "cosine", "l0", "l1", "dead"} < values.keys()


def test_all_but_the_decorrelation_is_the_same_under_any_split() -> None:
    torch.manual_seed(0)
    sae, x = KSparseAutoencoder(5, 9, 3), torch.randn(20, 5)
    whole, parts = measured(sae, [x]), measured(sae, [x[:13], x[13:19], x[19:]])
    penalties = [decorrelation_loss(sae.encode(part)).item() for part in (x[:13], x[13:19])]
    assert parts["loss/decorrelation"] == pytest.approx(
        0.5 * (12 * penalties[0] + 5 * penalties[1]) / 17, rel=1e-6
    )
    for name in whole.keys() - {"loss/decorrelation", "loss/total"}:
        assert parts[name] == pytest.approx(whole[name], rel=1e-6)


def test_a_process_that_gets_no_rows_of_a_batch_adds_nothing() -> None:
    torch.manual_seed(0)
    sae, x = KSparseAutoencoder(5, 9, 3), torch.randn(20, 5)
    assert measured(sae, [x, x[:0]]) == measured(sae, [x])


def test_forgetting() -> None:
    sae = KSparseAutoencoder(5)
    evaluation = Evaluation(5, 10)
    evaluation.update(torch.randn(8, 5) * 100, sae(torch.randn(8, 5)), decorrelation=True)
    evaluation.reset()
    x = torch.randn(8, 5)
    evaluation.update(x, sae(x), decorrelation=False)
    again = Evaluation(5, 10)
    again.update(x, sae(x), decorrelation=False)
    torch.testing.assert_close(evaluation.compute(OBJECTIVE), again.compute(OBJECTIVE))
    assert again.compute(OBJECTIVE)["loss/decorrelation"] == 0.0
