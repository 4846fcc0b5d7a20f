"""Metrics under every precision that Lightning offers, against float64 arithmetic by hand."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from palinka.autoencoders import (
    Autoencoder,
    BatchTopKAutoencoder,
    GatedAutoencoder,
    JumpReLUAutoencoder,
    KSparseAutoencoder,
    MatryoshkaAutoencoder,
    ReLUAutoencoder,
    TopKAutoencoder,
)
from palinka.errors import InputError
from palinka.training import SparseAutoencoderModule, module

MakeTrainer = Callable[..., Trainer]
WIDTH, LATENTS, ROWS = 6, 64, 1100
ARCHITECTURES = (
    KSparseAutoencoder,
    TopKAutoencoder,
    BatchTopKAutoencoder,
    MatryoshkaAutoencoder,
    ReLUAutoencoder,
    GatedAutoencoder,
    JumpReLUAutoencoder,
)
PRECISIONS = ("32-true", "64-true", "16-true", "bf16-true", "16-mixed", "bf16-mixed")
BATCHES = (4, 1024)
QUICK = {
    ("bf16-true", KSparseAutoencoder, 4),
    ("bf16-true", BatchTopKAutoencoder, 1024),
    ("16-true", TopKAutoencoder, 1024),
    ("bf16-mixed", BatchTopKAutoencoder, 1024),
}
ALL = [
    pytest.param(*one, marks=() if one in QUICK else pytest.mark.slow)
    for one in product(PRECISIONS, ARCHITECTURES, BATCHES)
]


def by_hand(target: Tensor, reconstruction: Tensor, latents: Tensor) -> dict[str, float]:
    x, y, z = (t.detach().double() for t in (target, reconstruction, latents))
    error = (y - x).square().sum()
    lengths = x.norm(dim=1) * y.norm(dim=1)
    fvu = float(error / (x - x.mean(dim=0)).square().sum())
    return {
        "mse": float(error / x.numel()),
        "fvu": fvu,
        "explained_variance": 1.0 - fvu,
        "fvu_legacy": float(error / x.square().sum()),
        "cosine": float(torch.where(lengths > 0, (x * y).sum(dim=1) / lengths, 0.0).mean()),
        "l0": float((z != 0).double().sum(dim=1).mean()),
        "l1": float(z.abs().sum(dim=1).mean()),
        "dead": float((z == 0).all(dim=0).double().mean()),
    }


def activations() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(ROWS, WIDTH, generator=generator) @ torch.randn(
        WIDTH, WIDTH, generator=generator
    )


@pytest.mark.parametrize(("precision", "kind", "batch"), ALL)
def test_what_is_measured_is_what_was_computed(
    precision: str,
    kind: Callable[..., Autoencoder],
    batch: int,
    rows_data: Any,
    make_trainer: MakeTrainer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    trained = SparseAutoencoderModule(kind(WIDTH, LATENTS), decorrelation_weight=0.0)
    data = rows_data(activations(), batch_size=batch)
    steps: list[tuple[dict[str, float], dict[str, Tensor]]] = []

    def measure_batch(x: Tensor, output: Any, latent_dim: int, sharding: Any) -> dict[str, Tensor]:
        measured = original(x, output, latent_dim, sharding)
        latents = output.latents if isinstance(output.latents, Tensor) else output.latents.dense()
        steps.append((by_hand(x, output.reconstruction, latents), measured))
        return measured

    original = module.measure_batch
    monkeypatch.setattr(module, "measure_batch", measure_batch)
    if precision != "16-true":
        make_trainer(max_steps=2, precision=precision, limit_val_batches=0).fit(trained, data)
        assert len(steps) == 2
    for expected, measured in steps:
        for name, value in measured.items():
            assert value.dtype == torch.float64
            assert float(value) == pytest.approx(
                expected[name.partition("/")[2]], rel=1e-9, abs=1e-12
            )
    parts = []
    trained.autoencoder.register_forward_hook(
        lambda _, given, output: parts.append((*given, *output))
    )
    trainer = make_trainer(precision=precision, callbacks=[])
    trainer.validate(trained, data, verbose=False)
    expected = by_hand(*(torch.cat(part) for part in zip(*parts, strict=True)))
    for name, value in expected.items():
        assert float(trainer.callback_metrics[f"val/{name}"]) == pytest.approx(
            value, rel=1e-6, abs=1e-6
        )


def test_statistics_of_the_input_keep_their_digits(
    rows_data: Any, statistics: Any, make_trainer: MakeTrainer
) -> None:
    rows = activations()
    mean = 100.0 + torch.arange(WIDTH) / 3
    trained = SparseAutoencoderModule(KSparseAutoencoder(WIDTH))
    data = rows_data(rows, input_statistics=statistics(mean.double().numpy(), 1 / 3))
    make_trainer(max_steps=1, precision="bf16-true", limit_val_batches=0).fit(trained, data)
    assert torch.equal(trained.scaling.mean, mean)
    assert float(trained.scaling.scale) == pytest.approx(1 / 3, rel=1e-7)
    assert trained.autoencoder.dictionary.dtype == torch.bfloat16
    assert trained(rows).reconstruction.dtype == torch.float32


def test_weights_of_float16_are_not_trained(rows_data: Any, make_trainer: MakeTrainer) -> None:
    trained = SparseAutoencoderModule(KSparseAutoencoder(WIDTH))
    with pytest.raises(InputError, match="float16 weights have too little range") as refusal:
        make_trainer(max_steps=1, precision="16-true").fit(trained, rows_data(activations()))
    assert "learning rate" not in str(refusal.value)
