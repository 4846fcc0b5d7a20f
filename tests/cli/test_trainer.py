"""Every flag of Lightning's Trainer and every callback of its own, against its documentation.

The rows of `docs/lightning.md`: each is tried on a run of eight batches and a validation of three.
"""

import csv
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
from lightning.pytorch import LightningModule
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from lightning.pytorch.profilers import SimpleProfiler
from torch import Tensor

from palinka.__main__ import main
from palinka.autoencoders import KSparseAutoencoder, TopKAutoencoder
from palinka.cli import trainer as trainers
from palinka.cli.trainer import UNSUPPORTED, Trainer
from palinka.data import ActivationDataModule
from palinka.errors import InputError
from palinka.training import SparseAutoencoderModule, SweepModule
from palinka.training.callbacks import RunCheckpoints

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


def data(batch_size: int = ROWS) -> ActivationDataModule:
    return ActivationDataModule(
        train_tokens=BATCHES * ROWS, validation_tokens=VALIDATED * ROWS, batch_size=batch_size
    )


def module(k: int = 8, **options: Any) -> SparseAutoencoderModule:
    torch.manual_seed(0)
    autoencoder = KSparseAutoencoder(input_dim=512, latent_dim=64, k=k)
    return SparseAutoencoderModule(
        autoencoder, **{"decorrelation_weight": 0.0, "optimizer": adam, **options}
    )


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-3, fused=True)


class Seen(Callback):
    """What a run did: its batches, optimizer steps and validations."""

    def __init__(self) -> None:
        self.batches: list[float] = []
        self.validated: list[float] = []
        self.validations: list[int] = []
        self.steps = 0
        self.gradients: list[list[Tensor]] = []
        self.modes: set[tuple[bool, bool]] = set()
        self.at_start: dict[str, Tensor] = {}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.at_start = dict(trainer.callback_metrics)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.batches.append(float(batch.double().sum()))
        self.steps = trainer.global_step
        self.modes.add((torch.is_anomaly_enabled(), torch.are_deterministic_algorithms_enabled()))
        gradients = [p.grad.clone() for p in pl_module.parameters() if p.grad is not None]
        self.gradients.append(gradients)

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *_: Any
    ) -> None:
        if not trainer.sanity_checking:
            self.validated.append(float(batch.double().sum()))

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self.validations.append(trainer.global_step)


def trainer(*callbacks: Callback, **flags: Any) -> Trainer:
    given: dict[str, Any] = {
        "accelerator": "cpu", "max_epochs": 1, "logger": False, "enable_checkpointing": False,
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
        ({"max_epochs": -1, "max_steps": 3}, 3),
        ({"max_epochs": 5, "max_steps": 11}, 11),
        ({"max_epochs": 0}, 0),
        ({"max_steps": 0}, 0),
        ({"limit_train_batches": 3, "max_epochs": 2}, 6),
        ({"limit_train_batches": 0.5}, 4),
        ({"limit_train_batches": 0}, 0),
        ({"overfit_batches": 0.5}, 4),
        ({"fast_dev_run": True}, 1),
        ({"fast_dev_run": 3}, 3),
        ({"accumulate_grad_batches": 4}, 2),
        ({"accumulate_grad_batches": 3}, 3),
    ):
        assert fit(**flags).steps == steps, flags
    scheduler = of_lightning.GradientAccumulationScheduler({0: 2, 1: 4, 2: 1})
    assert fit(scheduler, max_epochs=4).steps == 4 + 2 + 8 + 8


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


def test_fewer_batches_are_measured() -> None:
    for limit, count in ((1, 1), (0.5, 1), (1.0, 3), (0, 0)):
        limits: dict[str, Any] = {f"limit_{of}_batches": limit for of in ("val", "test", "predict")}
        assert len(fit(**limits).validated) == count
        for command in ("validate", "test", "predict"):
            seen = Seen()
            getattr(trainer(seen, **limits), command)(module(), datamodule=data())
            assert len(seen.validated) == count


def test_overfitting_takes_the_same_batches_in_every_epoch() -> None:
    seen = fit(overfit_batches=2, max_epochs=3)
    assert seen.batches[:2] == seen.batches[2:4] == seen.batches[4:]
    assert len(set(seen.batches)) == 2
    assert len(seen.validated) == 3 * 2


def test_validation_comes_when_it_should() -> None:
    for flags, at in (
        ({"val_check_interval": 0.25}, [2, 4, 6, 8, 10, 12, 14, 16]),
        ({"val_check_interval": 3}, [3, 6, 11, 14]),
        ({"val_check_interval": 5, "check_val_every_n_epoch": None}, [5, 10, 15]),
        ({"val_check_interval": "00:00:00:00"}, list(range(1, 17))),
        ({"check_val_every_n_epoch": 2}, [16]),
        ({"val_check_interval": 100, "limit_val_batches": 0}, []),
        ({}, [8, 16]),
    ):
        assert fit(max_epochs=2, **flags).validations == at, flags


@pytest.mark.parametrize("steps", [0, 2, -1])
def test_a_sanity_check_leaves_nothing_behind(steps: int, two_epochs: Seen) -> None:
    model = module()
    seen = fit(model=model, num_sanity_val_steps=steps, log_every_n_steps=1)
    assert seen.at_start == {}
    assert seen.batches == two_epochs.batches[:8]
    assert seen.validated == two_epochs.validated[:3]
    assert int(model.firing.tokens_since.max()) <= BATCHES * ROWS


def test_accumulated_batches_are_one_batch_of_their_rows() -> None:
    def penalized() -> SparseAutoencoderModule:
        return module(sparsity_weight=0.5, sparsity_warmup_steps=6)

    whole, parts = penalized(), penalized()
    fit(model=whole, max_epochs=2)
    seen = fit(model=parts, rows=data(ROWS // 4), accumulate_grad_batches=4, max_epochs=2)
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


def test_torch_is_told() -> None:
    try:
        flags: dict[str, Any] = {"detect_anomaly": True, "deterministic": True}
        seen = fit(limit_train_batches=2, benchmark=True, **flags)
        assert seen.modes == {(True, True)}
        assert torch.backends.cudnn.benchmark
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = False


def test_what_changes_nothing_here(two_epochs: Seen) -> None:
    flags = {"use_distributed_sampler": False, "sync_batchnorm": True, "inference_mode": False}
    seen = fit(max_epochs=2, reload_dataloaders_every_n_epochs=1, **flags)
    assert seen.batches == two_epochs.batches
    torch.testing.assert_close(seen.gradients[-1], two_epochs.gradients[-1], rtol=0, atol=0)


def test_time_is_up() -> None:
    slow = of_lightning.LambdaCallback(on_train_batch_end=lambda *_: time.sleep(0.3))
    assert 2 <= fit(slow, max_epochs=-1, max_time={"seconds": 1}).steps <= 4
    timer = of_lightning.Timer({"seconds": 1}, interval="epoch")
    assert fit(slow, timer, max_epochs=-1).steps == BATCHES
    assert timer.time_elapsed() > 1


def test_steps_and_hyperparameters_are_logged_as_asked(tmp_path: Path) -> None:
    for asked in (True, False):
        logger = CSVLogger(tmp_path, version=str(asked))
        fit(logger=logger, enable_autolog_hparams=asked, log_every_n_steps=3)
        assert Path(logger.log_dir, "hparams.yaml").exists() is asked
        assert logged(logger, "loss/total") == ["2", "5"]


def logged(logger: CSVLogger, name: str) -> list[str]:
    """The steps at which a metric was logged."""
    logger.save()
    with Path(logger.log_dir, "metrics.csv").open() as file:
        return [row["step"] for row in csv.DictReader(file) if row.get(name)]


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


@pytest.mark.parametrize("variants", [[], [VARIANTS]])
@pytest.mark.parametrize(
    "trial", [["fast_dev_run=true"], ["barebones=true", "log_every_n_steps=null"]]
)
def test_a_trial_leaves_no_files(
    trial: list[str], variants: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--trainer.{flag}" for flag in ["max_epochs=1", *trial]]
    assert main(["fit", *LINE, *flags, *variants]) == 0
    assert written(tmp_path) == []
    assert "results in" not in capsys.readouterr().out


CALLBACK = "--trainer.callbacks+="
PLATEAU = "--model.lr_scheduler=lightning.pytorch.cli.ReduceLROnPlateau --model.lr_scheduler"
ACCUMULATION = f"{CALLBACK}GradientAccumulationScheduler --trainer.callbacks.scheduling={{0:~2}}"
REFUSALS = {
    f"{CALLBACK}EarlyStopping --trainer.callbacks.monitor=val_loss": "choose from val/",
    f"{CALLBACK}ModelCheckpoint --trainer.callbacks.monitor=val/fvu {VARIANTS}": "from k=4/val/",
    f"{PLATEAU}.monitor=val_loss": "ReduceLROnPlateau monitors val_loss",
    f"{CALLBACK}EarlyStopping --trainer.callbacks.monitor=val/fvu --trainer.limit_val_batches=0":
        "not available",
    f"{CALLBACK}ModelCheckpoint --trainer.callbacks.save_last=true": "leave it out",
    f"{CALLBACK}ModelCheckpoint {CALLBACK}ModelCheckpoint": "more than one stateful callback",
    f"{CALLBACK}LearningRateMonitor --trainer.logger=false": "has no logger",
    f"{ACCUMULATION} --trainer.accumulate_grad_batches=2": "remove",
    f"{CALLBACK}TQDMProgressBar {CALLBACK}RichProgressBar": "only one progress bar",
    f"{CALLBACK}ModelCheckpoint --trainer.enable_checkpointing=false": "enable_checkpointing=False",
    "--trainer.val_check_interval=100": "less than or equal",
    "--trainer.val_check_interval=0": "at least 1",
    "--trainer.check_val_every_n_epoch=0": "at least 1",
    "--trainer.accumulate_grad_batches=0": "at least 1",
    "--trainer.limit_train_batches=0.01": "Please increase",
    "--trainer.overfit_batches=-1": "invalid value -1",
    "--trainer.max_time=2~s": "DD:HH:MM:SS",
    "--trainer.profiler=xla": "torch_xla",
    "--trainer.devices=-1": "should be an int > 0",
    "--trainer.strategy=ddp_spawn": "use trainer.strategy ddp",
    "--trainer.strategy=ddp_notebook": "use trainer.strategy ddp",
    "--trainer.strategy=deepspeed": "DeepSpeed",
    "--trainer.model_registry=mine": "palinka export",
    "--trainer.barebones=true": "log_every_n_steps=1",
    "--trainer.gradient_clip_algorithm=median": "invalid. Allowed",
}  # fmt: skip
for kind in UNSUPPORTED:
    needed = " --trainer.callbacks.pruning_fn=l1_unstructured"
    needed *= kind is of_lightning.ModelPruning
    REFUSALS[f"{CALLBACK}{kind.__name__}{needed}"] = "cannot work here: "


@pytest.mark.parametrize(("options", "says"), REFUSALS.items())
def test_what_cannot_be_is_refused_in_a_line(
    options: str, says: str, refused: Any, tmp_path: Path
) -> None:
    given = [option.replace("~", " ") for option in options.split()]
    assert says in refused("fit", *LINE, "--trainer.max_epochs=1", *given)
    assert not any(path.endswith(".ckpt") for path in written(tmp_path))


def test_transformer_engines_are_refused_and_slow_precisions_warned_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
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
    def steps(monitor: str = "val/fvu", model: Any = None, **flags: Any) -> int:
        stops = of_lightning.EarlyStopping(monitor, stopping_threshold=99.0)
        return fit(stops, model=model, max_epochs=9, log_every_n_steps=1, **flags).steps

    assert (steps(), steps("loss/total"), steps(min_epochs=3), steps(min_steps=12)) == (
        8,
        8,
        24,
        12,
    )
    assert steps("b/val/fvu", SweepModule({"a": module(4), "b": module(8)})) == 8


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
    def schedule(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.LinearLR(optimizer, 0.5, total_iters=4)

    def made(k: int) -> SparseAutoencoderModule:
        return module(k, lr_scheduler=schedule)

    monitor = of_lightning.LearningRateMonitor()
    model: Any = SweepModule({"a": made(4), "b": made(8)}) if sweep else made(8)
    fit(monitor, model=model, logger=CSVLogger(tmp_path), log_every_n_steps=1)
    assert sorted(monitor.lrs) == (["lr-Adam/pg1", "lr-Adam/pg2"] if sweep else ["lr-Adam"])
    for rates in monitor.lrs.values():
        assert rates == pytest.approx([1e-3 * min(1.0, 0.5 + step / 8) for step in range(8)])


def test_parts_can_be_frozen(tmp_path: Path) -> None:
    class Encoder(of_lightning.BaseFinetuning):
        def freeze_before_training(self, pl_module: LightningModule) -> None:
            self.freeze(pl_module.autoencoder.encoder)

        def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
            if epoch == 1:
                self.make_trainable(pl_module.autoencoder.encoder)

    def left_by(epochs: int) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        model = SparseAutoencoderModule(TopKAutoencoder(512, 64, k=8), optimizer=adam)
        fit(Encoder(), model=model, max_epochs=epochs)
        return model.autoencoder.encoder.weight.detach(), model.autoencoder.dictionary.detach()

    (start, _), (frozen, decoder), (thawed, _) = left_by(0), left_by(1), left_by(2)
    assert torch.equal(start, frozen)
    assert not torch.equal(start, decoder)
    assert not torch.equal(start, thawed)


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


@pytest.mark.parametrize("kind", ["Rich", ""])
def test_a_run_is_shown_and_timed_as_lightning_does(
    kind: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    logger, profiler = CSVLogger(tmp_path), SimpleProfiler(tmp_path, "report")
    shows = [
        getattr(of_lightning, f"{kind}ModelSummary")(max_depth=1),
        getattr(of_lightning, f"{kind or 'TQDM'}ProgressBar")(),
        of_lightning.ThroughputMonitor(len, window_size=4),
        of_lightning.DeviceStatsMonitor(cpu_stats=True),
    ]
    with caplog.at_level("INFO", logger="lightning.pytorch.callbacks.model_summary"):
        flags: dict[str, Any] = {"logger": logger, "profiler": profiler, "log_every_n_steps": 1}
        fit(*shows, enable_progress_bar=True, **flags)
    shown = capfd.readouterr()
    assert "32.8 K" in shown.out + caplog.text
    assert "loss/total" in shown.out + shown.err
    assert len(logged(logger, "train/samples")) == BATCHES
    assert logged(logger, "DeviceStatsMonitor.on_train_batch_end/cpu_percent")
    assert "run_training_batch" in (tmp_path / "fit-report.txt").read_text()
