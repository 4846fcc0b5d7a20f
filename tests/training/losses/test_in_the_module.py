"""Architectures with a loss of their own, trained, saved and loaded by the Lightning module."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from palinka.autoencoders import Autoencoder, GatedAutoencoder, JumpReLUAutoencoder, ReLUAutoencoder
from palinka.training import SparseAutoencoderModule
from palinka.training.losses import Objective, StepContext, loss_terms

MAKES: list[Callable[[], Autoencoder]] = [
    lambda: ReLUAutoencoder(8),
    lambda: ReLUAutoencoder(8, unit_norm=True),
    lambda: GatedAutoencoder(8),
    lambda: JumpReLUAutoencoder(8, bandwidth=0.5, initial_threshold=0.5),
    lambda: JumpReLUAutoencoder(8, bandwidth=0.5, sparsity="tanh"),
]


@pytest.mark.parametrize("make", MAKES)
def test_a_run_is_a_plain_loop_over_the_terms(
    make: Callable[[], Autoencoder], rows: Tensor, rows_data: Any, recorder: Any,
    make_trainer: Callable[..., Trainer], tmp_path: Path,
) -> None:  # fmt: skip
    torch.manual_seed(0)
    sae, plain = make(), make()
    plain.load_state_dict(sae.state_dict())
    weights: dict[str, Any] = {
        "sparsity_weight": 0.1,
        "decorrelation_weight": 0.01,
        "sparsity_warmup_steps": 3,
        "decorrelation_warmup_steps": 0,
    }
    trainer = make_trainer(max_steps=6, max_epochs=-1, callbacks=[recorder], limit_val_batches=0)
    module = SparseAutoencoderModule(sae, **weights)
    trainer.fit(module, rows_data(rows, batch_size=12))

    adam = torch.optim.Adam(plain.parameters(), lr=1e-4)
    expected = []
    for i in range(6):
        x = rows[12 * (i % 2) :][:12]
        loss = Objective(**weights)(loss_terms(plain, StepContext(x, x)), i).total
        adam.zero_grad()
        loss.backward()
        if plain.unit_norm:
            gradient, w = plain.dictionary.grad, plain.dictionary.detach()
            gradient -= (gradient * w).sum(dim=1, keepdim=True) * w
        adam.step()
        if plain.unit_norm:
            plain.dictionary.data /= plain.dictionary.data.norm(dim=1, keepdim=True)
        expected.append(loss.item())
    assert recorder.losses == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(dict(sae.state_dict()), dict(plain.state_dict()))

    path = tmp_path / "last.ckpt"
    trainer.save_checkpoint(path)
    loaded = SparseAutoencoderModule.load_from_checkpoint(path, map_location="cpu")
    assert type(loaded.autoencoder) is type(sae)
    assert loaded.autoencoder.config() == sae.config()
    assert torch.equal(loaded.encode(rows), module.encode(rows))
    assert torch.equal(loaded.firing.tokens_since, module.firing.tokens_since)
