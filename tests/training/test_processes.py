"""Several processes must find what one finds, with rows or latents divided among them.

What the processes compare among themselves, passes and gradients in float64, is in the script.
"""

import runpy
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

from palinka.autoencoders import Autoencoder
from palinka.errors import InputError
from palinka.training import SparseAutoencoderModule
from palinka.training.checkpoint import check_strategy

SCRIPT = Path(__file__).with_name("processes.py")
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
OnProcesses = Callable[..., AbstractContextManager[None]]


def one_and_several(
    run: str, shares: int, slices: int, folder: Path, on_processes: OnProcesses
) -> list[dict[str, Any]]:
    """What one process has found, and what several have."""
    with on_processes(SCRIPT, shares * slices, run, shares, slices, folder):
        runpy.run_path(str(SCRIPT))["main"](0, run, 1, 1, folder)
    names = ("1x1", f"{shares}x{slices}")
    return [torch.load(folder / f"{name}.pt", weights_only=True) for name in names]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, on_processes: OnProcesses) -> list[Any]:
    return one_and_several("data_parallel", 2, 1, tmp_path_factory.mktemp("two"), on_processes)


@pytest.mark.parametrize("latent_dim", ["48", "6"])
def test_two_processes_train_as_one(found: list[dict[str, Any]], latent_dim: str) -> None:
    one, two = (each[latent_dim] for each in found)
    assert one["penalty"][0] > 0
    torch.testing.assert_close(two["penalty"], one["penalty"], rtol=1e-10, atol=1e-12)
    assert len(one["logged"]) == len(two["logged"]) == 20
    assert "loss/total" in one["logged"][2]
    for step in (2, 5, 8, 11):
        assert two["logged"][step] == pytest.approx(one["logged"][step], rel=1e-9)
    assert "val/fvu" in one["measured"]
    assert two["measured"] == pytest.approx(one["measured"], rel=1e-9)
    torch.testing.assert_close(two["states"], one["states"], rtol=1e-9, atol=1e-12)
    if latent_dim == "48":
        assert 0 < one["logged"][11]["sparsity/dead"] < 1
        assert all(state["firing.tokens_since"].unique().numel() > 1 for state in one["states"])


def test_what_chooses_from_the_batch_and_begins_from_the_data(found: list[Any]) -> None:
    assert found[1]["thresholds"] == found[0]["thresholds"]
    one, two = (each["nested"] for each in found)
    torch.testing.assert_close(two["state"], one["state"], rtol=1e-9, atol=1e-12)
    for mine, theirs in zip(two["logged"], one["logged"], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-9)
    assert any(logged["loss/auxiliary"] > 0 for logged in one["logged"])
    assert one["thresholds"][0] > 0
    assert two["thresholds"] == 2 * [two["thresholds"][0]]


@pytest.fixture(scope="module", params=["1x2", pytest.param("2x2", marks=pytest.mark.slow)])
def sharded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, on_processes: Any
) -> tuple[list[Any], list[Path]]:
    """What one process and several have found, and the prefixes of their checkpoints."""
    folder = tmp_path_factory.mktemp(request.param)
    shares, slices = map(int, request.param.split("x"))
    found = one_and_several("sharded", shares, slices, folder, on_processes)
    return found, [folder / "1x1", folder / request.param]


def checkpoint(prefix: Path, name: str) -> Any:
    return torch.load(f"{prefix}-{name}.ckpt", weights_only=True)


def test_sharded_latents_are_trained_as_by_one_process(sharded: tuple[Any, Any]) -> None:
    one, several = (each["end"] for each in sharded[0])
    assert len(one["gradients"]) == 2
    torch.testing.assert_close(several["gradients"], one["gradients"], rtol=1e-5, atol=1e-7)
    assert "loss/total" in one["logged"][3]
    for step in (3, 7, 11, 15, 19):
        assert several["logged"][step] == pytest.approx(one["logged"][step], rel=1e-5)
    assert 0 < one["logged"][19]["sparsity/dead"] < 1
    assert "val/fvu" in several["measured"]
    one_of_those = {name: one["measured"][name] for name in several["measured"]}
    assert several["measured"] == pytest.approx(one_of_those, rel=1e-5)
    for name in ("middle", "end"):
        one, several = (checkpoint(prefix, name) for prefix in sharded[1])
        for state in ("state_dict", "optimizer_states"):
            torch.testing.assert_close(several[state], one[state], **CLOSE)
        assert several["hyper_parameters"] == one["hyper_parameters"]


def test_resuming_on_as_many_devices_is_exact(sharded: tuple[Any, Any]) -> None:
    (_, several), (_, prefix) = sharded
    for name in ("state_dict", "optimizer_states"):
        end, again = (checkpoint(prefix, run)[name] for run in ("end", "again"))
        torch.testing.assert_close(again, end, rtol=0, atol=0)
    assert len(several["again"]["losses"]) == 12
    assert several["again"]["losses"] == several["end"]["losses"][-12:]


def test_one_device_reads_the_checkpoint_and_goes_on_from_it(
    sharded: tuple[Any, Any], rows_data: Any, make_trainer: Any, tmp_path: Path
) -> None:
    x, batch = torch.randn(5, 8), torch.randn(32, 8)
    outputs, weights = [], []
    for prefix in sharded[1]:
        module = SparseAutoencoderModule.load_from_checkpoint(f"{prefix}-end.ckpt")
        outputs.append(module(x))
        module.autoencoder.save_pretrained(tmp_path / prefix.name)
        saved = Autoencoder.from_pretrained(tmp_path / prefix.name)
        assert torch.equal(saved.dictionary, module.autoencoder.dictionary)
        path = f"{prefix}-middle.ckpt"
        module = SparseAutoencoderModule.load_from_checkpoint(path)
        trainer = make_trainer(max_steps=13, limit_val_batches=0)
        trainer.fit(module, rows_data(batch.repeat(20, 1), batch_size=32), ckpt_path=path)
        assert trainer.global_step == 13
        weights.append(module.autoencoder.state_dict())
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weights[1], weights[0], **CLOSE)


def test_a_strategy_is_refused_in_one_line() -> None:
    for fine in (ModelParallelStrategy(2, 4, False), ModelParallelStrategy("auto", 4, False)):
        check_strategy(fine, 8)
    check_strategy(DDPStrategy(), 8)
    with pytest.raises(InputError, match=r"size 1 times tensor_parallel_size 4 .* which is 8"):
        check_strategy(ModelParallelStrategy(1, 4, False), 8)
    with pytest.raises(InputError, match="set trainer"):
        check_strategy(ModelParallelStrategy(2, 4, True), 8)
