"""Latents divided over processes must be trained as one process trains them all.

What the processes compare among themselves, passes and gradients in float64, is in the script.
"""

import runpy
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn

from palinka.autoencoders import Autoencoder, KSparseAutoencoder
from palinka.errors import InputError
from palinka.training import SparseAutoencoderModule
from palinka.training.checkpoint import check_strategy

SCRIPT = Path(__file__).with_name("sharded_processes.py")
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(scope="module", params=["1x2", pytest.param("2x2", marks=pytest.mark.slow)])
def folder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, on_processes: Any
) -> Path:
    """What one process has found, named 1x1, and what several have, named devices."""
    folder = tmp_path_factory.mktemp(request.param)
    shares, slices = map(int, request.param.split("x"))
    with on_processes(SCRIPT, shares * slices, shares, slices, folder):
        runpy.run_path(str(SCRIPT))["main"](0, 1, 1, folder)
    for path in list(folder.glob(f"{request.param}*")):
        path.rename(folder / path.name.replace(request.param, "devices"))
    return folder


def found(folder: Path, run: str = "end") -> tuple[Any, Any]:
    one, several = (
        torch.load(folder / f"{name}.pt", weights_only=True) for name in ("1x1", "devices")
    )
    return one[run], several[run]


def test_gradients_are_those_of_one_process(folder: Path) -> None:
    one, several = found(folder)
    assert len(one["gradients"]) == 2
    torch.testing.assert_close(several["gradients"], one["gradients"], rtol=1e-5, atol=1e-7)


def test_every_logged_value_is_that_of_one_process(folder: Path) -> None:
    one, several = found(folder)
    assert "loss/total" in one["logged"][9]
    for step in (9, 19, 29, 39, 49):
        assert several["logged"][step] == pytest.approx(one["logged"][step], rel=1e-5)
    assert 0 < one["logged"][49]["sparsity/dead"] < 1


def test_validation_with_unequal_shares_is_that_of_one_process(folder: Path) -> None:
    one, several = found(folder)
    assert "val/fvu" in several["measured"]
    one_of_those = {name: one["measured"][name] for name in several["measured"]}
    assert several["measured"] == pytest.approx(one_of_those, rel=1e-5)


def test_a_checkpoint_holds_the_weights_of_one_process(folder: Path) -> None:
    for name in ("middle", "end"):
        one, several = (
            torch.load(folder / f"{run}-{name}.ckpt", weights_only=True)
            for run in ("1x1", "devices")
        )
        torch.testing.assert_close(several["state_dict"], one["state_dict"], **CLOSE)
        torch.testing.assert_close(several["optimizer_states"], one["optimizer_states"], **CLOSE)
        assert several["hyper_parameters"] == one["hyper_parameters"]


def test_resuming_on_as_many_devices_is_exact(folder: Path) -> None:
    end, again = (
        torch.load(folder / f"devices-{run}.ckpt", weights_only=True) for run in ("end", "again")
    )
    for name in ("state_dict", "optimizer_states"):
        torch.testing.assert_close(again[name], end[name], rtol=0, atol=0)
    losses = {run: found(folder, run)[1]["losses"] for run in ("end", "again")}
    assert losses["again"] == losses["end"][-len(losses["again"]) :]
    assert len(losses["again"]) == 30


def test_one_device_reads_the_checkpoint(folder: Path, tmp_path: Path) -> None:
    modules = [
        SparseAutoencoderModule.load_from_checkpoint(folder / f"{run}-end.ckpt")
        for run in ("1x1", "devices")
    ]
    x = torch.randn(5, 8)
    torch.testing.assert_close(modules[1](x), modules[0](x), rtol=1e-4, atol=1e-5)
    modules[1].autoencoder.save_pretrained(tmp_path)
    saved = Autoencoder.from_pretrained(tmp_path)
    assert torch.equal(saved.dictionary, modules[1].autoencoder.dictionary)


def test_one_device_goes_on_from_the_checkpoint(
    folder: Path, rows_data: Any, make_trainer: Any
) -> None:
    batch = torch.randn(32, 8)
    weights = []
    for run in ("1x1", "devices"):
        path = folder / f"{run}-middle.ckpt"
        module = SparseAutoencoderModule.load_from_checkpoint(path)
        trainer = make_trainer(max_steps=25, limit_val_batches=0)
        trainer.fit(module, rows_data(batch.repeat(50, 1), batch_size=32), ckpt_path=path)
        assert trainer.global_step == 25
        weights.append(module.autoencoder.state_dict())
    torch.testing.assert_close(weights[1], weights[0], **CLOSE)


def test_whole_rows_of_latents_cannot_be_predicted() -> None:
    module = SparseAutoencoderModule(KSparseAutoencoder(4))
    module._device_mesh = SimpleNamespace()  # type: ignore[assignment]
    module.trainer = SimpleNamespace(state=SimpleNamespace(fn=TrainerFn.PREDICTING))  # type: ignore[assignment]
    with pytest.raises(InputError, match=r"predict gives whole rows.*trainer\.devices 1"):
        module.configure_model()


@pytest.mark.parametrize(
    ("sizes", "in_parts", "message"),
    [
        ((2, 4), False, None),
        (("auto", 4), False, None),
        ((1, 4), False, "data_parallel_size 1 times tensor_parallel_size 4 .* which is 8"),
        ((2, 4), True, "set save_distributed_checkpoint to false"),
    ],
)
def test_a_strategy_is_refused_in_one_line(
    sizes: tuple[Any, Any], in_parts: bool, message: str | None
) -> None:
    strategy = ModelParallelStrategy(*sizes, save_distributed_checkpoint=in_parts)
    with pytest.raises(InputError, match=message) if message else nullcontext():
        check_strategy(strategy, 8)
    check_strategy(DDPStrategy(), 8)
