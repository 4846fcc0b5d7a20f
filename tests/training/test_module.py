import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.cli import ReduceLROnPlateau
from torch import Tensor

from palinka.autoencoders import KSparseAutoencoder, TopKAutoencoder
from palinka.autoencoders.topk import geometric_median
from palinka.errors import InputError
from palinka.training import SparseAutoencoderModule
from palinka.training.losses import StepContext, loss_terms
from palinka.training.module import FIRST_ROWS

MakeTrainer = Callable[..., Trainer]
NAMES = {
    "loss/total",
    "loss/reconstruction",
    "loss/sparsity",
    "loss/decorrelation",
    "reconstruction/mse",
    "reconstruction/fvu",
    "reconstruction/explained_variance",
    "reconstruction/cosine",
    "sparsity/l0",
    "sparsity/l1",
    "sparsity/dead",
}
MEASURED = {
    "fvu",
    "mse",
    "explained_variance",
    "cosine",
    "fvu_legacy",
    "l0",
    "l1",
    "dead",
    "loss/total",
    "loss/reconstruction",
    "loss/sparsity",
    "loss/decorrelation",
}


def transcription(weight: Tensor, x: Tensor, k: int, steps: int) -> list[float]:
    """The reference run as the spec's page says it, with nothing of the package in it."""
    weight = weight.clone().requires_grad_()
    adam = torch.optim.Adam([weight], lr=1e-4)
    curve = []
    for _ in range(steps):
        a = torch.relu(x @ weight.T)
        threshold = torch.sort(a, dim=1, descending=True).values[:, k - 1 : k]
        z = a * (a >= threshold)
        covariance = torch.cov(z.T)
        different = covariance - torch.diag(covariance.diagonal())
        loss = ((z @ weight - x) ** 2).mean() + z.abs().mean() + 5e-4 * (different**2).sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
        curve.append(loss.item())
    return curve


@pytest.mark.parametrize(
    ("rows", "width", "steps", "spread"),
    # The last has more rows than latents, where the covariance matrix is the smaller one.
    [(40, 24, 100, 1.0), (209, 192, 20, 3.0), (40, 15, 100, 1.0)],
)
def test_the_reference_run_is_the_transcription(
    rows: int, width: int, steps: int, spread: float, rows_data: Any, recorder: Any,
    make_trainer: MakeTrainer,
) -> None:  # fmt: skip
    torch.manual_seed(0)
    x = spread * torch.randn(rows, width)
    sae = KSparseAutoencoder(width, k=width // 3)
    expected = transcription(sae.encoder.weight.detach(), x, width // 3, steps)
    trainer = make_trainer(
        max_steps=steps, callbacks=[recorder], limit_val_batches=0, log_every_n_steps=50
    )
    trainer.fit(SparseAutoencoderModule(sae), rows_data(x))
    assert len(recorder.losses) == steps
    assert recorder.losses == pytest.approx(expected, rel=1e-5)
    assert recorder.losses[-1] < recorder.losses[0]


def test_everything_is_logged_under_its_name(
    rows: Tensor, rows_data: Any, recorder: Any, make_trainer: MakeTrainer
) -> None:
    module = SparseAutoencoderModule(KSparseAutoencoder(8), dead_after_tokens=1)
    first = copy.deepcopy(module.autoencoder)
    trainer = make_trainer(max_epochs=1, callbacks=[recorder])
    trainer.fit(module, rows_data(rows, batch_size=12))
    logged = recorder.logged[0]
    assert logged.keys() >= NAMES
    output = first(rows[:12])
    assert logged["loss/total"] == pytest.approx(recorder.losses[0])
    parts = ("loss/reconstruction", "loss/sparsity", "loss/decorrelation")
    assert sum(logged[name] for name in parts) == pytest.approx(recorder.losses[0])
    assert logged["reconstruction/mse"] == pytest.approx(
        (output.reconstruction - rows[:12]).square().mean().item()
    )
    assert logged["sparsity/l0"] == pytest.approx((output.latents > 0).sum().item() / 12)
    assert logged["sparsity/dead"] == pytest.approx(
        (~(output.latents > 0).any(dim=0)).float().mean().item()
    )
    assert trainer.callback_metrics.keys() >= {f"val/{name}" for name in MEASURED}
    trainer.test(module, rows_data(rows), verbose=False)
    assert trainer.callback_metrics.keys() == {f"test/{name}" for name in MEASURED}


def test_validation_is_exact_over_the_split(
    rows: Tensor, rows_data: Any, make_trainer: MakeTrainer
) -> None:
    module = SparseAutoencoderModule(KSparseAutoencoder(8, k=3))
    make_trainer().validate(module, rows_data(rows + 1.0), verbose=False)
    values = []
    for size in (24, 7):
        trainer = make_trainer()
        trainer.validate(module, rows_data(rows, batch_size=size), verbose=False)
        values.append({k: float(v) for k, v in trainer.callback_metrics.items()})
    reconstruction = module(rows).reconstruction
    fvu = (reconstruction - rows).square().sum() / (rows - rows.mean(dim=0)).square().sum()
    assert values[0]["val/fvu"] == pytest.approx(fvu.item(), rel=1e-5)
    for name in values[0].keys() - {"val/loss/total", "val/loss/decorrelation"}:
        assert values[0][name] == pytest.approx(values[1][name], rel=1e-6)


def test_little_is_done_on_steps_that_are_not_logged(
    rows: Tensor, rows_data: Any, recorder: Any, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer(
        max_epochs=2, log_every_n_steps=4, callbacks=[recorder], limit_val_batches=0
    )
    trainer.fit(SparseAutoencoderModule(KSparseAutoencoder(8)), rows_data(rows, batch_size=4))
    with_loss = [i for i, logged in enumerate(recorder.logged) if "loss/total" in logged]
    assert with_loss[0] == 3
    totals = [logged.get("loss/total") for logged in recorder.logged]
    assert totals[3] == pytest.approx(recorder.losses[3])
    assert totals[7] == totals[8] == pytest.approx(recorder.losses[7])


def test_penalties_warm_up_with_the_optimizer_steps(
    rows: Tensor, rows_data: Any, recorder: Any, make_trainer: MakeTrainer
) -> None:
    module = SparseAutoencoderModule(
        KSparseAutoencoder(8), sparsity_warmup_steps=2, optimizer=lambda p: torch.optim.SGD(p, lr=0)
    )
    trainer = make_trainer(
        max_epochs=6, accumulate_grad_batches=1, callbacks=[recorder], limit_val_batches=0
    )
    trainer.fit(module, rows_data(rows))
    sparsity = [logged["loss/sparsity"] for logged in recorder.logged]
    assert sparsity[0] == 0.0
    assert sparsity[1] == pytest.approx(sparsity[2] / 2)
    assert sparsity[2] == sparsity[5]


def test_half_precision_activations_are_trained_in_single(
    rows: Tensor, rows_data: Any, recorder: Any, make_trainer: MakeTrainer
) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        module = SparseAutoencoderModule(KSparseAutoencoder(8))
        expected = module(rows.to(dtype).float()).reconstruction
        actual = module(rows.to(dtype)).reconstruction
        assert torch.equal(actual, expected)
        trainer = make_trainer(max_epochs=1, callbacks=[recorder])
        trainer.fit(module, rows_data(rows.to(dtype)))
        assert module.autoencoder.encoder.weight.dtype == torch.float32


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_other_precisions(
    precision: str, rows: Tensor, rows_data: Any, recorder: Any, make_trainer: MakeTrainer
) -> None:
    module = SparseAutoencoderModule(KSparseAutoencoder(8))
    expected = copy.deepcopy(module)
    trainer = make_trainer(max_epochs=2, precision=precision, callbacks=[recorder])
    trainer.fit(module, rows_data(rows.half()))
    x = rows.half().float()
    losses = expected.objective(loss_terms(expected.autoencoder, StepContext(x, x)), step=0)
    assert recorder.losses[0] == pytest.approx(losses.total.item(), rel=0.02)
    assert module.firing.tokens_since.dtype == torch.int64


def test_the_scaling_of_the_training_data_is_taken(
    rows: Tensor, rows_data: Any, statistics: Any, recorder: Any, make_trainer: MakeTrainer
) -> None:
    mean = np.linspace(1, 2, 8)
    module = SparseAutoencoderModule(KSparseAutoencoder(8))
    scaled = (rows - torch.from_numpy(mean).float()) * 0.5
    expected = module.objective(
        loss_terms(module.autoencoder, StepContext(scaled, scaled)), step=0
    ).total.item()
    data = rows_data(rows, input_statistics=statistics(mean, 0.5))
    trainer = make_trainer(max_epochs=1, callbacks=[recorder], limit_val_batches=0)
    trainer.fit(module, data)
    assert recorder.losses[0] == pytest.approx(expected, rel=1e-6)
    output = module(rows)
    raw = module.autoencoder(scaled).reconstruction / 0.5 + torch.from_numpy(mean).float()
    torch.testing.assert_close(output.reconstruction, raw)
    torch.testing.assert_close(module.decode(module.encode(rows)), output.reconstruction)
    (latents,) = make_trainer().predict(module, data)
    torch.testing.assert_close(latents, output.latents)


def test_a_new_autoencoder_begins_from_the_data_once(
    rows: Tensor, rows_data: Any, statistics: Any, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    asked = []

    def training_rows(count: int) -> Tensor:
        asked.append(count)
        return rows.half()

    said = {"training_rows": training_rows, "input_statistics": statistics(np.ones(8), 0.5)}
    sae = TopKAutoencoder(8)
    module = SparseAutoencoderModule(sae, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    make_trainer(max_epochs=1).fit(module, rows_data(rows, **said))
    assert asked == [FIRST_ROWS]
    first = geometric_median((rows.half().float() - 1.0) * 0.5)
    torch.testing.assert_close(sae.decoder_bias.detach(), first)
    # No longer new: what has been trained, or was saved, or begins otherwise.
    sae.save_pretrained(tmp_path)
    for autoencoder in (sae, TopKAutoencoder.from_pretrained(tmp_path), KSparseAutoencoder(8)):
        again = SparseAutoencoderModule(autoencoder)
        make_trainer(max_epochs=1).fit(again, rows_data(rows, **said))
        assert autoencoder.training
    assert asked == [FIRST_ROWS]


def test_rows_keep_unit_norm_and_gradients_stay_tangent(
    rows: Tensor, rows_data: Any, make_trainer: MakeTrainer
) -> None:
    for tied in (True, False):
        sae = KSparseAutoencoder(8, tied=tied, unit_norm=True)
        before = sae.dictionary.detach().clone()
        module = SparseAutoencoderModule(sae, optimizer=lambda p: torch.optim.SGD(p, lr=0.5))
        expected = before.clone()

        loss = module.objective(loss_terms(sae, StepContext(rows, rows)), step=0).total
        (gradient,) = torch.autograd.grad(loss, sae.dictionary)
        gradient -= (gradient * before).sum(dim=1, keepdim=True) * before
        expected = torch.nn.functional.normalize(before - 0.5 * gradient, dim=1)
        make_trainer(max_steps=1, limit_val_batches=0).fit(module, rows_data(rows))
        torch.testing.assert_close(sae.dictionary.detach(), expected)
        assert not torch.equal(sae.dictionary.detach(), before)


def test_a_schedule_goes_by_steps(rows: Tensor, rows_data: Any, make_trainer: MakeTrainer) -> None:
    module = SparseAutoencoderModule(
        KSparseAutoencoder(8),
        optimizer=lambda p: torch.optim.SGD(p, lr=1.0),
        lr_scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, step_size=1, gamma=0.5),
    )
    trainer = make_trainer(max_epochs=1, limit_val_batches=0)
    trainer.fit(module, rows_data(rows, batch_size=8))
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.125


def test_a_plateau_is_watched_by_its_name(
    rows: Tensor, rows_data: Any, make_trainer: MakeTrainer
) -> None:
    module = SparseAutoencoderModule(
        KSparseAutoencoder(8),
        lr_scheduler=lambda o: ReduceLROnPlateau(o, monitor="val/fvu", patience=0, threshold=1e9),
    )
    trainer = make_trainer(max_epochs=4)
    trainer.fit(module, rows_data(rows))
    assert trainer.optimizers[0].param_groups[0]["lr"] < 1e-4


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("every", [1, 50])
def test_activations_that_are_no_numbers_end_training(
    value: float, every: int, rows: Tensor, rows_data: Any, make_trainer: MakeTrainer
) -> None:
    rows[13, 2] = value
    module = SparseAutoencoderModule(KSparseAutoencoder(8))
    trainer = make_trainer(max_epochs=3, log_every_n_steps=every, limit_val_batches=0)
    with pytest.raises(InputError, match="1 batches of activations hold NaN or Inf"):
        trainer.fit(module, rows_data(rows, batch_size=6))
    with pytest.raises(InputError, match="NaN or Inf"):
        make_trainer().validate(module, rows_data(rows), verbose=False)
    with pytest.raises(InputError, match="NaN or Inf"):
        make_trainer().predict(SparseAutoencoderModule(KSparseAutoencoder(8)), rows_data(rows))


def test_divergence_is_not_blamed_on_the_data(
    rows: Tensor, rows_data: Any, make_trainer: MakeTrainer
) -> None:
    module = SparseAutoencoderModule(
        KSparseAutoencoder(8), optimizer=lambda p: torch.optim.SGD(p, lr=1e30)
    )
    with pytest.raises(InputError, match="training diverged"):
        make_trainer(max_epochs=5).fit(module, rows_data(rows))


def test_another_width_is_named(rows: Tensor, rows_data: Any, make_trainer: MakeTrainer) -> None:
    module = SparseAutoencoderModule(KSparseAutoencoder(9))
    with pytest.raises(InputError, match=r"activations of shape \(24, 8\).*must be 9"):
        make_trainer(max_epochs=1).fit(module, rows_data(rows))


@pytest.mark.parametrize(
    "arguments",
    [
        {"sparsity_weight": -1.0},
        {"decorrelation_weight": float("nan")},
        {"sparsity_warmup_steps": -1},
        {"dead_after_tokens": 0},
    ],
)
def test_arguments_that_cannot_be(arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(arguments))} must be"):
        SparseAutoencoderModule(KSparseAutoencoder(8), **arguments)
