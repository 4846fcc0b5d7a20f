import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, ReduceLROnPlateau
from torch import Tensor
from torch.utils.data import DataLoader

from palinka.autoencoders import KSparseAutoencoder, TopKAutoencoder
from palinka.autoencoders.topk import geometric_median
from palinka.errors import InputError
from palinka.language_models import cpu
from palinka.training import SparseAutoencoderModule
from palinka.training.losses import StepContext, loss_terms
from palinka.training.module import FIRST_ROWS

MakeTrainer = Callable[..., Trainer]
LOSSES = {f"loss/{name}" for name in ("total", "reconstruction", "sparsity", "decorrelation")}
MEASURED = {"fvu", "mse", "explained_variance", "cosine", "fvu_legacy", "l0", "l1", "dead", *LOSSES}
NAMES = {
    *LOSSES,
    *(f"reconstruction/{name}" for name in ("mse", "fvu", "explained_variance", "cosine")),
    *(f"sparsity/{name}" for name in ("l0", "l1", "dead")),
}


def module(k: int | None = None, **options: Any) -> SparseAutoencoderModule:
    return SparseAutoencoderModule(KSparseAutoencoder(8, k=k), **options)


def sgd(lr: float) -> Callable[..., torch.optim.Optimizer]:
    return lambda parameters: torch.optim.SGD(parameters, lr=lr)


def loss_of(trained: SparseAutoencoderModule, x: Tensor) -> Tensor:
    return trained.objective(loss_terms(trained.autoencoder, StepContext(x, x)), step=0).total


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


def test_everything_is_logged_under_its_name_every_few_steps(
    rows: Tensor, rows_data: Any, recorder: Any, make_trainer: MakeTrainer
) -> None:
    trained = module(dead_after_tokens=1)
    first = copy.deepcopy(trained.autoencoder)
    trainer = make_trainer(max_epochs=1, callbacks=[recorder])
    trainer.fit(trained, rows_data(rows, batch_size=12))
    logged, output = recorder.logged[0], first(rows[:12])
    assert logged.keys() >= NAMES
    assert logged["loss/total"] == pytest.approx(recorder.losses[0])
    assert sum(logged[name] for name in LOSSES) == pytest.approx(2 * recorder.losses[0])
    fired = output.latents > 0  # the other metrics are compared for every architecture
    dead = (~fired.any(dim=0)).float().mean().item()
    assert logged["sparsity/dead"] == pytest.approx(dead)
    assert trainer.callback_metrics.keys() >= {f"val/{name}" for name in MEASURED}
    trainer.test(trained, rows_data(rows), verbose=False)
    assert trainer.callback_metrics.keys() == {f"test/{name}" for name in MEASURED}

    seen = type(recorder)()
    trainer = make_trainer(max_epochs=2, log_every_n_steps=4, callbacks=[seen], limit_val_batches=0)
    trainer.fit(module(), rows_data(rows, batch_size=4))
    totals = [logged.get("loss/total") for logged in seen.logged]
    assert totals[:3] == [None, None, None]
    assert totals[3] == pytest.approx(seen.losses[3])
    assert totals[7] == totals[8] == pytest.approx(seen.losses[7])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "64-true"])
def test_half_precision_activations_in_every_precision(
    precision: str, dtype: torch.dtype, rows: Tensor, rows_data: Any, recorder: Any,
    make_trainer: MakeTrainer,
) -> None:  # fmt: skip
    trained = module()
    x = rows.to(dtype)
    assert torch.equal(trained(x).reconstruction, trained(x.float()).reconstruction)
    expected = loss_of(trained, x.float()).item()
    trainer = make_trainer(max_epochs=2, precision=precision, callbacks=[recorder])
    trainer.fit(trained, rows_data(x))
    assert recorder.losses[0] == pytest.approx(expected, rel=0.02)
    weights = {"bf16-true": torch.bfloat16, "64-true": torch.float64}
    assert trained.autoencoder.dictionary.dtype == weights.get(precision, torch.float32)
    assert trained.firing.tokens_since.dtype == torch.int64


def test_the_scaling_of_the_training_data_is_taken(
    rows: Tensor, rows_data: Any, statistics: Any, recorder: Any, make_trainer: MakeTrainer
) -> None:
    trained, mean = module(), 100 + np.linspace(1, 2, 8)
    shifted = rows + torch.from_numpy(mean).float()
    scaled = (shifted - torch.from_numpy(mean).float()) * 0.5
    expected = loss_of(trained, scaled).item()
    data = rows_data(shifted, input_statistics=statistics(mean, 0.5))
    trainer = make_trainer(max_epochs=1, callbacks=[recorder], limit_val_batches=0)
    trainer.fit(trained, data)
    assert recorder.losses[0] == pytest.approx(expected, rel=1e-6)
    output = trained(shifted)
    raw = trained.autoencoder(scaled).reconstruction / 0.5 + torch.from_numpy(mean).float()
    torch.testing.assert_close(output.reconstruction, raw)
    torch.testing.assert_close(trained.decode(trained.encode(shifted)), output.reconstruction)
    (latents,) = make_trainer().predict(trained, data)
    torch.testing.assert_close(latents, output.latents)
    # The statistics keep their digits in low precision.
    narrow = module()
    make_trainer(max_steps=1, precision="bf16-true", limit_val_batches=0).fit(narrow, data)
    assert torch.equal(narrow.scaling.mean, torch.from_numpy(mean).float())
    assert narrow(shifted).reconstruction.dtype == torch.float32


def test_a_new_autoencoder_begins_from_the_data_once(
    rows: Tensor, rows_data: Any, statistics: Any, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    asked = []

    def training_rows(count: int) -> Tensor:
        asked.append(count)
        return rows.half()

    said = {"training_rows": training_rows, "input_statistics": statistics(np.ones(8), 0.5)}
    sae = TopKAutoencoder(8)
    make_trainer(max_epochs=1).fit(
        SparseAutoencoderModule(sae, optimizer=sgd(0.0)), rows_data(rows, **said)
    )
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


def test_a_schedule_goes_by_steps_and_a_plateau_by_the_name_of_its_metric(
    rows: Tensor, rows_data: Any, make_trainer: MakeTrainer
) -> None:
    def halved(optimizer: Any) -> Any:
        return torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)

    def plateau(optimizer: Any) -> Any:
        return ReduceLROnPlateau(optimizer, monitor="val/fvu", patience=0, threshold=1e9)

    for schedule, rate in ((halved, 1e-3 / 8), (plateau, 1e-4)):
        trainer = make_trainer(max_epochs=1)
        trained = module(optimizer=sgd(1e-3), lr_scheduler=schedule)
        trainer.fit(trained, rows_data(rows, batch_size=8))
        assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(rate)


@pytest.mark.parametrize(("value", "every"), [(float("nan"), 1), (float("inf"), 50)])
def test_activations_that_are_no_numbers_end_every_run(
    value: float, every: int, rows: Tensor, rows_data: Any, make_trainer: MakeTrainer
) -> None:
    rows[13, 2] = value
    trainer = make_trainer(max_epochs=3, log_every_n_steps=every, limit_val_batches=0)
    with pytest.raises(InputError, match="1 batches of activations hold NaN or Inf"):
        trainer.fit(module(), rows_data(rows, batch_size=6))
    for measure in (make_trainer().validate, make_trainer().test, make_trainer().predict):
        with pytest.raises(InputError, match="NaN or Inf"):
            measure(module(), rows_data(rows))


@pytest.mark.parametrize(
    ("width", "lr", "precision", "message"),
    [
        (8, 1e30, "32-true", "training diverged"),
        (9, 0.1, "32-true", r"activations of shape \(24, 8\).*must be 9"),
        (8, 0.1, "16-true", r"float16 weights have too little range(?!.*learning rate)"),
    ],
)
def test_runs_that_cannot_be(
    width: int, lr: float, precision: str, message: str, rows: Tensor, rows_data: Any,
    make_trainer: MakeTrainer,
) -> None:  # fmt: skip
    trained = SparseAutoencoderModule(KSparseAutoencoder(width), optimizer=sgd(lr))
    with pytest.raises(InputError, match=message):
        make_trainer(max_epochs=5, precision=precision).fit(trained, rows_data(rows))


def test_arguments_that_cannot_be() -> None:
    bad = {"sparsity_weight": -1.0, "decorrelation_weight": float("nan")}
    bad |= {"sparsity_warmup_steps": -1, "dead_after_tokens": 0, "auxiliary_k": 0}
    kinds = {"sparsity_weight": "0.1", "decorrelation_weight": True, "sparsity_warmup_steps": None}
    for name, value in (*bad.items(), *kinds.items()):
        with pytest.raises(InputError, match=f"{name} must be"):
            module(**{name: value})


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The precisions of float32 products that trials choose, the last of them next."""
    chosen = ["highest", "medium"]
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    monkeypatch.setattr(cpu, "MIN_WEIGHTS", 100)
    monkeypatch.setattr(cpu, "select_matmul_backend", lambda: (chosen.pop(), "why"))
    yield chosen
    torch.set_float32_matmul_precision(before)


def test_small_autoencoders_and_explicit_wishes_are_left_alone(chosen: list[str]) -> None:
    for wish, size, expected in (
        ("highest", 99, "highest"), ("high", 100, "high"), ("highest", 100, "medium"),
    ):  # fmt: skip
        torch.set_float32_matmul_precision(wish)
        assert cpu.tune_cpu(torch.device("cpu"), size) == wish
        assert torch.get_float32_matmul_precision() == expected


def test_a_resumed_run_keeps_its_precision_and_torch_is_left_as_it_was(
    chosen: list[str], make_trainer: MakeTrainer, rows_data: Any, rows: Tensor, tmp_path: Path
) -> None:
    trainer, path, seen = make_trainer(max_epochs=1), tmp_path / "last.ckpt", []

    class Watched(SparseAutoencoderModule):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            seen.append(torch.get_float32_matmul_precision())
            if len(seen) == 1:
                trainer.save_checkpoint(path)
            return super().training_step(batch, batch_idx)

    trainer.fit(Watched(KSparseAutoencoder(8)), rows_data(rows))
    make_trainer(max_epochs=2).fit(Watched(KSparseAutoencoder(8)), rows_data(rows), ckpt_path=path)
    assert set(seen) == {"medium"}
    assert torch.get_float32_matmul_precision() == "highest"


class Data(LightningDataModule):
    """Knows its width only once it has been made, as the project's own does."""

    width = 8

    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.randn(3, 6, 8), batch_size=None)

    val_dataloader = train_dataloader


class CLI(LightningCLI):
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        width = "model.autoencoder.init_args.input_dim"
        parser.link_arguments("data.width", width, apply_on="instantiate")


def cli(folder: Path, *arguments: str) -> LightningCLI:
    """The module under LightningCLI, which captures hyper-parameters in a way of its own."""
    flags = ("logger", "enable_progress_bar", "enable_checkpointing")
    line = [
        "fit", "--model.autoencoder=KSparseAutoencoder", "--model.autoencoder.k=3",
        "--trainer.max_epochs=1", "--trainer.accelerator=cpu",
        f"--trainer.default_root_dir={folder}", *(f"--trainer.{flag}=false" for flag in flags),
        *arguments,
    ]  # fmt: skip
    own: dict[str, Any] = {"auto_configure_optimizers": False, "save_config_callback": None}
    return CLI(SparseAutoencoderModule, Data, args=line, **own)


def test_a_checkpoint_of_lightnings_command_line_loads_without_arguments(tmp_path: Path) -> None:
    sgd = ["--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0.5"]
    ran = cli(tmp_path, *sgd, "--model.sparsity_weight=0.25")
    assert isinstance(ran.trainer.optimizers[0], torch.optim.SGD)
    assert ran.trainer.optimizers[0].param_groups[0]["lr"] == 0.5
    path = tmp_path / "cli.ckpt"
    ran.trainer.save_checkpoint(path)
    torch.load(path, weights_only=True)
    loaded = SparseAutoencoderModule.load_from_checkpoint(path)
    assert loaded.autoencoder.config() == ran.model.autoencoder.config()
    assert (loaded.autoencoder.input_dim, loaded.autoencoder.k) == (8, 3)
    assert loaded.objective.sparsity_weight == 0.25
    torch.testing.assert_close(loaded.state_dict(), ran.model.state_dict(), rtol=0, atol=0)
