"""A fit by lists of latents is the fit by matrices of them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from palinka.autoencoders import Autoencoder, KSparseAutoencoder, TopKAutoencoder
from palinka.autoencoders.kernels import dispatch
from palinka.training import SparseAutoencoderModule
from palinka.training.losses import StepContext, loss_terms

MakeTrainer = Callable[..., Trainer]
D, N, K = 6, 120, 4
KINDS: dict[str, tuple[Callable[[], Autoencoder], dict[str, Any]]] = {
    "tied": (lambda: KSparseAutoencoder(D, N, K), {}),
    "untied with biases and unit norm": (
        lambda: KSparseAutoencoder(
            D, N, K, tied=False, encoder_bias=True, decoder_bias=True, unit_norm=True
        ),
        {},
    ),
    "a transcoder": (
        lambda: KSparseAutoencoder(D, N, K, tied=False, decoder_bias=True, output_dim=D - 1),
        {},
    ),
    "TopK with dead latents": (
        lambda: TopKAutoencoder(D, N, K),
        {"dead_after_tokens": 40, "auxiliary_k": 3},
    ),
}


def fit(
    make_trainer: MakeTrainer,
    make_rows: Callable[..., Any],
    recorder: Any,
    kind: str,
    dtype: torch.dtype,
) -> tuple[list[float], list[dict[str, float]], dict[str, Tensor]]:
    make, options = KINDS[kind]
    torch.manual_seed(0)
    autoencoder = make().to(dtype)
    module = SparseAutoencoderModule(
        autoencoder, optimizer=lambda p: torch.optim.Adam(p, lr=0.01), **options
    ).to(dtype)
    width = D + (D - 1 if autoencoder.is_transcoder else 0)
    rows = torch.randn(160, width, dtype=dtype)
    trainer = make_trainer(max_epochs=2, log_every_n_steps=1, callbacks=[recorder])
    trainer.fit(module, make_rows(rows, 16))
    return recorder.losses, recorder.logged, dict(module.state_dict())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_same_fit(
    make_trainer: MakeTrainer,
    rows_data: Callable[..., Any],
    recorder: Any,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    dtype: torch.dtype,
) -> None:
    dense = fit(make_trainer, rows_data, type(recorder)(), kind, dtype)
    monkeypatch.setattr(dispatch, "SPARSE_ELEMENTS", 1)
    sparse = fit(make_trainer, rows_data, type(recorder)(), kind, dtype)
    assert len(dense[0]) == 20
    exact = dtype == torch.float64
    tolerance = {"rtol": 1e-10, "atol": 1e-10} if exact else {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(sparse[0], dense[0], **tolerance)
    for one, other in zip(sparse[1], dense[1], strict=True):
        assert one == pytest.approx(other, rel=1e-8 if exact else 1e-3)
    torch.testing.assert_close(sparse[2], dense[2], **tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_the_fit_was_one_by_lists(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(dispatch, "SPARSE_ELEMENTS", 1)
    autoencoder = KINDS[kind][0]()
    x = torch.randn(16, D)
    latents = loss_terms(autoencoder, StepContext(x, x[:, : autoencoder.output_dim])).output.latents
    assert not isinstance(latents, Tensor)


def test_a_class_of_ones_own_is_not_passed_over() -> None:
    class Doubled(KSparseAutoencoder):
        def decode(self, latents: Tensor) -> Tensor:
            return 2 * super().decode(latents)

    x = torch.randn(5, D)
    doubled = Doubled(D, N, K)
    torch.testing.assert_close(
        loss_terms(doubled, StepContext(x, x)).output.reconstruction, doubled(x).reconstruction
    )
