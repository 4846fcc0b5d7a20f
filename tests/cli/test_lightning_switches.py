"""Every flag of Lightning's Trainer and every callback of its own, against its documentation.

The rows of `docs/lightning.md`: each is tried on a run of eight batches and a validation of three.
"""

import csv
import inspect
import re
import time
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
from palinka.cli.trainer import UNSUPPORTED, Trainer
from palinka.data import ActivationDataModule
from palinka.training import SparseAutoencoderModule, SweepModule
from palinka.training.callbacks import RunCheckpoints

BATCHES, VALIDATED, ROWS = 8, 3, 128
LINE = [
    f"--data.train_tokens={BATCHES * ROWS}",
    f"--data.validation_tokens={VALIDATED * ROWS}",
    f"--data.batch_size={ROWS}",
    "--model.autoencoder.latent_dim=64",
    "--model.autoencoder.k=8",
    "--trainer.accelerator=cpu",
    "--trainer.log_every_n_steps=1",
    "--quiet",
]


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

    def on_train_start(self, trainer: LightningTrainer, pl_module: LightningModule) -> None:
        self.at_start = dict(trainer.callback_metrics)

    def on_train_batch_end(
        self,
        trainer: LightningTrainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self.batches.append(float(batch.double().sum()))
        self.steps = trainer.global_step
        self.modes.add((torch.is_anomaly_enabled(), torch.are_deterministic_algorithms_enabled()))
        self.gradients.append(
            [p.grad.clone() for p in pl_module.parameters() if p.grad is not None]
        )

    def on_validation_batch_end(
        self,
        trainer: LightningTrainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not trainer.sanity_checking:
            self.validated.append(float(batch.double().sum()))

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: LightningTrainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.validations.append(trainer.global_step)


def trainer(*callbacks: Callback, **flags: Any) -> Trainer:
    quiet = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    given = {"accelerator": "cpu", "max_epochs": 1, **quiet, **flags}
    return Trainer(callbacks=list(callbacks), **given)


def fit(*callbacks: Callback, model: Any = None, rows: Any = None, **flags: Any) -> Seen:
    seen = Seen()
    ran = trainer(seen, *callbacks, **flags)
    ran.fit(model or module(), datamodule=rows or data())
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


@pytest.mark.parametrize(
    ("flags", "steps"),
    [
        ({"max_epochs": 2}, 16),
        ({"max_epochs": -1, "max_steps": 3}, 3),
        ({"max_epochs": 5, "max_steps": 11}, 11),
        ({"max_epochs": 0}, 0),
        ({"max_steps": 0}, 0),
        ({"limit_train_batches": 3, "max_epochs": 2}, 6),
        ({"limit_train_batches": 0.5}, 4),
        ({"limit_train_batches": 0}, 0),
        ({"overfit_batches": 2, "max_epochs": 3}, 6),
        ({"overfit_batches": 0.5}, 4),
        ({"fast_dev_run": True}, 1),
        ({"fast_dev_run": 3}, 3),
        ({"accumulate_grad_batches": 4}, 2),
        ({"accumulate_grad_batches": 3}, 3),
    ],
    ids=str,
)
def test_so_many_optimizer_steps_are_taken(flags: dict[str, Any], steps: int) -> None:
    assert fit(**flags).steps == steps


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


@pytest.mark.parametrize(("limit", "count"), [(1, 1), (0.5, 1), (1.0, 3), (0, 0)])
def test_fewer_batches_are_measured(limit: float, count: int) -> None:
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


@pytest.mark.parametrize(
    ("flags", "at"),
    [
        ({"val_check_interval": 0.25}, [2, 4, 6, 8, 10, 12, 14, 16]),
        ({"val_check_interval": 3}, [3, 6, 11, 14]),
        ({"val_check_interval": 5, "check_val_every_n_epoch": None}, [5, 10, 15]),
        ({"val_check_interval": "00:00:00:00"}, list(range(1, 17))),
        ({"check_val_every_n_epoch": 2}, [16]),
        ({"val_check_interval": 100, "limit_val_batches": 0}, []),
        ({}, [8, 16]),
    ],
    ids=str,
)
def test_validation_comes_when_it_should(flags: dict[str, Any], at: list[int]) -> None:
    assert fit(max_epochs=2, **flags).validations == at


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


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("algorithm", ["norm", "value"])
@pytest.mark.parametrize("sweep", [False, True])
def test_gradients_are_clipped_for_a_fused_optimizer(
    precision: str, algorithm: str, sweep: bool
) -> None:
    def made() -> Any:
        return SweepModule({"a": module(4), "b": module(8)}) if sweep else module()

    flags: dict[str, Any] = {"precision": precision, "limit_train_batches": 2}
    limit = 1e-3
    (free, _), (clipped, _) = (
        fit(model=made(), **flags).gradients,
        fit(
            model=made(), gradient_clip_val=limit, gradient_clip_algorithm=algorithm, **flags
        ).gradients,
    )
    for of, now in zip(free, clipped, strict=True):  # a matrix for each autoencoder
        assert float(of.norm()) > limit
        expected = of.clamp(-limit, limit) if algorithm == "value" else of * limit / of.norm()
        torch.testing.assert_close(now, expected, rtol=1e-3, atol=1e-9)


def test_a_clip_that_cannot_be_is_refused_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, "invalid. Allowed", "--trainer.gradient_clip_algorithm=median")


@pytest.mark.parametrize(
    ("flag", "mode"), [("detect_anomaly", (True, False)), ("deterministic", (False, True))]
)
def test_torch_is_told(flag: str, mode: tuple[bool, bool]) -> None:
    try:
        first = fit(limit_train_batches=2, **{flag: True})
        assert first.modes == {mode}
        assert first.batches == fit(limit_train_batches=2, **{flag: True}).batches
    finally:
        torch.use_deterministic_algorithms(False)


def test_benchmark_is_cudnns() -> None:
    trainer(benchmark=True)
    assert torch.backends.cudnn.benchmark
    trainer(benchmark=False)
    assert not torch.backends.cudnn.benchmark


@pytest.mark.parametrize("inference", [True, False])
def test_inference_mode_is_chosen(inference: bool) -> None:
    class Mode(Callback):
        on = None

        def on_validation_batch_end(self, *_: Any) -> None:
            self.on = torch.is_inference_mode_enabled()

    mode = Mode()
    trainer(mode, inference_mode=inference).validate(module(), datamodule=data())
    assert mode.on is inference


@pytest.mark.parametrize(
    "flags",
    [
        {"reload_dataloaders_every_n_epochs": 1},
        {"use_distributed_sampler": False},
        {"sync_batchnorm": True},
    ],
    ids=str,
)
def test_what_changes_nothing_here(flags: dict[str, Any], two_epochs: Seen) -> None:
    seen = fit(max_epochs=2, **flags)
    assert seen.batches == two_epochs.batches
    for mine, theirs in zip(seen.gradients[-1], two_epochs.gradients[-1], strict=True):
        assert torch.equal(mine, theirs)


def test_time_is_up(tmp_path: Path) -> None:
    class Slow(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            time.sleep(0.3)

    stopped = fit(Slow(), max_epochs=-1, max_time={"seconds": 1})
    assert 2 <= stopped.steps <= 4
    timer = of_lightning.Timer({"seconds": 1}, interval="epoch")
    assert fit(Slow(), timer, max_epochs=-1).steps == BATCHES
    assert timer.time_elapsed() > 1


def test_the_profiler_reports(tmp_path: Path) -> None:
    profiler = SimpleProfiler(tmp_path, "report")
    fit(profiler=profiler)
    assert "run_training_batch" in (tmp_path / "fit-report.txt").read_text()


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
    ran = trainer(
        RunCheckpoints(),
        plugins=[AsyncCheckpointIO()],
        enable_checkpointing=True,
        default_root_dir=tmp_path,
        max_epochs=2,
    )
    ran.fit(model, datamodule=data())
    for name, step in (("last", 16), ("previous", 8)):
        written = torch.load(tmp_path / "checkpoints" / f"{name}.ckpt", weights_only=True)
        assert written["global_step"] == step
    loaded = SparseAutoencoderModule.load_from_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)


def refused(capsys: pytest.CaptureFixture[str], says: str, *options: str) -> None:
    capsys.readouterr()
    assert main(["fit", *LINE, "--trainer.max_epochs=1", *options]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("palinka: error: ")
    assert says in line


def written(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("trial", ["fast_dev_run", "barebones"])
@pytest.mark.parametrize("sweep", [False, True])
def test_a_trial_leaves_no_files(
    trial: str, sweep: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [f"--trainer.{trial}=true", "--trainer.max_epochs=1"]
    if trial == "barebones":
        options.append("--trainer.log_every_n_steps=null")
    if sweep:
        options.append('--model.variants=[{"k": 4}, {"k": 8}]')
    assert main(["fit", *LINE, *options]) == 0
    assert written(tmp_path) == []
    assert "results in" not in capsys.readouterr().out


def callback(name: str, **arguments: Any) -> list[str]:
    given = [f"--trainer.callbacks.{key}={value}" for key, value in arguments.items()]
    return [f"--trainer.callbacks+={name}", *given]


REQUIRED = {of_lightning.ModelPruning: {"pruning_fn": "l1_unstructured"}}
REFUSALS = {
    **{
        kind.__name__: (
            callback(kind.__name__, **REQUIRED.get(kind, {})),
            "cannot work here: ",
        )
        for kind in UNSUPPORTED
    },
    "no such metric": (callback("EarlyStopping", monitor="val_loss"), "choose from val/"),
    "none of a variant": (
        [
            *callback("ModelCheckpoint", monitor="val/fvu"),
            '--model.variants=[{"k": 4}, {"k": 8}]',
        ],
        "choose from k=4/val/",
    ),
    "no such plateau": (
        [
            "--model.lr_scheduler=lightning.pytorch.cli.ReduceLROnPlateau",
            "--model.lr_scheduler.monitor=val_loss",
        ],
        "ReduceLROnPlateau monitors val_loss",
    ),
    "not validated": (
        [*callback("EarlyStopping", monitor="val/fvu"), "--trainer.limit_val_batches=0"],
        "not available",
    ),
    "save_last": (callback("ModelCheckpoint", save_last="true"), "leave it out"),
    "two of a kind": (callback("ModelCheckpoint") * 2, "more than one stateful callback"),
    "no logger": (
        [*callback("LearningRateMonitor"), "--trainer.logger=false"],
        "has no logger",
    ),
    "two schedules": (
        [
            *callback("GradientAccumulationScheduler", scheduling="{0: 2}"),
            "--trainer.accumulate_grad_batches=2",
        ],
        "remove",
    ),
    "bar": (
        [*callback("TQDMProgressBar"), *callback("RichProgressBar")],
        "only one progress bar",
    ),
    "checkpointing": (
        [*callback("ModelCheckpoint"), "--trainer.enable_checkpointing=false"],
        "enable_checkpointing=False",
    ),
    "val_check_interval": (["--trainer.val_check_interval=100"], "less than or equal"),
    "no interval": (["--trainer.val_check_interval=0"], "at least 1"),
    "no epochs": (["--trainer.check_val_every_n_epoch=0"], "at least 1"),
    "no accumulation": (["--trainer.accumulate_grad_batches=0"], "at least 1"),
    "fraction": (["--trainer.limit_train_batches=0.01"], "Please increase"),
    "negative": (["--trainer.overfit_batches=-1"], "invalid value -1"),
    "max_time": (["--trainer.max_time=2 s"], "DD:HH:MM:SS"),
    "profiler": (["--trainer.profiler=xla"], "torch_xla"),
    "devices": (["--trainer.devices=-1"], "should be an int > 0"),
    "strategy": (["--trainer.strategy=ddp_spawn"], "use trainer.strategy ddp"),
    "notebook": (["--trainer.strategy=ddp_notebook"], "use trainer.strategy ddp"),
    "deepspeed": (["--trainer.strategy=deepspeed"], "DeepSpeed"),
    "registry": (["--trainer.model_registry=mine"], "palinka export"),
    "barebones": (["--trainer.barebones=true"], "log_every_n_steps=1"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_is_refused_in_a_line(
    case: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options, says = REFUSALS[case]
    refused(capsys, says, *options)
    assert not any(path.endswith(".ckpt") for path in written(tmp_path))


def test_settings_with_enumerations_are_saved(tmp_path: Path) -> None:
    options = callback("Timer", duration="00:00:01:00")
    assert main(["fit", *LINE, "--trainer.max_steps=1", *options]) == 0
    (config,) = tmp_path.rglob("config.yaml")
    assert "interval: step" in config.read_text()


def test_a_run_lies_where_it_should_and_keeps_what_it_should(tmp_path: Path) -> None:
    options = ["--trainer.default_root_dir=there", "--trainer.enable_checkpointing=false"]
    assert main(["fit", *LINE, "--trainer.max_steps=1", *options]) == 0
    files = written(tmp_path)
    assert files
    assert all(path.startswith("there/") and not path.endswith(".ckpt") for path in files)


def test_early_stopping_stops() -> None:
    def stopping(**options: Any) -> of_lightning.EarlyStopping:
        return of_lightning.EarlyStopping(**{"monitor": "val/fvu", **options})

    assert fit(stopping(stopping_threshold=99.0), max_epochs=9).steps == 8
    assert fit(stopping(patience=2, min_delta=99.0), max_epochs=9).steps == 24
    assert fit(stopping(stopping_threshold=99.0), max_epochs=9, min_epochs=3).steps == 24
    assert fit(stopping(stopping_threshold=99.0), max_epochs=9, min_steps=12).steps == 12
    on_loss = stopping(monitor="loss/total", stopping_threshold=99.0, check_on_train_epoch_end=True)
    assert fit(on_loss, max_epochs=9, log_every_n_steps=1).steps == 8
    sweep = SweepModule({"a": module(4), "b": module(8)})
    of_one = stopping(monitor="b/val/fvu", stopping_threshold=99.0)
    assert fit(of_one, model=sweep, max_epochs=9).steps == 8


def test_model_checkpoints_keep_the_best_and_the_asked_for(tmp_path: Path) -> None:
    best = of_lightning.ModelCheckpoint(tmp_path / "best", monitor="val/fvu", save_top_k=2)
    steps = of_lightning.ModelCheckpoint(
        tmp_path / "steps", every_n_train_steps=3, save_top_k=-1, save_last=True
    )
    ran = trainer(
        best, steps, RunCheckpoints(), enable_checkpointing=True, max_epochs=3,
        default_root_dir=tmp_path, log_every_n_steps=1,
    )  # fmt: skip
    ran.fit(module(), datamodule=data())
    scores = {Path(path).name: float(score) for path, score in best.best_k_models.items()}
    assert len(scores) == 2
    assert min(scores.values()) == best.best_model_score
    kept = {path.name for path in (tmp_path / "steps").iterdir()}
    assert len(kept) == 3 * 8 // 3 + 1
    measured = trainer().validate(
        SparseAutoencoderModule.load_from_checkpoint(best.best_model_path),
        datamodule=data(),
        verbose=False,
    )
    assert measured[0]["val/fvu"] == pytest.approx(float(best.best_model_score), rel=1e-6)
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 24


def test_a_schedule_of_accumulation() -> None:
    scheduler = of_lightning.GradientAccumulationScheduler({0: 2, 1: 4, 2: 1})
    assert fit(scheduler, max_epochs=4).steps == 4 + 2 + 8 + 8


@pytest.mark.parametrize("sweep", [False, True])
def test_learning_rates_are_logged_as_they_were(sweep: bool, tmp_path: Path) -> None:
    def schedule(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.LinearLR(optimizer, 0.5, total_iters=4)

    def made(k: int) -> SparseAutoencoderModule:
        return module(k, lr_scheduler=schedule)

    logger = CSVLogger(tmp_path)
    monitor = of_lightning.LearningRateMonitor()
    model: Any = SweepModule({"a": made(4), "b": made(8)}) if sweep else made(8)
    fit(monitor, model=model, logger=logger, log_every_n_steps=1)
    names = ["lr-Adam/pg1", "lr-Adam/pg2"] if sweep else ["lr-Adam"]
    assert sorted(monitor.lrs) == names
    for name in names:
        assert monitor.lrs[name] == pytest.approx(
            [1e-3 * min(1.0, 0.5 + step / 8) for step in range(8)]
        )


def test_parts_can_be_frozen(tmp_path: Path) -> None:
    class Encoder(of_lightning.BaseFinetuning):
        def freeze_before_training(self, pl_module: LightningModule) -> None:
            self.freeze(pl_module.autoencoder.encoder)

        def finetune_function(
            self, pl_module: LightningModule, epoch: int, optimizer: torch.optim.Optimizer
        ) -> None:
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


def test_predictions_are_written_by_a_writer_of_ones_own() -> None:
    class Writer(of_lightning.BasePredictionWriter):
        def __init__(self) -> None:
            super().__init__("batch_and_epoch")
            self.rows: list[int] = []
            self.all: list[int] = []

        def write_on_batch_end(
            self, trainer: Any, pl_module: Any, prediction: Any, *_: Any
        ) -> None:
            self.rows.append(len(prediction))

        def write_on_epoch_end(
            self, trainer: Any, pl_module: Any, predictions: Any, *_: Any
        ) -> None:
            self.all += [len(prediction) for prediction in predictions]

    writer = Writer()
    trainer(writer).predict(module(), datamodule=data(), return_predictions=False)
    assert writer.rows == writer.all == [ROWS] * VALIDATED


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


def test_lightnings_own_throughput(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    fit(
        of_lightning.ThroughputMonitor(len, window_size=4),
        of_lightning.DeviceStatsMonitor(cpu_stats=True),
        logger=logger,
        log_every_n_steps=1,
    )
    assert len(logged(logger, "train/samples")) == BATCHES
    assert logged(logger, "DeviceStatsMonitor.on_train_batch_end/cpu_percent")


def test_lambdas_are_called() -> None:
    called: list[int] = []
    hook = of_lightning.LambdaCallback(
        on_train_batch_end=lambda trainer, *_: called.append(trainer.global_step)
    )
    fit(hook)
    assert called == list(range(1, 9))


@pytest.mark.parametrize("name", ["RichModelSummary", "ModelSummary"])
def test_a_summary_counts_the_parameters(
    name: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="lightning.pytorch.callbacks.model_summary"):
        fit(getattr(of_lightning, name)(max_depth=1), limit_train_batches=1)
    assert "32.8 K" in capfd.readouterr().out + caplog.text


@pytest.mark.parametrize("name", ["RichProgressBar", "TQDMProgressBar"])
def test_bars_show_the_metrics(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    fit(getattr(of_lightning, name)(), enable_progress_bar=True, log_every_n_steps=1)
    shown = capfd.readouterr()
    assert "loss/total" in shown.out + shown.err
