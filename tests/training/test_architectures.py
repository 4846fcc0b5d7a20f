"""Every architecture in the Lightning module: trained, measured, saved, resumed and loaded."""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from torch import Tensor

from palinka import autoencoders
from palinka.autoencoders import (
    Autoencoder,
    BatchTopKAutoencoder,
    GatedAutoencoder,
    JumpReLUAutoencoder,
    KSparseAutoencoder,
    MatryoshkaAutoencoder,
    ReLUAutoencoder,
    TopKAutoencoder,
    linear,
)
from palinka.cli.configs import config_folder
from palinka.training import SparseAutoencoderModule, module
from palinka.training.losses import Objective, StepContext, loss_terms

MakeTrainer = Callable[..., Trainer]
Make = Callable[[], Autoencoder]
TOPK = (TopKAutoencoder, BatchTopKAutoencoder, MatryoshkaAutoencoder)
ALL = (KSparseAutoencoder, ReLUAutoencoder, GatedAutoencoder, JumpReLUAutoencoder, *TOPK)


def adam(lr: float) -> Callable[..., torch.optim.Optimizer]:
    return lambda parameters: torch.optim.Adam(parameters, lr=lr)


@pytest.mark.parametrize("config", sorted((config_folder() / "architectures").glob("*.yaml")))
def test_weights_default_to_those_of_the_architectures_configuration(config: Path) -> None:
    written = yaml.safe_load(config.read_text())
    given = written["model"]["autoencoder"]
    widths = {"input_dim": 8} | ({"output_dim": 8} if "target_site" in written["data"] else {})
    sae = getattr(autoencoders, given["class_path"])(**widths, **given["init_args"])
    trained = SparseAutoencoderModule(sae)
    for name in ("sparsity_weight", "decorrelation_weight"):
        assert trained.hparams[name] == getattr(trained.objective, name) == written["model"][name]


def test_given_weights_win_and_those_of_k_sparse_and_of_new_classes_stay() -> None:
    class Own(KSparseAutoencoder):
        pass

    class OwnTopK(TopKAutoencoder):
        pass

    def weights(sae: Autoencoder, **given: float) -> tuple[float, float]:
        objective = SparseAutoencoderModule(sae, **given).objective
        return objective.sparsity_weight, objective.decorrelation_weight

    assert weights(KSparseAutoencoder(8)) == weights(Own(8)) == (1.0, 5e-4)
    assert weights(OwnTopK(8)) == (0.0, 0.0)
    assert weights(KSparseAutoencoder(8), sparsity_weight=0.0) == (0.0, 5e-4)
    assert weights(ReLUAutoencoder(8, output_dim=4), decorrelation_weight=0.5) == (4e-4, 0.5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ReLUAutoencoder(8),
        lambda: ReLUAutoencoder(8, unit_norm=True),
        lambda: KSparseAutoencoder(8, unit_norm=True),
        lambda: GatedAutoencoder(8),
        lambda: JumpReLUAutoencoder(8, bandwidth=0.5, initial_threshold=0.5),
        lambda: JumpReLUAutoencoder(8, bandwidth=0.5, sparsity="tanh"),
    ],
)
def test_a_run_is_a_plain_loop_over_the_terms(
    make: Make, rows: Tensor, rows_data: Any, recorder: Any, make_trainer: MakeTrainer,
    tmp_path: Path,
) -> None:  # fmt: skip
    torch.manual_seed(0)
    sae, plain = make(), make()
    plain.load_state_dict(sae.state_dict())
    weights = {"sparsity_weight": 0.1, "decorrelation_weight": 0.01, "sparsity_warmup_steps": 3}
    trainer = make_trainer(max_steps=6, max_epochs=-1, callbacks=[recorder], limit_val_batches=0)
    trained = SparseAutoencoderModule(sae, **weights)
    trainer.fit(trained, rows_data(rows, batch_size=12))

    optimizer, expected = adam(1e-4)(plain.parameters()), []
    for i in range(6):
        x = rows[12 * (i % 2) :][:12]
        loss = Objective(**weights)(loss_terms(plain, StepContext(x, x)), i).total
        optimizer.zero_grad()
        loss.backward()
        if plain.unit_norm:
            gradient, w = plain.dictionary.grad, plain.dictionary.detach()
            gradient -= (gradient * w).sum(dim=1, keepdim=True) * w
        optimizer.step()
        if plain.unit_norm:
            plain.dictionary.data /= plain.dictionary.data.norm(dim=1, keepdim=True)
        expected.append(loss.item())
    assert recorder.losses == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(dict(sae.state_dict()), dict(plain.state_dict()))

    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = SparseAutoencoderModule.load_from_checkpoint(tmp_path / "last.ckpt")
    assert type(loaded.autoencoder) is type(sae)
    assert loaded.autoencoder.config() == sae.config()
    assert torch.equal(loaded.encode(rows), trained.encode(rows))
    assert torch.equal(loaded.firing.tokens_since, trained.firing.tokens_since)


@pytest.mark.parametrize("kind", TOPK)
def test_dead_latents_are_taught_and_a_resumed_run_is_the_run_that_was_never_stopped(
    kind: Any, rows: Tensor, rows_data: Any, recorder: Any, make_trainer: MakeTrainer,
    tmp_path: Path,
) -> None:  # fmt: skip
    def made() -> SparseAutoencoderModule:
        torch.manual_seed(0)
        weights = {"sparsity_weight": 0.0, "decorrelation_weight": 0.01}
        options = {**weights, "dead_after_tokens": 30, "optimizer": adam(0.02)}
        return SparseAutoencoderModule(kind(8, 40, 2), **options)

    whole, middle, last = made(), tmp_path / "middle.ckpt", tmp_path / "end.ckpt"
    data = rows_data(rows, batch_size=8, training_rows=lambda count: rows[:count] + 1.0)
    trainer = make_trainer(max_epochs=9, callbacks=[recorder])
    trainer.fit(whole, data)
    trainer.save_checkpoint(last)
    assert recorder.losses[-1] < 0.8 * recorder.losses[0]
    auxiliary = [step["loss/auxiliary"] for step in recorder.logged]
    assert auxiliary[0] == 0.0
    assert max(auxiliary) > 0.0
    assert not any(name.startswith("val/loss") for name in trainer.callback_metrics)
    torch.testing.assert_close(whole.autoencoder.dictionary.norm(dim=1), torch.ones(40))

    stopped, resumed = make_trainer(max_steps=12), made()
    stopped.fit(made(), data)
    stopped.save_checkpoint(middle)
    make_trainer(max_epochs=9).fit(resumed, data, ckpt_path=middle)
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)

    again = SparseAutoencoderModule.load_from_checkpoint(last)
    assert again.autoencoder.config() == whole.autoencoder.config()
    assert not again.training
    assert torch.equal(again(rows).latents, whole.eval()(rows).latents)
    if kind is not TopKAutoencoder:
        assert again.autoencoder.threshold > 0
        l0 = (again(rows).latents > 0).sum(dim=1).float().mean()
        assert trainer.callback_metrics["val/l0"] == pytest.approx(l0.item())
        # Loaded to be used, and trained on all the same, by the batch.
        make_trainer(max_epochs=1).fit(again, data)
        assert again.autoencoder.training


D, N, K = 6, 120, 4
OWN = {"tied": False, "encoder_bias": True, "decoder_bias": True}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda: KSparseAutoencoder(D, N, K), {}),
        (lambda: KSparseAutoencoder(D, N, K, unit_norm=True, **OWN), {}),
        (lambda: KSparseAutoencoder(D, N, K, output_dim=D - 1, **OWN), {}),
        (lambda: TopKAutoencoder(D, N, K), {"dead_after_tokens": 40, "auxiliary_k": 3}),
    ],
)
def test_a_fit_by_sparse_latents_is_the_fit_by_dense_ones(
    make: Make, options: Any, dtype: torch.dtype, rows_data: Any, recorder: Any,
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    ended = []
    for elements in (linear.SPARSE_ELEMENTS, 1):
        monkeypatch.setattr(linear, "SPARSE_ELEMENTS", elements)
        torch.manual_seed(0)
        autoencoder, seen = make().to(dtype), type(recorder)()
        trained = SparseAutoencoderModule(autoencoder, optimizer=adam(0.01), **options).to(dtype)
        rows = torch.randn(160, D + autoencoder.is_transcoder * (D - 1), dtype=dtype)
        x, target = rows[:16, :D], rows[:16, -autoencoder.output_dim :]
        latents = loss_terms(autoencoder, StepContext(x, target)).output.latents
        assert isinstance(latents, Tensor) is (elements > 1)
        trainer = make_trainer(max_epochs=2, callbacks=[seen])
        trainer.fit(trained, rows_data(rows, 16))
        assert len(seen.losses) == 20
        ended.append([seen.losses, seen.logged, dict(trained.state_dict())])
    exact = dtype == torch.float64
    tolerance = {"rtol": 1e-8, "atol": 1e-10} if exact else {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(ended[1], ended[0], **tolerance)


PRECISIONS = ("32-true", "64-true", "16-true", "bf16-true", "16-mixed", "bf16-mixed")
QUICK = {
    ("bf16-true", KSparseAutoencoder, 4),
    ("bf16-true", BatchTopKAutoencoder, 1024),
    ("16-true", TopKAutoencoder, 1024),
    ("bf16-mixed", BatchTopKAutoencoder, 1024),
}


def by_hand(target: Tensor, reconstruction: Tensor, latents: Tensor) -> dict[str, float]:
    """Metrics in float64 of what was computed in any precision."""
    x, y, z = (t.detach().double() for t in (target, reconstruction, latents))
    error = (y - x).square().sum()
    lengths = x.norm(dim=1) * y.norm(dim=1)
    fvu = float(error / (x - x.mean(dim=0)).square().sum())
    return {
        "mse": float(error / x.numel()),
        "fvu": fvu,
        "explained_variance": 1.0 - fvu,
        "fvu_legacy": float(error / x.square().sum()),
        "cosine": float(torch.where(lengths > 0, (x * y).sum(dim=1) / lengths, 0.0).mean()),
        "l0": float((z != 0).double().sum(dim=1).mean()),
        "l1": float(z.abs().sum(dim=1).mean()),
        "dead": float((z == 0).all(dim=0).double().mean()),
    }


@pytest.mark.parametrize(
    ("precision", "kind", "batch"),
    [
        pytest.param(*one, marks=() if one in QUICK else pytest.mark.slow)
        for one in product(PRECISIONS, ALL, (4, 1024))
    ],
)
def test_what_is_measured_is_what_was_computed(
    precision: str, kind: Any, batch: int, rows_data: Any, make_trainer: MakeTrainer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    torch.manual_seed(0)
    trained = SparseAutoencoderModule(kind(6, 64), decorrelation_weight=0.0)
    data = rows_data(torch.randn(1100, 6) @ torch.randn(6, 6), batch_size=batch)
    steps: list[tuple[dict[str, float], dict[str, Tensor]]] = []

    def measure_batch(x: Tensor, output: Any, *rest: Any) -> dict[str, Tensor]:
        latents = output.latents if isinstance(output.latents, Tensor) else output.latents.dense()
        measured = original(x, output, *rest)
        steps.append((by_hand(x, output.reconstruction, latents), measured))
        return measured

    original = module.measure_batch
    monkeypatch.setattr(module, "measure_batch", measure_batch)
    if precision != "16-true":
        make_trainer(max_steps=2, precision=precision, limit_val_batches=0).fit(trained, data)
        assert len(steps) == 2
    for expected, measured in steps:
        for name, value in measured.items():
            assert value.dtype == torch.float64
            exact = expected[name.partition("/")[2]]
            assert float(value) == pytest.approx(exact, rel=1e-9, abs=1e-12)
    parts = []
    trained.autoencoder.register_forward_hook(
        lambda _, given, output: parts.append((*given, *output))
    )
    (values,) = make_trainer(precision=precision).validate(trained, data, verbose=False)
    for name, value in by_hand(*(torch.cat(part) for part in zip(*parts, strict=True))).items():
        assert values[f"val/{name}"] == pytest.approx(value, rel=1e-6, abs=1e-6)
