"""Training a transcoder: what it is given and what it is to give are two things throughout."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from palinka.autoencoders import (
    GatedAutoencoder,
    KSparseAutoencoder,
    ReLUAutoencoder,
    TopKAutoencoder,
)
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


def transcoder(**settings: Any) -> KSparseAutoencoder:
    torch.manual_seed(1)
    return KSparseAutoencoder(INPUT, 16, k=4, tied=False, output_dim=OUTPUT, **settings)


def test_the_loss_and_the_metrics_are_those_of_the_target(
    both: Tensor, rows_data: Any, make_trainer: MakeTrainer, recorder: Any
) -> None:
    module = SparseAutoencoderModule(
        transcoder(decoder_bias=True), sparsity_weight=0.1, decorrelation_weight=0.0
    )
    x, target = both[:, :INPUT], both[:, INPUT:]
    with torch.no_grad():
        reconstruction, latents = module.autoencoder(x)
        loss = (reconstruction - target).square().mean() + 0.1 * latents.abs().mean()
        fvu = (reconstruction - target).square().sum()
        fvu /= (target - target.mean(dim=0)).square().sum()
    trainer = make_trainer(max_steps=1, callbacks=[recorder])
    trainer.fit(module, rows_data(both))
    assert recorder.losses[0] == pytest.approx(float(loss), rel=1e-5)
    assert recorder.logged[0]["reconstruction/fvu"] == pytest.approx(float(fvu), rel=1e-5)

    with torch.no_grad():
        reconstruction, latents = module.autoencoder(x)
    (measured,) = trainer.validate(module, rows_data(both, 7), verbose=False)
    error = (reconstruction - target).square().sum()
    expected = float(error / (target - target.mean(dim=0)).square().sum())
    assert measured["val/fvu"] == pytest.approx(expected, rel=1e-5)
    assert measured["val/mse"] == pytest.approx(float(error) / both[:, INPUT:].numel(), rel=1e-5)
    cosine = torch.cosine_similarity(reconstruction, target).mean()
    assert measured["val/cosine"] == pytest.approx(float(cosine), rel=1e-5)
    latents_of_batches = trainer.predict(module, rows_data(both, 7))
    torch.testing.assert_close(torch.cat(latents_of_batches), latents)


def test_each_side_has_a_scaling_of_its_own_which_a_checkpoint_keeps(
    both: Tensor, rows_data: Any, statistics: Any, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    said = {
        "input_statistics": statistics(np.full(INPUT, 0.5), 2.0),
        "target_statistics": statistics(both[:, INPUT:].mean(dim=0).double().numpy(), 0.25),
        "source": {"site": "a", "target_site": "b"},
    }
    module = SparseAutoencoderModule(transcoder(), sparsity_weight=0.0, decorrelation_weight=0.0)
    trainer = make_trainer(max_steps=2)
    trainer.fit(module, rows_data(both, **said))
    path = tmp_path / "last.ckpt"
    trainer.save_checkpoint(path)

    back = SparseAutoencoderModule.load_from_checkpoint(path)
    assert back.autoencoder.is_transcoder
    x = both[:, :INPUT]
    inner = back.autoencoder
    latents = inner.encode((x - 0.5) * 2.0)
    torch.testing.assert_close(back.encode(x), latents)
    raw = inner.decode(latents) / 0.25 + both[:, INPUT:].mean(dim=0)
    torch.testing.assert_close(back.decode(latents), raw)
    torch.testing.assert_close(back(x).reconstruction, raw)
    assert "output_dim" not in settings_of(path)["autoencoder"]["init_args"]

    elsewhere = rows_data(both, **said | {"source": {"site": "a", "target_site": "c"}})
    with pytest.raises(InputError, match=r"trained with target site b, .* has target site c"):
        back.check_checkpoint(path, elsewhere, resume=False)
    plain = SparseAutoencoderModule(KSparseAutoencoder(INPUT, 16, k=4, tied=False))
    with pytest.raises(InputError, match="input_dim 8, latent_dim 16, output_dim 5"):
        plain.check_checkpoint(path, None, resume=False)


@pytest.mark.parametrize("kind", [ReLUAutoencoder, GatedAutoencoder])
def test_other_architectures_learn_the_target(
    kind: Any, both: Tensor, rows_data: Any, make_trainer: MakeTrainer
) -> None:
    torch.manual_seed(1)
    module = SparseAutoencoderModule(
        kind(INPUT, 32, output_dim=OUTPUT),
        sparsity_weight=0.0,
        decorrelation_weight=0.0,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=3e-2),
    )
    trainer = make_trainer(max_epochs=1, log_every_n_steps=50)
    trainer.fit(module, rows_data(both.repeat(100, 1), ROWS, validation=both))
    (measured,) = trainer.validate(module, rows_data(both), verbose=False)
    assert measured["val/fvu"] < 0.1


def test_what_begins_from_the_data_begins_from_the_target(
    both: Tensor, rows_data: Any, statistics: Any, make_trainer: MakeTrainer
) -> None:
    module = SparseAutoencoderModule(
        TopKAutoencoder(INPUT, 16, k=4, output_dim=OUTPUT),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0),
    )
    said = {
        "training_rows": lambda _: both,
        "input_statistics": statistics(np.zeros(INPUT), 3.0),
        "target_statistics": statistics(np.ones(OUTPUT), 0.5),
    }
    trainer = make_trainer(max_steps=1)
    trainer.fit(module, rows_data(both, **said))
    target = (both[:, INPUT:] - 1) * 0.5
    torch.testing.assert_close(module.autoencoder.decoder_bias, geometric_median(target))

    output = module(both[:, :INPUT]).reconstruction
    (measured,) = trainer.validate(module, rows_data(both, **said), verbose=False)
    legacy = (output - both[:, INPUT:]).square().sum() / both[:, INPUT:].square().sum()
    assert measured["val/fvu_legacy"] == pytest.approx(float(legacy), rel=1e-4)


def test_rows_without_a_target_are_refused(
    both: Tensor, rows_data: Any, make_trainer: MakeTrainer
) -> None:
    module = SparseAutoencoderModule(transcoder())
    with pytest.raises(InputError, match=r"target site.*must be 13"):
        make_trainer(max_steps=1).fit(module, rows_data(both[:, :INPUT]))
