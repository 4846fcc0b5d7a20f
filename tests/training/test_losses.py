"""Losses against plain transcriptions of the spec's page and of the papers."""

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from palinka.autoencoders import (
    Autoencoder,
    AutoencoderOutput,
    BatchTopKAutoencoder,
    GatedAutoencoder,
    JumpReLUAutoencoder,
    KSparseAutoencoder,
    MatryoshkaAutoencoder,
    ReLUAutoencoder,
    TopKAutoencoder,
)
from palinka.errors import InputError
from palinka.training import decorrelation_loss, reconstruction_loss, sparsity_loss
from palinka.training.losses import LossTerms, Objective, StepContext, linear_warmup, loss_terms

TOPK = [TopKAutoencoder, BatchTopKAutoencoder, MatryoshkaAutoencoder]


def test_each_is_its_definition() -> None:
    torch.manual_seed(0)
    x, x_hat = torch.randn(2, 2, 5, 4)
    latents = torch.randn(2, 5, 9)
    differences = zip(x.flatten().tolist(), x_hat.flatten().tolist(), strict=True)
    expected = sum((a - b) ** 2 for a, b in differences) / 40
    assert reconstruction_loss(x_hat, x).item() == pytest.approx(expected)
    assert sparsity_loss(latents).item() == pytest.approx(latents.abs().sum().item() / 90)
    covariance = torch.cov(latents.reshape(10, 9).T)
    expected = covariance.square().sum() - covariance.diagonal().square().sum()
    assert decorrelation_loss(latents).item() == pytest.approx(expected.item())
    with pytest.raises(InputError, match="at least 2 rows"):
        decorrelation_loss(torch.randn(6))


def test_low_precision_is_averaged_in_single() -> None:
    torch.manual_seed(0)
    latents = torch.rand(300, 300).bfloat16()
    exact = (latents.double() - (latents + 1).double()).square().mean().item()
    for loss, expected in [
        (sparsity_loss(latents), latents.double().mean().item()),
        (reconstruction_loss(latents, latents + 1), exact),
    ]:
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected, rel=1e-6)
    x = torch.randn(300, 16)
    for sae in (
        ReLUAutoencoder(16, 512, unit_norm=True),
        JumpReLUAutoencoder(16, 2048, bandwidth=0.5),
    ):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = loss_terms(sae, StepContext(x, x))
        assert found.sparsity.dtype == found.reconstruction.dtype == torch.float32
        of_each = found.output.latents.double()
        of_each = of_each if isinstance(sae, ReLUAutoencoder) else (of_each > 0).double()
        torch.testing.assert_close(
            found.sparsity.double(), of_each.sum() / 300.0, rtol=1e-5, atol=0
        )


def test_the_total_is_the_weighted_sum_and_each_penalty_warms_up_by_itself() -> None:
    torch.manual_seed(0)
    x, output = torch.randn(6, 4), AutoencoderOutput(torch.randn(6, 4), torch.randn(6, 9))
    sparsity, decorrelation = sparsity_loss(output.latents), decorrelation_loss(output.latents)
    terms = LossTerms(output, reconstruction_loss(output.reconstruction, x), sparsity)
    for step, *shares in [(0, 0, 0), (5, 0.5, 0.05), (10, 1, 0.1), (200, 1, 1)]:
        losses = Objective(2.0, 3.0, 10, 100)(terms, step)
        assert losses["reconstruction"] == terms.reconstruction
        torch.testing.assert_close(losses["sparsity"], shares[0] * 2.0 * sparsity)
        torch.testing.assert_close(losses["decorrelation"], shares[1] * 3.0 * decorrelation)
        torch.testing.assert_close(losses.total, torch.stack(list(losses.values())).sum())
    assert [linear_warmup(step, 4) for step in range(6)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert linear_warmup(0, 0) == 1.0
    one_row = LossTerms(AutoencoderOutput(x[:1], output.latents[:1]), sparsity, sparsity)
    assert Objective(1.0, 0.0)(one_row, 0)["decorrelation"] == 0.0

    # An auxiliary loss has the paper's weight, or the given one.
    found = loss_terms(GatedAutoencoder(4), StepContext(x, x))
    assert Objective(1.0, 0.0)(found, 0)["auxiliary"] == found.auxiliary
    told = Objective(1.0, 0.0, auxiliary_weight=0.25)(found, 0)
    assert told["auxiliary"] == 0.25 * found.auxiliary


def relu_loss(sae: ReLUAutoencoder, x: Tensor, target: Tensor, weight: float) -> Tensor:
    """Row by row, the paper's loss with the width's mean in place of its sum."""
    total = torch.zeros((), dtype=x.dtype)
    for row, wanted in zip(x, target, strict=True):
        f = torch.relu(sae.encoder.weight @ (row - sae.decoder_bias) + sae.encoder.bias)
        given = f @ sae.decoder_weight + sae.decoder_bias
        total = total + ((given - wanted) ** 2).sum() / len(wanted)
        for j in range(len(f)):
            norm = 1.0 if sae.unit_norm else torch.sqrt((sae.decoder_weight[j] ** 2).sum())
            total = total + weight * f[j] * norm
    return total / len(x)


def gated_loss(sae: GatedAutoencoder, x: Tensor, target: Tensor, weight: float) -> Tensor:
    """The paper's loss, the frozen decoder a copy made beforehand; means in place of sums."""
    frozen, frozen_bias = sae.decoder_weight.data.clone(), sae.decoder_bias.data.clone()
    w_gate = sae.encoder.weight
    w_mag = torch.exp(sae.log_magnitude)[:, None] * w_gate
    gate = (x - sae.decoder_bias) @ w_gate.T + sae.gate_bias
    magnitude = torch.relu((x - sae.decoder_bias) @ w_mag.T + sae.magnitude_bias)
    reconstruction = ((gate > 0) * magnitude) @ sae.decoder_weight + sae.decoder_bias
    by_gate = torch.relu(gate) @ frozen + frozen_bias
    norms = 1.0 if sae.unit_norm else sae.decoder_weight.norm(dim=1)
    return (
        ((target - reconstruction) ** 2).mean()
        + weight * (torch.relu(gate) * norms).sum(dim=1).mean()
        + ((target - by_gate) ** 2).mean()
    )


def jumprelu_loss(sae: JumpReLUAutoencoder, x: Tensor, target: Tensor, weight: float) -> Tensor:
    """The pseudo-code in the paper's appendix."""

    def with_pseudo_derivative(value: Tensor, slope: Tensor) -> Tensor:
        """`value`, whose derivative by the threshold is `slope`."""
        return value + slope.detach() * (threshold - threshold.detach())

    threshold = torch.exp(sae.log_threshold)
    fixed, width = threshold.detach(), sae.bandwidth
    pre = (x - sae.decoder_bias) @ sae.encoder.weight.T + sae.encoder.bias
    kernel = (((pre - fixed) / width).abs() < 0.5).to(pre.dtype)
    magnitudes = with_pseudo_derivative(pre * (pre > fixed), -(fixed / width) * kernel)
    reconstruction = magnitudes @ sae.decoder_weight + sae.decoder_bias
    if sae.sparsity == "l0":
        count = with_pseudo_derivative((pre > fixed).to(pre.dtype), -(1.0 / width) * kernel)
    else:
        norms = sae.decoder_weight.norm(dim=1)
        count = torch.tanh(sae.tanh_scale * magnitudes * (1.0 if sae.unit_norm else norms))
    error = ((reconstruction - target) ** 2).sum(dim=-1) / x.shape[-1]
    return (error + weight * count.sum(dim=-1)).mean()


@pytest.mark.parametrize(
    ("kind", "transcription", "options"),
    [
        (ReLUAutoencoder, relu_loss, {}),
        (GatedAutoencoder, gated_loss, {}),
        (JumpReLUAutoencoder, jumprelu_loss, {"sparsity": "l0"}),
        (JumpReLUAutoencoder, jumprelu_loss, {"sparsity": "tanh", "tanh_scale": 1.5}),
    ],
)
@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 6), st.integers(1, 8), st.booleans(), st.floats(0.05, 2.0), st.integers(0, 1000)
)
def test_loss_and_gradients_are_the_papers(
    kind: Any, transcription: Callable[..., Tensor], options: dict[str, Any],
    input_dim: int, latent_dim: int, unit_norm: bool, bandwidth: float, seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    own = {**options, "bandwidth": bandwidth} if options else {}
    sae = kind(input_dim, latent_dim, unit_norm=unit_norm, **own).double()
    for parameter in sae.parameters():
        torch.nn.init.normal_(parameter)
    x, target = torch.randn(2, 5, input_dim, dtype=torch.float64)
    found = loss_terms(sae, StepContext(x, target))
    loss, expected = Objective(0.3, 0.0)(found, 0).total, transcription(sae, x, target, 0.3)
    torch.testing.assert_close(loss, expected)
    for mine, by_hand in zip(gradients(loss, sae), gradients(expected, sae), strict=True):
        torch.testing.assert_close(mine, by_hand)


def gradients(loss: Tensor, sae: Autoencoder) -> list[Tensor]:
    """Gradients by all parameters, zeros where none passes."""
    parameters = list(sae.parameters())
    return list(torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True))


@pytest.mark.parametrize(
    "kind", [KSparseAutoencoder, ReLUAutoencoder, GatedAutoencoder, JumpReLUAutoencoder, *TOPK]
)
def test_the_output_is_that_of_a_plain_pass_also_of_a_class_of_ones_own(kind: Any) -> None:
    class Doubled(kind):
        def decode(self, latents: Tensor) -> Tensor:
            return 2 * super().decode(latents)

    x = torch.randn(9, 4)
    for sae in (kind(4, 40), Doubled(4, 40)):
        if kind is MatryoshkaAutoencoder and type(sae) is not kind:
            continue  # decodes prefixes
        found, plain = loss_terms(sae, StepContext(x, x)).output, sae(x)
        torch.testing.assert_close(tuple(found), tuple(plain))


def largest(values: Tensor, k: int) -> Tensor:
    return values * (values >= values.sort(dim=-1, descending=True).values[..., k - 1, None])


def normalized(made: Tensor, target: Tensor) -> Tensor:
    return (made - target).square().sum() / (target.mean(dim=0) - target).square().sum()


def topk_losses(sae: Any, x: Tensor, dead: list[int], auxiliary_k: int) -> tuple[Tensor, Tensor]:
    """The two losses of the papers, reconstruction (of all prefixes) and AuxK."""
    a = ((x - sae.decoder_bias) @ sae.encoder.weight.T + sae.encoder.bias).relu()
    if type(sae) is TopKAutoencoder:
        z = largest(a, sae.k)
    else:
        z = largest(a.flatten(), sae.k * len(x)).view_as(a)
    loss = torch.zeros((), dtype=x.dtype)
    for end in getattr(sae, "prefixes", [sae.latent_dim]):
        made = z[:, :end] @ sae.decoder_weight[:end] + sae.decoder_bias
        loss = loss + normalized(made, x)
    if not dead:
        return loss, torch.zeros((), dtype=x.dtype)
    of_dead = largest(a[:, dead], min(auxiliary_k, len(dead)))
    return loss, normalized(of_dead @ sae.decoder_weight[dead], (x - made).detach())


def mask(dead: list[int], latents: int) -> Callable[[], Tensor]:
    found = torch.zeros(latents, dtype=torch.bool)
    found[dead] = True
    return lambda: found


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(TOPK), st.integers(0, 1000), st.data())
def test_topk_batch_topk_and_matryoshka_are_the_papers(
    kind: Any, seed: int, data: st.DataObject
) -> None:
    d, sizes = data.draw(st.integers(2, 6)), data.draw(st.lists(st.integers(1, 4), min_size=1))
    n = sum(sizes)
    k, auxiliary_k = data.draw(st.integers(1, n)), data.draw(st.integers(1, n))
    dead = sorted(data.draw(st.sets(st.integers(0, n - 1))))
    torch.manual_seed(seed)
    nested = kind is MatryoshkaAutoencoder
    groups = {"group_fractions": [size / n for size in sizes]} if nested else {}
    sae = kind(d, n, k, **groups).double()
    assert not nested or sae.prefixes == list(accumulate(sizes))
    for parameter in sae.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(5, d, dtype=torch.float64)
    found = loss_terms(sae, StepContext(x, x, dead=mask(dead, n), auxiliary_k=auxiliary_k))
    reconstruction, auxiliary = topk_losses(sae, x, dead, auxiliary_k)
    torch.testing.assert_close(found.reconstruction, reconstruction)
    torch.testing.assert_close(found.auxiliary, auxiliary)
    assert found.sparsity == found.output.latents.mean()
    expected = gradients(reconstruction + auxiliary, sae)
    torch.testing.assert_close(gradients(found.reconstruction + found.auxiliary, sae), expected)


@pytest.mark.parametrize("kind", TOPK)
def test_there_is_no_nan_where_nothing_is_dead_or_left(kind: Any) -> None:
    torch.manual_seed(0)
    sae, x = kind(4, 40, 3), torch.randn(6, 4)
    assert loss_terms(sae, StepContext(x, x, dead=mask([], 40))).auxiliary == 0.0
    assert loss_terms(sae, StepContext(x, x)).auxiliary is None
    for rows in (torch.zeros(6, 4), torch.ones(6, 4), x[:1]):  # of no variance
        found = loss_terms(sae, StepContext(rows, rows, dead=mask([3], 40)))
        loss = found.reconstruction + found.auxiliary
        assert loss.isfinite()
        assert all(gradient.isfinite().all() for gradient in gradients(loss, sae))
