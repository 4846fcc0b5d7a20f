import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from palinka.autoencoders import KSparseAutoencoder
from palinka.errors import InputError
from palinka.training import SparseAutoencoderModule
from palinka.training.checkpoint import DurableCheckpointIO, settings_of

MakeTrainer = Callable[..., Trainer]
Saved = tuple[SparseAutoencoderModule, Path]
COMMANDS = ["fit", "validate", "test", "predict"]


def same_state(a: torch.nn.Module, b: torch.nn.Module) -> None:
    torch.testing.assert_close(a.state_dict(), b.state_dict(), rtol=0, atol=0)


@pytest.fixture
def saved(
    tmp_path: Path, rows: Tensor, rows_data: Any, statistics: Any, make_trainer: MakeTrainer
) -> Saved:
    """A module after three steps on the cache `one`, and its checkpoint."""
    sae = KSparseAutoencoder(8, 20, 3, tied=False, decoder_bias=True)
    module = SparseAutoencoderModule(sae, 0.5, 1e-3, 7, 9, dead_after_tokens=11)
    data = rows_data(
        rows,
        batch_size=8,
        input_statistics=statistics(np.ones(8), 2.0),
        cache_identity="one",
        source={"site": "blocks.3.mlp.pre"},
    )
    trainer = make_trainer(max_epochs=1)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "module.ckpt")
    return module, tmp_path / "module.ckpt"


def test_it_loads_without_arguments_or_pickles(saved: Saved, rows: Tensor) -> None:
    module, path = saved
    torch.load(path, weights_only=True)
    again = SparseAutoencoderModule.load_from_checkpoint(path, weights_only=True)
    same_state(again, module)
    assert again.hparams == module.hparams
    assert again.objective == module.objective
    assert again.dead_after_tokens == 11
    assert again.autoencoder.config() == module.autoencoder.config()
    assert torch.equal(again(rows).reconstruction, module(rows).reconstruction)
    assert again.scaling.scale == 2.0
    assert again.firing.tokens_since.any()
    other = KSparseAutoencoder(8, 20, 5, tied=False, decoder_bias=True)
    given = SparseAutoencoderModule.load_from_checkpoint(path, autoencoder=other)
    assert given.autoencoder.k == 5
    same_state(given, module)
    settings = settings_of(path)
    assert settings["sparsity_weight"] == 0.5
    assert settings["autoencoder"]["class_path"].endswith(".KSparseAutoencoder")
    assert settings["autoencoder"]["init_args"]["k"] == 3
    assert "input_dim" not in settings["autoencoder"]["init_args"]


def test_a_resumed_run_is_the_run_that_was_never_stopped(
    tmp_path: Path, rows: Tensor, rows_data: Any, statistics: Any, make_trainer: MakeTrainer
) -> None:
    def data(mean: float) -> Any:
        said = statistics(np.full(8, mean), 2.0)
        return rows_data(rows, batch_size=8, input_statistics=said, cache_identity="one")

    def module(sae: KSparseAutoencoder) -> SparseAutoencoderModule:
        return SparseAutoencoderModule(
            sae,
            sparsity_warmup_steps=5,
            lr_scheduler=lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
        )

    first = KSparseAutoencoder(8, unit_norm=True)
    whole, half = module(copy.deepcopy(first)), module(copy.deepcopy(first))
    make_trainer(max_epochs=4).fit(whole, data(1.0))
    stopped = make_trainer(max_epochs=2)
    stopped.fit(half, data(1.0))
    path = tmp_path / "half.ckpt"
    stopped.save_checkpoint(path)
    # The scaling that the weights were trained with wins over what the data says now.
    resumed = module(KSparseAutoencoder(8, unit_norm=True))
    make_trainer(max_epochs=4).fit(resumed, data(3.0), ckpt_path=path)
    same_state(resumed, whole)
    loaded = SparseAutoencoderModule.load_from_checkpoint(path)
    make_trainer(max_epochs=1).fit(loaded, data(3.0))
    for each in (resumed, loaded):
        assert each.scaling.mean.unique().tolist() == [1.0]


def run(make_trainer: MakeTrainer, command: str, module: Any, data: Any, checkpoint: Path) -> None:
    getattr(make_trainer(max_epochs=2), command)(module, data, ckpt_path=checkpoint)


def test_only_training_needs_the_same_cache_and_every_command_the_same_site(
    saved: Saved, rows: Tensor, rows_data: Any, make_trainer: MakeTrainer
) -> None:
    module, path = saved
    other = rows_data(rows, cache_identity="two", source={"site": "blocks.3.mlp.pre"})
    with pytest.raises(InputError, match=r"on the cache one.* two: .*other text or model"):
        run(make_trainer, "fit", module, other, path)
    for command in COMMANDS[1:]:
        run(make_trainer, command, module, other, path)
    # Data that says nothing of itself is taken at its word.
    run(make_trainer, "fit", module, rows_data(rows), path)
    other = rows_data(rows, cache_identity="one", source={"site": "blocks.1.mlp.pre"})
    for command in COMMANDS:
        with pytest.raises(InputError, match=r"site blocks\.3\.mlp\.pre.*blocks\.1\.mlp\.pre"):
            run(make_trainer, command, module, other, path)


def test_a_checkpoint_of_another_width_or_kind(
    saved: Saved, rows: Tensor, rows_data: Any, make_trainer: MakeTrainer
) -> None:
    more = {"tied": False, "decoder_bias": True, "encoder_bias": True}
    for sae, expected in (
        (KSparseAutoencoder(9, 20), "latent_dim 20, but .* input_dim 9, latent_dim 20"),
        (KSparseAutoencoder(8, 21), "input_dim 8, latent_dim 20, but .* latent_dim 21"),
        (KSparseAutoencoder(8, 20), r"'decoder_bias' is of shape \(8,\) in"),
        (KSparseAutoencoder(8, 20, **more), "the weight 'encoder.bias' is absent in"),
    ):
        with pytest.raises(InputError, match=expected):
            run(make_trainer, "fit", SparseAutoencoderModule(sae), rows_data(rows), saved[1])


def test_activations_that_are_no_numbers_are_not_saved(
    tmp_path: Path, rows: Tensor, rows_data: Any, make_trainer: MakeTrainer
) -> None:
    rows[0, 0] = float("nan")
    saver = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=1)
    trainer = make_trainer(
        max_epochs=1, log_every_n_steps=50, enable_checkpointing=True, callbacks=[saver]
    )
    with pytest.raises(InputError, match="NaN or Inf"):
        trainer.fit(SparseAutoencoderModule(KSparseAutoencoder(8)), rows_data(rows, batch_size=6))
    assert not list((tmp_path / "saved").glob("*.ckpt"))


def test_files_that_are_no_checkpoint(saved: Saved, tmp_path: Path) -> None:
    torn, other, text = tmp_path / "torn.ckpt", tmp_path / "other.ckpt", tmp_path / "text.ckpt"
    torn.write_bytes(saved[1].read_bytes()[:5000])
    torch.save({"weights": torch.zeros(2)}, other)
    text.write_text("no checkpoint")
    for path in (torn, other, text, tmp_path / "nowhere.ckpt"):
        with pytest.raises(InputError, match=path.name):
            settings_of(path)


def test_a_file_is_durable_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, path = DurableCheckpointIO(), tmp_path / "made" / "last.ckpt"
    there: list[list[str]] = []
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", lambda _: there.append([f.name for f in path.parent.iterdir()]))
        files.save_checkpoint({"weights": torch.arange(3), "step": 4}, path)
    assert there == [["last.ckpt.tmp"], ["last.ckpt"]]
    found = files.load_checkpoint(path)
    assert found["step"] == 4
    assert torch.equal(found["weights"], torch.arange(3))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.save_checkpoint({"step": 2}, path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


class Canary:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("it ran",)


def test_objects_are_not_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "last.ckpt"
    torch.save({"canary": Canary()}, path)
    with pytest.raises(InputError, match="not a complete palinka checkpoint"):
        DurableCheckpointIO().load_checkpoint(path, weights_only=False)
    assert "it ran" not in capsys.readouterr().out
