import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.trainer.states import TrainerFn

from palinka.autoencoders import BatchTopKAutoencoder
from palinka.training import SparseAutoencoderModule, SweepModule
from palinka.training.callbacks.base import VariantLogger
from palinka.training.callbacks.summary import final_report, log_locations, sweep_report


def made(*loggers: Any, **given: Any) -> Any:
    state = {"fast_dev_run": 0, "barebones": False, "global_step": 9, "loggers": list(loggers)}
    given = {"lightning_module": None, **given}
    return SimpleNamespace(**state, **given)


def report(folder: str, split: str = "val", **metrics: float) -> list[str]:
    path = Path(folder)
    logger = TensorBoardLogger(path.parent, "", version=path.name)
    analyses = SimpleNamespace(headlines={"one": ["one: p 0.5"]})
    trainer = made(logger, callback_metrics=metrics, callbacks=[analyses])
    return final_report(trainer, split).splitlines()


def test_measured_rows_come_in_order_with_their_intervals_and_others_are_left_out() -> None:
    bounds = {"test_interval/kl/low": 0.01, "test_interval/kl/high": 0.03}
    bounds["test_interval/documents"] = 32.0
    given = {"test/kl": 0.02, "test/l0": 32.0, "test/dead": 0.25, "something/else": 1.0}
    speed = {"throughput/tokens_per_second": 12345.6}
    lines = report("logs/version_0", "test", **given, **bounds, **speed)
    assert lines[1:-3] == [
        "  active per token (L0)        32 latents",
        "  never active                 25 % of latents on this text",
        "  KL(clean ‖ spliced)        0.02 nats per token [0.01, 0.03]",
        "  training speed           12,346 tokens per second when last logged",
        "  in brackets: 95 % intervals over 32 documents",
        "",
        "  one: p 0.5",
    ]


@pytest.mark.parametrize(("l0", "far"), [(13.0, True), (30.0, False)])
def test_an_l0_of_batch_topk_that_is_far_from_k_is_explained(l0: float, far: bool) -> None:
    module = SimpleNamespace(autoencoder=BatchTopKAutoencoder(8, 64, k=32))
    metrics = {"val/l0": l0}
    trainer = made(callback_metrics=metrics, callbacks=[], lightning_module=module, log_dir="x")
    trainer.default_root_dir = "x"
    assert ("L0 is not k = 32" in final_report(trainer)) == far


@pytest.mark.parametrize(("center", "scale"), [(0.0, 1.0), (0.0, 2.0), (1.0, 1.0), (1.0, 2.0)])
def test_units_name_the_activations_that_were_measured(center: float, scale: float) -> None:
    module = SparseAutoencoderModule(BatchTopKAutoencoder(4, 8, k=2))
    module.scaling.set(torch.full((4,), center), scale)
    expected = {(0, 1): "raw", (0, 2): "scaled", (1, 1): "centered", (1, 2): "centered and scaled"}
    metrics = {"val/mse": 0.5, "val/cosine": 0.25}
    trainer = made(callback_metrics=metrics, callbacks=[], lightning_module=module, run_folder="x")
    mse, cosine = final_report(trainer).splitlines()[1:3]
    assert mse.endswith(f" 0.5 per number, of {expected[center, scale]} activations")
    assert cosine.endswith(f" 0.25 of {expected[center, scale]} activations")


@pytest.mark.parametrize("fn", [TrainerFn.FITTING, TrainerFn.VALIDATING])
@pytest.mark.parametrize(("fvu", "worse"), [(4.988, True), (1.0, False), (math.nan, False)])
def test_an_fvu_above_that_of_the_mean_is_remarked_on(
    fvu: float, worse: bool, fn: TrainerFn
) -> None:
    module = SparseAutoencoderModule(BatchTopKAutoencoder(4, 8, k=2))
    sweep = SweepModule({"a": module, "b": SparseAutoencoderModule(BatchTopKAutoencoder(4, 8))})
    state = {"state": SimpleNamespace(fn=fn), "callbacks": [], "run_folder": "x"}
    one = made(callback_metrics={"val/fvu": fvu}, lightning_module=module, **state)
    both = {"a/val/fvu": torch.tensor(0.5), "b/val/fvu": torch.tensor(fvu)}
    several = made(callback_metrics=both, lightning_module=sweep, **state)
    for text in (final_report(one), sweep_report(several, sweep)):
        remarks = [line for line in text.splitlines() if "worse than predicting the mean" in line]
        assert len(remarks) == worse
        assert all("trainer.max_epochs" in line for line in remarks)
        assert all(("data.site" in line) == (fn == TrainerFn.VALIDATING) for line in remarks)


def test_the_folder_is_shown_as_one_would_type_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here = report(str(tmp_path / "lightning_logs" / "version_3"))
    assert here[-1].endswith("tensorboard --logdir lightning_logs")
    elsewhere = report("/some where/logs/version_0")
    assert elsewhere[-1].endswith("tensorboard --logdir '/some where/logs'")


class StandIn(WandbLogger):
    """As it is when a run has been logged, without the library."""

    def __init__(self, folder: Path) -> None:
        self._run = SimpleNamespace(dir=str(folder))

    experiment = property(lambda self: self._run)  # type: ignore[assignment]


def test_a_run_ends_with_the_files_of_each_logger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    others = (SimpleNamespace(save_dir=folder) for folder in (None, "runs"))
    wandb = StandIn(tmp_path / "wandb/run-1/files")
    trainer = made(CSVLogger("csv", version=0), wandb, *others, run_folder=tmp_path / "mine")
    (tmp_path / "mine/analyses").mkdir(parents=True)
    (tmp_path / "mine/checkpoints").mkdir()
    (tmp_path / "mine/checkpoints/last.ckpt").touch()
    assert log_locations(trainer) == [
        "",
        "results in   mine",
        "checkpoint in   mine/checkpoints/last.ckpt",
        "findings in   mine/analyses",
        "metrics in   csv/lightning_logs/version_0/metrics.csv",
        "StandIn in   wandb/run-1",
        "SimpleNamespace in   runs",
    ]
    board = TensorBoardLogger("tb", "", version=3)
    trainer.loggers = [board, VariantLogger(board, "k=4")]
    assert log_locations(trainer)[4:] == ["look at the curves with   tensorboard --logdir tb"]
