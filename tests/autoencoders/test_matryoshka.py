import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from palinka.autoencoders import BatchTopKAutoencoder, MatryoshkaAutoencoder
from palinka.errors import InputError


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.integers(0, 1000))
def test_each_prefix_decodes_as_if_there_were_no_other(sizes: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    n = sum(sizes)
    sae = MatryoshkaAutoencoder(3, n, 1, group_fractions=[size / n for size in sizes]).double()
    torch.nn.init.normal_(sae.decoder_bias)
    assert sae.prefixes == torch.tensor(sizes).cumsum(0).tolist()
    latents = torch.rand(2, 4, n, dtype=torch.float64)
    made = sae.decode_prefixes(latents)
    for size, reconstruction in zip(sae.prefixes, made, strict=True):
        alone = latents[..., :size] @ sae.decoder_weight[:size] + sae.decoder_bias
        torch.testing.assert_close(reconstruction, alone)
    torch.testing.assert_close(made[-1], sae.decode(latents))


def test_the_papers_groups() -> None:
    sae = MatryoshkaAutoencoder(4, 65536, 32)
    assert sae.prefixes == [2048, 6144, 14336, 30720, 65536]
    assert MatryoshkaAutoencoder.encode is BatchTopKAutoencoder.encode


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ([0.5, 0.4], "sum to 1"),
        ([1.5, -0.5], "must be positive"),
        ([float("nan"), 1.0], "must be positive"),
        (["half", "half"], "must be positive"),
        ([], "must be positive"),
        ([0.01, 0.99], "a group of 8 latents empty"),
    ],
)
def test_groups_that_cannot_be(fractions: list[float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MatryoshkaAutoencoder(4, 8, 2, group_fractions=fractions)
