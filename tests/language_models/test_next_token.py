import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from palinka.training.callbacks import loss_recovered as next_token
from palinka.training.callbacks.loss_recovered import cross_entropy, kl_divergence


def plain_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    log_p = logits.double().log_softmax(dim=-1)
    return -log_p.gather(-1, targets[..., None])[..., 0]


def plain_kl(clean: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    p, q = (logits.double().log_softmax(dim=-1) for logits in (clean, other))
    return (p.exp() * (p - q)).sum(dim=-1)


@given(
    seed=st.integers(0, 2**31),
    vocabulary=st.integers(1, 40),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
    dtype=st.sampled_from([torch.float16, torch.float32, torch.float64]),
    piece=st.integers(1, 200),
)
def test_both_agree_with_plain_definitions(
    seed: int, vocabulary: int, scale: float, dtype: torch.dtype, piece: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    clean, other = (
        (scale * torch.randn(2, 5, vocabulary, generator=random)).to(dtype) for _ in range(2)
    )
    targets = torch.randint(vocabulary, (2, 5), generator=random)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(next_token, "PIECE", piece)
        losses, divergences = cross_entropy(clean, targets), kl_divergence(clean, other)
    assert losses.dtype == divergences.dtype == torch.float64
    tolerance = 1e-6 * max(1.0, scale)
    torch.testing.assert_close(
        losses, plain_cross_entropy(clean, targets), rtol=1e-6, atol=tolerance
    )
    torch.testing.assert_close(divergences, plain_kl(clean, other), rtol=1e-6, atol=tolerance)


def test_the_divergence_of_the_same_logits_is_zero() -> None:
    logits = torch.randn(3, 50)
    assert not kl_divergence(logits, logits.clone()).any()


def test_logits_are_not_changed() -> None:
    logits = torch.randn(3, 50)
    before = logits.clone()
    cross_entropy(logits, torch.zeros(3, dtype=torch.long))
    assert torch.equal(logits, before)
