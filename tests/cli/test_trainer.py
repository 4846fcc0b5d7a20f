"""Lightning's flags and callbacks, as `docs/lightning.md` has them.

Each kind is tried on a run of eight batches and a validation of three.
"""

import functools
import inspect
import itertools
import re
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch.callbacks as of_lightning
import pytest
import torch
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from torch import Tensor

from palinka.__main__ import main
from palinka.autoencoders import KSparseAutoencoder, TopKAutoencoder
from palinka.cli import trainer as trainers
from palinka.cli.trainer import UNSUPPORTED, ProgressBar, ProgressLines, Trainer, readable
from palinka.data import ActivationDataModule
from palinka.errors import InputError
from palinka.training import SparseAutoencoderModule, SweepModule
from palinka.training.callbacks import RunCheckpoints
from palinka.training.callbacks.summary import final_report

BATCHES, VALIDATED, ROWS = 8, 3, 128
LINE = [
    f"--data.train_tokens={BATCHES * ROWS}", f"--data.validation_tokens={VALIDATED * ROWS}",
    f"--data.batch_size={ROWS}", "--model.autoencoder.latent_dim=64", "--model.autoencoder.k=8",
    "--trainer.accelerator=cpu", "--trainer.log_every_n_steps=1", "--quiet",
]  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def here(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALINKA_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)


data = functools.partial(
    ActivationDataModule,
    train_tokens=BATCHES * ROWS, validation_tokens=VALIDATED * ROWS, batch_size=ROWS,
)  # fmt: skip
adam = functools.partial(torch.optim.Adam, lr=1e-3, fused=True)


def module(k: int = 8, **options: Any) -> SparseAutoencoderModule:
    torch.manual_seed(0)
    autoencoder = KSparseAutoencoder(input_dim=512, latent_dim=64, k=k)
    return SparseAutoencoderModule(
        autoencoder, **{"decorrelation_weight": 0.0, "optimizer": adam, **options}
    )


class Seen(Callback):
    """What a run did: its batches, optimizer steps and validations."""

    def __init__(self) -> None:
        self.batches: list[float] = []
        self.validated: list[float] = []
        self.steps = 0
        self.gradients: list[list[Tensor]] = []
        self.at_start: dict[str, Tensor] = {}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.at_start = dict(trainer.callback_metrics)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.batches.append(float(batch.double().sum()))
        self.steps = trainer.global_step
        self.gradients.append(
            [p.grad.clone() for p in pl_module.parameters() if p.grad is not None]
        )

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *_: Any
    ) -> None:
        if not trainer.sanity_checking:
            self.validated.append(float(batch.double().sum()))

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end


def trainer(*callbacks: Callback, **flags: Any) -> Trainer:
    given: dict[str, Any] = {
        "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False,
    }  # fmt: skip
    return Trainer(callbacks=list(callbacks), **{**given, **flags})


def fit(*callbacks: Callback, model: Any = None, rows: Any = None, **flags: Any) -> Seen:
    seen = Seen()
    trainer(seen, *callbacks, **flags).fit(model or module(), datamodule=rows or data())
    return seen


@pytest.fixture(scope="module")
def two_epochs(cache: Path) -> Iterator[Seen]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALINKA_CACHE", str(cache))
        yield fit(max_epochs=2)


def test_the_page_has_a_row_for_every_switch(repository: Path) -> None:
    page = (repository / "docs" / "lightning.md").read_text()
    rows = set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (.*?) \|", page, re.MULTILINE))))
    flags = set(inspect.signature(LightningTrainer.__init__).parameters) - {"self"}
    assert rows == flags | set(of_lightning.__all__)


def test_so_many_optimizer_steps_are_taken() -> None:
    for flags, steps in (
        ({"max_epochs": 2}, 16),
        ({"max_epochs": 5, "max_steps": 11}, 11),
        ({"limit_train_batches": 0.5}, 4),
        ({}, 8),  # one epoch
        ({"fast_dev_run": 3}, 3),
        ({"accumulate_grad_batches": 3}, 3),
    ):
        assert fit(**flags).steps == steps, flags
    scheduler = of_lightning.GradientAccumulationScheduler({0: 2, 1: 4, 2: 1})
    assert fit(scheduler, max_epochs=4).steps == 4 + 2 + 8 + 8


def test_figures_of_an_earlier_step_say_so() -> None:
    for steps, said in ((8, False), (11, True)):
        ran = trainer(max_steps=steps)
        ran.fit(module(), datamodule=data())
        assert ("\n  validated at step 8; the last is 11" in final_report(ran)) is said


def test_fewer_batches_are_the_first_of_each_epoch_and_a_resumed_run_has_the_same(
    two_epochs: Seen, tmp_path: Path
) -> None:
    limits: dict[str, Any] = {"limit_train_batches": 3, "limit_val_batches": 1}
    seen = fit(max_epochs=2, **limits)
    assert seen.batches == two_epochs.batches[:3] + two_epochs.batches[8:11]
    assert seen.validated == [two_epochs.validated[0]] * 2
    ran = trainer(max_epochs=1, **limits)
    ran.fit(module(), datamodule=data())
    ran.save_checkpoint(tmp_path / "at.ckpt")
    again = Seen()
    resumed = trainer(again, max_epochs=2, **limits)
    resumed.fit(module(), datamodule=data(), ckpt_path=tmp_path / "at.ckpt")
    assert again.batches == seen.batches[3:]


def test_overfitting_takes_the_same_batches_in_every_epoch() -> None:
    seen = fit(overfit_batches=2, max_epochs=3)
    assert seen.batches[:2] == seen.batches[2:4] == seen.batches[4:]
    assert len(set(seen.batches)) == 2
    assert len(seen.validated) == 3 * 2


def test_a_sanity_check_leaves_nothing_behind(two_epochs: Seen) -> None:
    model = module()
    seen = fit(model=model, num_sanity_val_steps=2, log_every_n_steps=1)
    assert seen.at_start == {}
    assert seen.batches == two_epochs.batches[:8]
    assert seen.validated == two_epochs.validated[:3]
    assert int(model.firing.tokens_since.max()) <= BATCHES * ROWS


def test_accumulated_batches_are_one_batch_of_their_rows() -> None:
    whole, parts = (module(sparsity_weight=0.5, sparsity_warmup_steps=6) for _ in range(2))
    fit(model=whole, max_epochs=2)
    seen = fit(
        model=parts, rows=data(batch_size=ROWS // 4), accumulate_grad_batches=4, max_epochs=2
    )
    assert len(seen.batches) == 4 * seen.steps == 64
    for mine, theirs in zip(parts.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    assert torch.equal(parts.firing.tokens_since // ROWS, whole.firing.tokens_since // ROWS)


@pytest.mark.parametrize("sweep", [False, True])
def test_gradients_are_clipped_for_a_fused_optimizer(sweep: bool) -> None:
    def gradients(**flags: Any) -> list[Tensor]:
        model = SweepModule({"a": module(4), "b": module(8)}) if sweep else module()
        return fit(model=model, limit_train_batches=1, **flags).gradients[0]

    limit = 1e-3
    for precision, algorithm in itertools.product(("32-true", "bf16-mixed"), ("norm", "value")):
        clip = {"gradient_clip_val": limit, "gradient_clip_algorithm": algorithm}
        free, clipped = gradients(precision=precision), gradients(precision=precision, **clip)
        for of, now in zip(free, clipped, strict=True):  # a matrix for each autoencoder
            assert float(of.norm()) > limit
            expected = of.clamp(-limit, limit) if algorithm == "value" else of * limit / of.norm()
            torch.testing.assert_close(now, expected, rtol=1e-3, atol=1e-9)


def test_what_changes_nothing_here(two_epochs: Seen) -> None:
    flags = {"use_distributed_sampler": False, "sync_batchnorm": True, "inference_mode": False}
    seen = fit(max_epochs=2, reload_dataloaders_every_n_epochs=1, **flags)
    assert seen.batches == two_epochs.batches
    torch.testing.assert_close(seen.gradients[-1], two_epochs.gradients[-1], rtol=0, atol=0)


def test_time_is_up() -> None:
    slow = of_lightning.LambdaCallback(on_train_batch_end=lambda *_: time.sleep(0.3))
    assert 2 <= fit(slow, max_epochs=-1, max_time={"seconds": 1}).steps <= 4


def test_checkpoints_written_on_the_side_are_whole(tmp_path: Path) -> None:
    model = module()
    flags: dict[str, Any] = {"plugins": [AsyncCheckpointIO()], "enable_checkpointing": True}
    fit(RunCheckpoints(), model=model, max_epochs=2, default_root_dir=tmp_path, **flags)
    for name, step in (("last", 16), ("previous", 8)):
        written = torch.load(tmp_path / "checkpoints" / f"{name}.ckpt", weights_only=True)
        assert written["global_step"] == step
    loaded = SparseAutoencoderModule.load_from_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)


def written(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


VARIANTS = '--model.variants=[{"k":4},{"k":8}]'


@pytest.mark.parametrize(
    "trial",
    [
        "--trainer.fast_dev_run=true",
        f"--trainer.fast_dev_run=true {VARIANTS}",
        "--trainer.barebones=true --trainer.log_every_n_steps=null",
    ],
)
def test_a_trial_leaves_no_files(
    trial: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *LINE, "--trainer.max_epochs=1", *trial.split()]) == 0
    assert written(tmp_path) == []
    assert "results in" not in capsys.readouterr().out


CALLBACK = "--trainer.callbacks+="
PLATEAU = "--model.lr_scheduler=lightning.pytorch.cli.ReduceLROnPlateau --model.lr_scheduler"
REFUSALS = {
    f"{CALLBACK}EarlyStopping --trainer.callbacks.monitor=val_loss": "choose from val/",
    f"{CALLBACK}ModelCheckpoint --trainer.callbacks.monitor=val/fvu {VARIANTS}": "from k=4/val/",
    f"{PLATEAU}.monitor=val_loss": "ReduceLROnPlateau monitors val_loss",
    f"{CALLBACK}ModelCheckpoint --trainer.callbacks.save_last=true": "leave it out",
    f"{CALLBACK}ModelCheckpoint {CALLBACK}ModelCheckpoint": "more than one stateful callback",
    "--trainer.val_check_interval=100": "less than or equal",
    "--trainer.limit_train_batches=0": "limit_train_batches is 0; expected at least 1",
    "--trainer.strategy=ddp_spawn": "use strategy ddp",
    "--trainer.model_registry=mine": "palinka export",
    "--trainer.barebones=true": "log_every_n_steps=1",
}  # fmt: skip


@pytest.mark.parametrize(("options", "says"), REFUSALS.items())
def test_what_cannot_be_is_refused_in_a_line(
    options: str, says: str, refused: Any, tmp_path: Path
) -> None:
    assert says in refused("fit", *LINE, "--trainer.max_epochs=1", *options.split())
    assert not any(path.endswith(".ckpt") for path in written(tmp_path))


def test_transformer_engines_and_some_callbacks_are_refused_and_slow_precisions_warned_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for kind in UNSUPPORTED:
        given = ["l1_unstructured"] * (kind is of_lightning.ModelPruning)
        with pytest.raises(InputError, match=f"{kind.__name__} cannot work here: .+; .+"):
            trainer(kind(*given))
    with pytest.raises(InputError, match=r"precision transformer-engine-float16 replaces layers"):
        trainer(precision="transformer-engine-float16")
    monkeypatch.setattr(trainers, "slow_products", lambda dtype: f"{dtype} is slow")
    for precision in ("bf16-mixed", "bf16-true", "16-true"):
        tried = "bfloat16" if precision.startswith("b") else "float16"
        with pytest.warns(UserWarning, match=rf"torch\.{tried} is slow"):
            trainer(precision=precision)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer()


def test_a_run_lies_where_it_should_and_keeps_what_it_should(tmp_path: Path) -> None:
    timer = [f"{CALLBACK}Timer", "--trainer.callbacks.duration=00:00:01:00"]
    options = ["--trainer.default_root_dir=there", "--trainer.enable_checkpointing=false", *timer]
    assert main(["fit", *LINE, "--trainer.max_steps=1", *options]) == 0
    files = written(tmp_path)
    assert all(path.startswith("there/") and not path.endswith(".ckpt") for path in files)
    (config,) = tmp_path.rglob("config.yaml")
    assert "interval: step" in config.read_text()  # a member of an enumeration


def test_early_stopping_stops() -> None:
    sweep = SweepModule({"a": module(4), "b": module(8)})
    for monitor, model, flags, steps in (
        ("val/fvu", None, {"min_steps": 12}, 12),
        ("loss/total", None, {}, 8),
        ("b/val/fvu", sweep, {}, 8),
    ):
        stops = of_lightning.EarlyStopping(monitor, stopping_threshold=99.0)
        assert fit(stops, model=model, max_epochs=9, log_every_n_steps=1, **flags).steps == steps


def test_model_checkpoints_keep_the_best_and_the_asked_for(tmp_path: Path) -> None:
    best = of_lightning.ModelCheckpoint(tmp_path / "best", monitor="val/fvu", save_top_k=2)
    steps = of_lightning.ModelCheckpoint(
        tmp_path / "steps", every_n_train_steps=3, save_top_k=-1, save_last=True
    )
    fit(
        best, steps, RunCheckpoints(), enable_checkpointing=True, max_epochs=3,
        default_root_dir=tmp_path, log_every_n_steps=1,
    )  # fmt: skip
    scores = {Path(path).name: float(score) for path, score in best.best_k_models.items()}
    assert len(scores) == 2
    assert min(scores.values()) == best.best_model_score
    kept = {path.name for path in (tmp_path / "steps").iterdir()}
    assert len(kept) == 3 * 8 // 3 + 1
    module = SparseAutoencoderModule.load_from_checkpoint(best.best_model_path)
    measured = trainer().validate(module, datamodule=data(), verbose=False)
    assert measured[0]["val/fvu"] == pytest.approx(float(best.best_model_score), rel=1e-6)
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 24


@pytest.mark.parametrize("sweep", [False, True])
def test_learning_rates_are_logged_as_they_were(sweep: bool, tmp_path: Path) -> None:
    schedule = functools.partial(torch.optim.lr_scheduler.LinearLR, start_factor=0.5, total_iters=4)
    one, other = (module(k, lr_scheduler=schedule) for k in (4, 8))
    monitor = of_lightning.LearningRateMonitor()
    model: Any = SweepModule({"a": one, "b": other}) if sweep else one
    fit(monitor, model=model, logger=CSVLogger(tmp_path), log_every_n_steps=1)
    assert sorted(monitor.lrs) == (["lr-Adam/pg1", "lr-Adam/pg2"] if sweep else ["lr-Adam"])
    for rates in monitor.lrs.values():
        assert rates == pytest.approx([1e-3 * min(1.0, 0.5 + step / 8) for step in range(8)])


def test_parts_can_be_frozen() -> None:
    autoencoder = TopKAutoencoder(512, 64, k=8)
    autoencoder.encoder.requires_grad_(False)
    before = {name: value.clone() for name, value in autoencoder.named_parameters()}
    fit(model=SparseAutoencoderModule(autoencoder, optimizer=adam))
    for name, value in autoencoder.named_parameters():
        assert torch.equal(value, before[name]) is name.startswith("encoder")


def test_a_run_goes_on_from_where_it_failed(tmp_path: Path, two_epochs: Seen) -> None:
    class Fails(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, idx: int) -> None:
            if trainer.global_step == 5:
                raise KeyError("a fault")

    saved = of_lightning.OnExceptionCheckpoint(tmp_path)
    with pytest.raises(KeyError):
        fit(Fails(), saved, enable_checkpointing=True)
    again = fit(of_lightning.OnExceptionCheckpoint(tmp_path), enable_checkpointing=True)
    # The batch that failed is passed over: another will not mend it.
    assert again.batches == two_epochs.batches[6:8]
    assert again.steps == 7
    assert not (tmp_path / "on_exception.ckpt").exists()


def test_a_run_is_shown_as_lightning_does(capfd: pytest.CaptureFixture[str]) -> None:
    shows = [of_lightning.RichModelSummary(max_depth=1), of_lightning.RichProgressBar()]
    fit(*shows, enable_progress_bar=True, log_every_n_steps=1)
    shown = capfd.readouterr()
    assert "32.8 K" in shown.out
    assert "loss/total" in shown.out + shown.err
    steps = {"max_epochs": 1, "max_steps": 5}
    fit(ProgressBar(), enable_progress_bar=True, log_every_n_steps=1, **steps)
    last = capfd.readouterr().out.replace("\r", "\n").splitlines()[-1]
    assert "| 5/8 [" in last
    assert all(f", {name}=" in last for name in ("loss", "FVU"))


def test_a_log_file_has_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr("palinka.cli.trainer.rank_zero_info", told.append)
    monkeypatch.setattr("palinka.cli.trainer.refresh_seconds", lambda _: 0.0)
    fit(ProgressLines(), log_every_n_steps=1, max_epochs=1, max_steps=3)
    begun, *lines = told
    assert begun == "training 32,768 parameters for 3 steps"
    assert [line.partition(": loss ")[0] for line in lines] == ["step 1", "step 2", "step 3"]
    # No line without numbers, nor twice the same ones.
    fit(ProgressLines(), log_every_n_steps=2, max_epochs=1, max_steps=5)
    assert [line.partition(": loss ")[0] for line in told[5:]] == ["step 2", "step 4"]
    monkeypatch.setattr("palinka.cli.trainer.refresh_seconds", lambda _: 1e9)
    fit(ProgressLines(), log_every_n_steps=1, max_epochs=1, max_steps=3)
    assert told[7:] == [begun]
    assert readable({"throughput/tokens_per_second": 1234.5}) == {"tokens/s": "1,234"}
    assert readable({"loss/total": 0.5, "val/fvu": 0.1}, 1400) == {
        "loss": "0.5", "validation FVU of step 1,400": "0.1",
    }  # fmt: skip
