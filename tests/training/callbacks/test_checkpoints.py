from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.callbacks import (
    Callback,
    EMAWeightAveraging,
    StochasticWeightAveraging,
    WeightAveraging,
)  # fmt: skip
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader

from palinka.autoencoders import BatchTopKAutoencoder, KSparseAutoencoder, TopKAutoencoder
from palinka.cli.trainer import Trainer
from palinka.training import SparseAutoencoderModule, SweepModule
from palinka.training.callbacks import LanguageModelMetrics, RunCheckpoints
from palinka.training.callbacks.checkpoints import FinalWeights, log_positions, rewind_logs

STEPS = 4  # in an epoch


class AtTheEnd(Callback):
    """Replaces the weights in a hook at the end of a fit or epoch."""

    def __init__(self, hook: str) -> None:
        setattr(self, hook, self._replace)

    @torch.no_grad()
    def _replace(self, trainer: LightningTrainer, pl_module: LightningModule) -> None:
        for parameter in pl_module.parameters():
            parameter.data.mul_(2.0).add_(0.01)


class Watch(Callback):
    """Keeps the directions after every step, and counts validations."""

    def __init__(self) -> None:
        self.directions: list[Tensor] = []
        self.validations = 0

    def on_train_batch_end(self, trainer: LightningTrainer, module: Any, *_: Any) -> None:
        self.directions.append(module.autoencoder.dictionary.detach().clone())

    def on_validation_end(self, *_: Any) -> None:
        self.validations += 1


def loader() -> DataLoader[Any]:
    rows = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    return DataLoader(rows.split(64 // STEPS), batch_size=None)  # type: ignore[arg-type]


def module(kind: Callable[..., Any] = TopKAutoencoder, **options: Any) -> SparseAutoencoderModule:
    torch.manual_seed(0)
    autoencoder = kind(8, unit_norm=True, **options)
    return SparseAutoencoderModule(autoencoder, optimizer=lambda p: torch.optim.Adam(p, lr=0.1))


def fit(
    folder: Path, trained: LightningModule, *callbacks: Callback, epochs: int = 3, **options: Any
) -> LightningTrainer:
    trainer = Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, max_epochs=epochs,
        num_sanity_val_steps=0, callbacks=[*callbacks, RunCheckpoints()], **options,
    )  # fmt: skip
    last = folder / "checkpoints" / "last.ckpt"
    trainer.fit(trained, loader(), loader(), ckpt_path=last if last.exists() else None)
    return trainer


def same(one: SparseAutoencoderModule, other: SparseAutoencoderModule) -> bool:
    left, right = one.autoencoder.state_dict(), other.autoencoder.state_dict()
    return all(torch.equal(left[name], right[name]) for name in left | right)


AVERAGING: dict[str, Callable[[], Callback]] = {
    "mean": WeightAveraging,
    "exponential": lambda: EMAWeightAveraging(decay=0.8),
    "stochastic": lambda: StochasticWeightAveraging(swa_lrs=0.1, swa_epoch_start=1),
}
UNEVEN = {"max_steps": 2 * STEPS + 2, "val_check_interval": 3}
REPLACING = {
    **AVERAGING,
    "end of fit": lambda: AtTheEnd("on_train_end"),
    "end of epoch": lambda: AtTheEnd("on_train_epoch_end"),
}


@pytest.mark.parametrize("replacing", REPLACING)
@pytest.mark.parametrize(
    ("autoencoder", "options"),
    [(TopKAutoencoder, UNEVEN), (BatchTopKAutoencoder, {}), (KSparseAutoencoder, UNEVEN)],
)
def test_memory_checkpoint_and_metrics_are_of_one_autoencoder(
    options: dict[str, Any], replacing: str, autoencoder: Any, tmp_path: Path
) -> None:
    trained = module(autoencoder)
    trainer = fit(tmp_path, trained, REPLACING[replacing](), **options)
    stored = SparseAutoencoderModule.load_from_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    assert same(stored, trained)
    norms = trained.autoencoder.dictionary.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(len(norms)))
    if options and replacing == "stochastic":
        return  # it has put no average in place, and Lightning validates when it is time to
    printed = float(trainer.callback_metrics["val/fvu"])
    again = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    again.validate(stored, loader(), verbose=False)
    assert printed == pytest.approx(float(again.callback_metrics["val/fvu"]), rel=1e-5)


@pytest.mark.parametrize(
    ("averaging", "options", "validations"),
    [("mean", {}, 3), ("stochastic", {}, 4), (None, {"max_steps": 6, "val_check_interval": 3}, 1)],
)
def test_the_average_is_of_all_steps_and_validated_once_an_epoch(
    averaging: str | None, options: dict[str, int], validations: int, tmp_path: Path
) -> None:
    trained, watch = module(), Watch()
    fit(tmp_path, trained, watch, *([AVERAGING[averaging]()] if averaging else []), **options)
    assert watch.validations == validations
    if averaging == "mean":
        mean = torch.stack(watch.directions).mean(dim=0)
        assert float(mean.norm(dim=1).min()) < 0.99
        expected = torch.nn.functional.normalize(mean, dim=1)
        torch.testing.assert_close(trained.autoencoder.dictionary.detach(), expected)


@pytest.mark.parametrize("averaging", AVERAGING)
def test_a_run_that_averages_resumes_exactly(averaging: str, tmp_path: Path) -> None:
    class Stop(Callback):
        def on_train_epoch_start(self, trainer: LightningTrainer, *_: Any) -> None:
            if trainer.current_epoch == 3:
                raise KeyboardInterrupt

    whole, cut, resumed = module(), module(), module()
    fit(tmp_path / "whole", whole, AVERAGING[averaging](), epochs=5)
    with pytest.raises(SystemExit):
        fit(tmp_path / "cut", cut, AVERAGING[averaging](), Stop(), epochs=5)
    fit(tmp_path / "cut", resumed, AVERAGING[averaging](), epochs=5)
    assert same(whole, resumed)


def test_a_run_that_is_interrupted_tells_what_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(Callback):
        def on_train_epoch_start(self, trainer: LightningTrainer, *_: Any) -> None:
            if trainer.current_epoch == self.epoch:
                raise KeyboardInterrupt

    told: list[str] = []
    monkeypatch.setattr("palinka.training.callbacks.checkpoints.rank_zero_info", told.append)
    stop = Stop()
    for stop.epoch in (0, 1):
        with pytest.raises(SystemExit):
            fit(tmp_path, module(), stop, epochs=2)
    assert "stopped after step 0, before the first checkpoint: nothing is saved" in told[0]
    assert "checkpoints come every 1,000 steps and after each epoch" in told[0]
    assert "the same command with --ckpt_path last resumes there" in told[1]


@pytest.mark.parametrize("averaging", ["mean", "stochastic"])
def test_variants_of_a_sweep_are_averaged_as_in_runs_of_their_own(
    averaging: str, tmp_path: Path
) -> None:
    sweep = SweepModule({"two": module(k=2), "three": module(k=3)})
    trainer = fit(tmp_path / "sweep", sweep, AVERAGING[averaging]())
    for k, name in ((2, "two"), (3, "three")):
        alone = module(k=k)
        own = fit(tmp_path / name, alone, AVERAGING[averaging]())
        path = tmp_path / "sweep" / name / "checkpoints" / "last.ckpt"
        assert same(alone, sweep.variants[name])
        assert same(alone, SparseAutoencoderModule.load_from_checkpoint(path))
        measured = trainer.callback_metrics[f"{name}/val/fvu"]
        assert measured == own.callback_metrics["val/fvu"]


def test_what_looks_at_the_weights_comes_after_what_replaces_them() -> None:
    given = [RunCheckpoints(), LanguageModelMetrics(), WeightAveraging()]
    trainer = Trainer(accelerator="cpu", logger=False, callbacks=given)
    kinds = [type(callback) for callback in trainer.callbacks]
    places = [kinds.index(kind) for kind in (WeightAveraging, FinalWeights, LanguageModelMetrics)]
    assert places == sorted(places)
    assert kinds[-1] is RunCheckpoints


def test_rewinding_takes_back_what_came_after(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, "logs", version="version_0")
    trainer: Any = SimpleNamespace(loggers=[logger])
    logger.log_metrics({"loss": 1.0}, step=0)
    sizes = log_positions(trainer)
    (file,) = Path(logger.log_dir).glob("events.*")
    before = file.read_bytes()
    assert sizes == {file.name: len(before)}
    logger.log_metrics({"loss": 2.0}, step=1)
    logger.finalize("success")
    assert len(file.read_bytes()) > len(before)
    later, other = (file.with_name(n) for n in ("events.out.tfevents.9.host.1.0", "hparams.yaml"))
    elsewhere = tmp_path / "others/version_0/events.out.tfevents.1.host.1.0"
    elsewhere.parent.mkdir(parents=True)
    for path in (later, other, elsewhere):
        path.write_bytes(b"of a run that was killed, or of another")

    trainer.run_folder = file.parent
    trainer.loggers = [
        TensorBoardLogger(tmp_path, name, version="version_0") for name in ("logs", "others")
    ]
    rewind_logs(trainer, sizes)
    assert file.read_bytes() == before
    assert [path.exists() for path in (later, other, elsewhere)] == [False, True, True]


def test_a_csv_file_keeps_its_rows_up_to_the_checkpoint(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, "logs", version=0)
    trainer: Any = SimpleNamespace(loggers=[logger])
    assert log_positions(trainer) == {"metrics.csv": 0}
    for step in range(2):
        logger.log_metrics({"loss": 1.0 - step / 2}, step=step)
    positions = log_positions(trainer)
    assert positions == {"metrics.csv": 2}
    logger.log_metrics({"loss": 0.25, "val": 3.0}, step=2)  # a column more
    logger.finalize("success")

    trainer.loggers = [CSVLogger(tmp_path, "logs", version=0)]
    rewind_logs(trainer, positions)
    trainer.loggers[0].log_metrics({"loss": 0.75}, step=2)
    trainer.loggers[0].finalize("success")
    path = tmp_path / "logs/version_0/metrics.csv"
    assert path.read_text().split() == ["loss,step,val", "1.0,0,", "0.5,1,", "0.75,2,"]
