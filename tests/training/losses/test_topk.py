"""LossTerms of TopK and BatchTopK against plain transcriptions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Trainer
from torch import Tensor

from palinka.autoencoders import BatchTopKAutoencoder, MatryoshkaAutoencoder, TopKAutoencoder
from palinka.errors import InputError
from palinka.training import SparseAutoencoderModule
from palinka.training.losses import StepContext, loss_terms

MakeTrainer = Callable[..., Trainer]
KINDS = [TopKAutoencoder, BatchTopKAutoencoder, MatryoshkaAutoencoder]


def normalized(made: Tensor, target: Tensor) -> Tensor:
    baseline = target.mean(dim=0).expand_as(target)
    return (made - target).square().sum() / (baseline - target).square().sum()


def largest(values: Tensor, k: int) -> Tensor:
    return values * (values >= values.sort(dim=-1, descending=True).values[..., k - 1, None])


def transcription(
    sae: TopKAutoencoder | BatchTopKAutoencoder, x: Tensor, dead: list[int], auxiliary_k: int
) -> tuple[Tensor, Tensor]:
    """The two losses of the papers, reconstruction and AuxK."""
    a = ((x - sae.decoder_bias) @ sae.encoder.weight.T + sae.encoder.bias).relu()
    if type(sae) is TopKAutoencoder:
        z = largest(a, sae.k)
    else:
        z = largest(a.flatten(), sae.k * len(x)).view_as(a)
    made = z @ sae.decoder_weight + sae.decoder_bias
    residual = (x - made).detach()
    if not dead:
        return normalized(made, x), torch.zeros((), dtype=x.dtype)
    of_dead = largest(a[:, dead], min(auxiliary_k, len(dead)))
    return normalized(made, x), normalized(of_dead @ sae.decoder_weight[dead], residual)


def mask(dead: list[int], latents: int) -> Tensor:
    found = torch.zeros(latents, dtype=torch.bool)
    found[dead] = True
    return found


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(KINDS[:2]), st.integers(0, 1000), st.data())
def test_they_are_the_papers(kind: Any, seed: int, data: st.DataObject) -> None:
    d, n = data.draw(st.integers(2, 6)), data.draw(st.integers(2, 9))
    k = data.draw(st.integers(1, n))
    dead = sorted(data.draw(st.sets(st.integers(0, n - 1))))
    auxiliary_k = data.draw(st.integers(1, n))
    torch.manual_seed(seed)
    sae = kind(d, n, k).double()
    for parameter in sae.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(5, d, dtype=torch.float64)
    found = loss_terms(sae, StepContext(x, x, dead=lambda: mask(dead, n), auxiliary_k=auxiliary_k))
    reconstruction, auxiliary = transcription(sae, x, dead, auxiliary_k)
    torch.testing.assert_close(found.reconstruction, reconstruction)
    assert found.auxiliary is not None
    torch.testing.assert_close(found.auxiliary, auxiliary)
    assert found.sparsity == found.output.latents.mean()
    expected = torch.autograd.grad(reconstruction + auxiliary, list(sae.parameters()))
    actual = torch.autograd.grad(found.reconstruction + found.auxiliary, list(sae.parameters()))
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_auxiliary_loss_teaches_the_dead_alone_encoder_and_decoder(kind: Any) -> None:
    torch.manual_seed(0)
    sae = kind(8, 40, 2)
    x = torch.randn(64, 8)
    dead = mask(list(range(10, 30)), 40)
    found = loss_terms(sae, StepContext(x, x, dead=lambda: dead))
    found.auxiliary.backward()
    for gradient in (sae.encoder.weight.grad, sae.encoder.bias.grad[:, None], sae.dictionary.grad):
        assert torch.equal(gradient.abs().sum(dim=1) > 0, dead)
    # And in its sum with the loss, what the live ones get is the loss's.
    sae.zero_grad()
    found = loss_terms(sae, StepContext(x, x, dead=lambda: dead))
    found.reconstruction.backward()
    alone = sae.dictionary.grad.clone()
    sae.zero_grad()
    found = loss_terms(sae, StepContext(x, x, dead=lambda: dead))
    (found.reconstruction + found.auxiliary).backward()
    torch.testing.assert_close(sae.dictionary.grad[~dead], alone[~dead])
    assert not torch.equal(sae.dictionary.grad[dead], alone[dead])


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_the_dead_are_those_of_differences(kind: Any) -> None:
    torch.manual_seed(0)
    sae = kind(4, 40, 3).double()
    x = torch.randn(6, 4, dtype=torch.float64)
    dead = mask([1, 4, 5, 30], 40)
    # AuxK sees the residual as given, so that it is checked in the dead latents alone.
    sae.decoder_bias.requires_grad_(False)

    def loss(rows: Tensor) -> tuple[Tensor, Tensor]:
        sae.encoder.weight.data[dead] = rows.detach()
        weight = torch.where(dead[:, None], torch.zeros_like(sae.encoder.weight), 0.0)
        weight = weight.index_put((dead.nonzero()[:, 0],), rows)
        weight = weight + sae.encoder.weight.detach() * ~dead[:, None]
        given = {"encoder.weight": weight}
        return torch.func.functional_call(LossTerms(sae, dead), given, (x,))

    class LossTerms(torch.nn.Module):
        def __init__(self, sae: Any, dead: Tensor) -> None:
            super().__init__()
            self.encoder, self.sae, self.dead = sae.encoder, sae, dead

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            found = loss_terms(self.sae, StepContext(x, x, dead=lambda: self.dead))
            assert found.auxiliary is not None
            return found.reconstruction, found.auxiliary

    rows = sae.encoder.weight.detach()[dead] * 0.01  # too small to be chosen
    assert torch.autograd.gradcheck(loss, (rows.requires_grad_(),))


@pytest.mark.parametrize("kind", KINDS)
def test_there_is_no_nan_where_nothing_is_dead_or_left(kind: Any) -> None:
    torch.manual_seed(0)
    sae = kind(4, 40, 3)
    x = torch.randn(6, 4)
    none = loss_terms(sae, StepContext(x, x, dead=lambda: mask([], 40)))
    assert none.auxiliary == 0.0
    assert loss_terms(sae, StepContext(x, x)).auxiliary is None
    for rows in (torch.zeros(6, 4), torch.ones(6, 4), x[:1]):  # of no variance
        found = loss_terms(sae, StepContext(rows, rows, dead=lambda: mask([3], 40)))
        assert found.reconstruction.isfinite()
        assert found.auxiliary.isfinite()
        (found.reconstruction + found.auxiliary).backward()
    assert all(parameter.grad.isfinite().all() for parameter in sae.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_training_and_its_checkpoint(
    kind: Any, rows: Tensor, rows_data: Any, recorder: Any, make_trainer: MakeTrainer,
    tmp_path: Path,
) -> None:  # fmt: skip
    """Also: a run that is stopped and goes on is the run that was never stopped."""

    def module() -> SparseAutoencoderModule:
        torch.manual_seed(0)
        return SparseAutoencoderModule(
            kind(8, 40, 2),
            sparsity_weight=0.0,
            decorrelation_weight=0.01,
            dead_after_tokens=30,
            optimizer=lambda p: torch.optim.Adam(p, lr=0.02),
        )

    whole = module()
    data = rows_data(rows, batch_size=8, training_rows=lambda count: rows[:count] + 1.0)
    trainer = make_trainer(max_epochs=9, callbacks=[recorder])
    trainer.fit(whole, data)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    assert recorder.losses[-1] < 0.8 * recorder.losses[0]
    auxiliary = [step["loss/auxiliary"] for step in recorder.logged]
    assert auxiliary[0] == 0.0
    assert max(auxiliary) > 0.0
    assert not any(name.startswith("val/loss") for name in trainer.callback_metrics)
    torch.testing.assert_close(whole.autoencoder.dictionary.norm(dim=1), torch.ones(40))

    stopped = make_trainer(max_steps=12)
    stopped.fit(module(), data)
    stopped.save_checkpoint(tmp_path / "middle.ckpt")
    resumed = module()
    make_trainer(max_epochs=9).fit(resumed, data, ckpt_path=tmp_path / "middle.ckpt")
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)

    again = SparseAutoencoderModule.load_from_checkpoint(tmp_path / "end.ckpt", weights_only=True)
    assert again.autoencoder.config() == whole.autoencoder.config()
    assert not again.training
    assert torch.equal(again(rows).latents, whole.eval()(rows).latents)
    if kind is not TopKAutoencoder:
        assert again.autoencoder.threshold > 0
        l0 = (again(rows).latents > 0).sum(dim=1).float().mean()
        assert trainer.callback_metrics["val/l0"] == pytest.approx(l0.item())
        # Loaded to be used, and trained on all the same, by the batch.
        make_trainer(max_epochs=1).fit(again, data)
        assert again.autoencoder.training


def test_a_number_of_dead_latents_that_cannot_be() -> None:
    with pytest.raises(InputError, match="auxiliary_k must be an integer of at least 1, got 0"):
        SparseAutoencoderModule(TopKAutoencoder(4), auxiliary_k=0)
