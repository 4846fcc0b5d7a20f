"""Training a transcoder: what it is given and what it is to give are two things throughout."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from palinka.autoencoders import KSparseAutoencoder, TopKAutoencoder
from palinka.autoencoders.topk import geometric_median
from palinka.errors import InputError
from palinka.training import SparseAutoencoderModule
from palinka.training.checkpoint import settings_of

MakeTrainer = Callable[..., Trainer]
ROWS, INPUT, OUTPUT = 24, 8, 5


@pytest.fixture
def both() -> Tensor:
    """Rows of an input and a target that is made from it."""
    torch.manual_seed(0)
    x = torch.randn(ROWS, INPUT)
    return torch.cat([x, torch.tanh(x @ torch.randn(INPUT, OUTPUT)) + 2], dim=1)


def transcoder(kind: Any = KSparseAutoencoder, lr: float = 1e-4, **settings: Any) -> Any:
    """A module without penalties."""
    torch.manual_seed(1)
    if kind is KSparseAutoencoder:
        settings = {"k": 4, "tied": False, **settings}
    return SparseAutoencoderModule(
        kind(INPUT, 32, output_dim=OUTPUT, **settings),
        sparsity_weight=0.0,
        decorrelation_weight=0.0,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=lr),
    )


def test_the_loss_and_the_metrics_are_those_of_the_target(
    both: Tensor, rows_data: Any, make_trainer: MakeTrainer, recorder: Any
) -> None:
    module = transcoder(decoder_bias=True)
    x, target = both[:, :INPUT], both[:, INPUT:]
    variance = (target - target.mean(dim=0)).square().sum()
    before = module.autoencoder(x).reconstruction.detach()
    trainer = make_trainer(max_steps=1, callbacks=[recorder])
    trainer.fit(module, rows_data(both))
    error = (before - target).square()
    assert recorder.losses[0] == pytest.approx(float(error.mean()), rel=1e-5)
    fvu = recorder.logged[0]["reconstruction/fvu"]
    assert fvu == pytest.approx(float(error.sum() / variance), rel=1e-5)

    with torch.no_grad():
        reconstruction, latents = module.autoencoder(x)
    (measured,) = trainer.validate(module, rows_data(both, 7), verbose=False)
    error = (reconstruction - target).square()
    assert measured["val/fvu"] == pytest.approx(float(error.sum() / variance), rel=1e-5)
    assert measured["val/mse"] == pytest.approx(float(error.mean()), rel=1e-5)
    torch.testing.assert_close(torch.cat(trainer.predict(module, rows_data(both, 7))), latents)


def test_each_side_has_a_scaling_of_its_own_which_a_checkpoint_keeps(
    both: Tensor, rows_data: Any, statistics: Any, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    said = {
        "input_statistics": statistics(np.full(INPUT, 0.5), 2.0),
        "target_statistics": statistics(both[:, INPUT:].mean(dim=0).double().numpy(), 0.25),
        "source": {"site": "a", "target_site": "b"},
    }
    trainer, path = make_trainer(max_steps=2), tmp_path / "last.ckpt"
    trainer.fit(transcoder(), rows_data(both, **said))
    trainer.save_checkpoint(path)

    back = SparseAutoencoderModule.load_from_checkpoint(path)
    assert back.autoencoder.is_transcoder
    x = both[:, :INPUT]
    latents = back.autoencoder.encode((x - 0.5) * 2.0)
    torch.testing.assert_close(back.encode(x), latents)
    raw = back.autoencoder.decode(latents) / 0.25 + both[:, INPUT:].mean(dim=0)
    torch.testing.assert_close(back.decode(latents), raw)
    torch.testing.assert_close(back(x).reconstruction, raw)
    assert "output_dim" not in settings_of(path)["autoencoder"]["init_args"]

    elsewhere = rows_data(both, **said | {"source": {"site": "a", "target_site": "c"}})
    with pytest.raises(InputError, match=r"trained with target_site b, the data has c"):
        back.check_checkpoint(path, elsewhere, resume=False)
    plain = SparseAutoencoderModule(KSparseAutoencoder(INPUT, 32, k=4, tied=False))
    with pytest.raises(InputError, match="input_dim 8, latent_dim 32, output_dim 5"):
        plain.check_checkpoint(path, None, resume=False)


def test_what_begins_from_the_data_begins_from_the_target(
    both: Tensor, rows_data: Any, statistics: Any, make_trainer: MakeTrainer
) -> None:
    module = transcoder(TopKAutoencoder, lr=0.0, k=4)
    said = {
        "training_rows": lambda _: both,
        "input_statistics": statistics(np.zeros(INPUT), 3.0),
        "target_statistics": statistics(np.ones(OUTPUT), 0.5),
    }
    trainer = make_trainer(max_steps=1)
    trainer.fit(module, rows_data(both, **said))
    x, target = both[:, :INPUT], both[:, INPUT:]
    median = geometric_median((target - 1) * 0.5)
    torch.testing.assert_close(module.autoencoder.decoder_bias.detach(), median)

    output = module(x).reconstruction.detach()
    (measured,) = trainer.validate(module, rows_data(both, **said), verbose=False)
    legacy = float((output - target).square().sum() / target.square().sum())
    assert measured["val/fvu_legacy"] == pytest.approx(legacy, rel=1e-4)
    with pytest.raises(InputError, match=r"target site.*must be 13"):
        make_trainer(max_steps=1).fit(module, rows_data(x))
    both[3, -1] = float("nan")
    with pytest.raises(InputError, match="NaN or Inf"):
        trainer.validate(module, rows_data(both, **said), verbose=False)
