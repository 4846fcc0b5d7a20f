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
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader

from palinka.autoencoders import BatchTopKAutoencoder, KSparseAutoencoder, TopKAutoencoder
from palinka.cli.trainer import Trainer
from palinka.errors import InputError
from palinka.training import SparseAutoencoderModule, SweepModule
from palinka.training.callbacks import LanguageModelMetrics, RunCheckpoints
from palinka.training.callbacks.checkpoints import FinalWeights, log_positions, rewind_logs

STEPS = 4  # in an epoch


class AtTheEnd(Callback):
    """Replaces the weights in a hook at the end of a fit or epoch."""

    def __init__(self, hook: str) -> None:
        setattr(self, hook, self._replace)

    def _replace(self, trainer: LightningTrainer, pl_module: LightningModule) -> None:
        with torch.no_grad():
            for parameter in pl_module.parameters():
                parameter.data.mul_(2.0).add_(0.01)


class Watch(Callback):
    """Keeps the directions after every step, and counts validations."""

    def __init__(self) -> None:
        self.directions: list[Tensor] = []
        self.validations = 0

    def on_train_batch_end(
        self,
        trainer: LightningTrainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        assert isinstance(pl_module, SparseAutoencoderModule | SweepModule)
        if isinstance(pl_module, SparseAutoencoderModule):
            self.directions.append(pl_module.autoencoder.dictionary.detach().clone())

    def on_validation_end(self, trainer: LightningTrainer, pl_module: LightningModule) -> None:
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
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[*callbacks, RunCheckpoints()],
        **{"max_epochs": epochs, "num_sanity_val_steps": 0, **options},
    )
    last = folder / "checkpoints" / "last.ckpt"
    trainer.fit(trained, loader(), loader(), ckpt_path=last if last.exists() else None)
    return trainer


def averaging(kind: type[Callback]) -> Callback:
    if kind is StochasticWeightAveraging:
        return StochasticWeightAveraging(swa_lrs=0.1, swa_epoch_start=1)
    return kind(decay=0.8) if kind is EMAWeightAveraging else kind()  # type: ignore[call-arg]


@pytest.mark.parametrize("autoencoder", [TopKAutoencoder, BatchTopKAutoencoder, KSparseAutoencoder])
@pytest.mark.parametrize(
    "replacing",
    [
        lambda: averaging(WeightAveraging),
        lambda: averaging(EMAWeightAveraging),
        lambda: averaging(StochasticWeightAveraging),
        lambda: AtTheEnd("on_train_end"),
        lambda: AtTheEnd("on_train_epoch_end"),
    ],
)
@pytest.mark.parametrize("options", [{}, {"max_steps": 2 * STEPS + 2, "val_check_interval": 3}])
def test_memory_checkpoint_and_metrics_are_of_one_autoencoder(
    options: dict[str, Any], replacing: Callable[[], Callback], autoencoder: Any, tmp_path: Path
) -> None:
    trained = module(autoencoder)
    trainer = fit(tmp_path, trained, replacing(), **options)
    stored = SparseAutoencoderModule.load_from_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    left = trained.autoencoder.state_dict()
    for name, tensor in stored.autoencoder.state_dict().items():
        assert torch.equal(tensor, left[name]), name
    norms = left["decoder_weight" if "decoder_weight" in left else "encoder.weight"].norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(len(norms)))
    if options and isinstance(replacing(), StochasticWeightAveraging):
        return  # it has put no average in place, and Lightning validates when it is time to
    printed = float(trainer.callback_metrics["val/fvu"])
    again = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    again.validate(stored, loader(), verbose=False)
    assert printed == pytest.approx(float(again.callback_metrics["val/fvu"]), rel=1e-5)


def test_the_average_is_of_all_steps_and_validated_once_an_epoch(tmp_path: Path) -> None:
    trained, watch = module(), Watch()
    fit(tmp_path, trained, watch, WeightAveraging())
    mean = torch.stack(watch.directions).mean(dim=0)
    assert float(mean.norm(dim=1).min()) < 0.99
    expected = torch.nn.functional.normalize(mean, dim=1)
    torch.testing.assert_close(trained.autoencoder.dictionary.detach(), expected)
    assert watch.validations == 3
    trained, watch = module(), Watch()
    fit(tmp_path / "stochastic", trained, watch, averaging(StochasticWeightAveraging))
    assert watch.validations == 4
    trained, watch = module(), Watch()
    fit(tmp_path / "plain", trained, watch, max_steps=6, val_check_interval=3)
    assert watch.validations == 1


@pytest.mark.parametrize("kind", [WeightAveraging, EMAWeightAveraging, StochasticWeightAveraging])
def test_a_run_that_averages_resumes_exactly(kind: type[Callback], tmp_path: Path) -> None:
    class Stop(Callback):
        def on_train_epoch_start(self, trainer: LightningTrainer, _: LightningModule) -> None:
            if trainer.current_epoch == 3:
                raise KeyboardInterrupt

    whole, cut, resumed = module(), module(), module()
    fit(tmp_path / "whole", whole, averaging(kind), epochs=5)
    with pytest.raises(SystemExit):
        fit(tmp_path / "cut", cut, averaging(kind), Stop(), epochs=5)
    fit(tmp_path / "cut", resumed, averaging(kind), epochs=5)
    for name, tensor in whole.autoencoder.state_dict().items():
        assert torch.equal(tensor, resumed.autoencoder.state_dict()[name]), name


@pytest.mark.parametrize("kind", [WeightAveraging, StochasticWeightAveraging])
def test_variants_of_a_sweep_are_averaged_as_in_runs_of_their_own(
    kind: type[Callback], tmp_path: Path
) -> None:
    sweep = SweepModule({"two": module(k=2), "three": module(k=3)})
    trainer = fit(tmp_path / "sweep", sweep, averaging(kind))
    for k, name in ((2, "two"), (3, "three")):
        alone = module(k=k)
        own = fit(tmp_path / name, alone, averaging(kind))
        stored = SparseAutoencoderModule.load_from_checkpoint(
            tmp_path / "sweep" / name / "checkpoints" / "last.ckpt"
        )
        for key, tensor in alone.autoencoder.state_dict().items():
            assert torch.equal(tensor, sweep.variants[name].autoencoder.state_dict()[key])
            assert torch.equal(tensor, stored.autoencoder.state_dict()[key])
        measured = trainer.callback_metrics[f"{name}/val/fvu"]
        assert measured == own.callback_metrics["val/fvu"]


def test_what_looks_at_the_weights_comes_after_what_replaces_them() -> None:
    given = [RunCheckpoints(), LanguageModelMetrics(), WeightAveraging()]
    trainer = Trainer(accelerator="cpu", logger=False, callbacks=given)
    kinds = [type(callback) for callback in trainer.callbacks]
    places = [kinds.index(kind) for kind in (WeightAveraging, FinalWeights, LanguageModelMetrics)]
    assert places == sorted(places)
    assert kinds[-1] is RunCheckpoints


def test_pruning_is_refused() -> None:
    with pytest.raises(InputError, match="ModelPruning cannot work here"):
        Trainer(accelerator="cpu", logger=False, callbacks=[ModelPruning("l1_unstructured")])


def test_rewinding_takes_back_what_came_after(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, "logs", version="version_0")
    trainer: Any = SimpleNamespace(is_global_zero=True, loggers=[logger])
    logger.log_metrics({"loss": 1.0}, step=0)
    sizes = log_positions(trainer)
    (file,) = Path(logger.log_dir).glob("events.*")
    assert sizes == {file.name: file.stat().st_size}
    before = file.read_bytes()

    logger.log_metrics({"loss": 2.0}, step=1)
    logger.finalize("success")
    assert len(file.read_bytes()) > len(before)
    later = file.with_name("events.out.tfevents.9999999999.host.1.0")
    later.write_bytes(b"of a run that was killed")
    other = file.with_name("hparams.yaml")
    other.write_text("k: 1")

    trainer.run_folder = file.parent
    logger = TensorBoardLogger(tmp_path, "logs", version="version_0")
    trainer.loggers = [logger, TensorBoardLogger(tmp_path, "others", version="version_0")]
    kept = tmp_path / "others/version_0/events.out.tfevents.1.host.1.0"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"of who knows whom")
    rewind_logs(trainer, sizes)
    assert kept.exists()
    assert file.read_bytes() == before
    assert not later.exists()
    assert other.exists()


def test_a_csv_file_keeps_its_rows_up_to_the_checkpoint(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, "logs", version=0)
    trainer: Any = SimpleNamespace(is_global_zero=True, loggers=[logger])
    assert log_positions(trainer) == {"metrics.csv": 0}
    logger.log_metrics({"loss": 1.0}, step=0)
    logger.log_metrics({"loss": 0.5}, step=1)
    positions = log_positions(trainer)
    assert positions == {"metrics.csv": 2}
    logger.log_metrics({"loss": 0.25, "val": 3.0}, step=2)  # a column more
    logger.finalize("success")

    resumed = CSVLogger(tmp_path, "logs", version=0)
    trainer.loggers = [resumed]
    rewind_logs(trainer, positions)
    resumed.log_metrics({"loss": 0.75}, step=2)
    resumed.finalize("success")
    path = tmp_path / "logs/version_0/metrics.csv"
    assert path.read_text().split() == ["loss,step,val", "1.0,0,", "0.5,1,", "0.75,2,"]
