import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from palinka.autoencoders import TopKAutoencoder
from palinka.autoencoders.topk import geometric_median


def test_it_begins_at_the_geometric_median() -> None:
    sae = TopKAutoencoder(2)
    assert (sae.latent_dim, sae.k, sae.unit_norm) == (4, 1, True)
    sae.initialize(torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0], [0.0, 900.0]]))
    assert 1.9 < sae.decoder_bias[1] < 3.1
    assert sae.decoder_bias.requires_grad


def distances(rows: Tensor, point: Tensor) -> float:
    return float((rows - point).norm(dim=1).sum())


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 1000))
def test_no_point_is_nearer_to_all_rows(count: int, width: int, seed: int) -> None:
    torch.manual_seed(seed)
    rows = torch.randn(count, width).double() * torch.tensor(10.0) ** torch.randn(count, 1)
    found = geometric_median(rows)
    assert geometric_median(rows.half()).dtype == torch.float32
    for direction in torch.randn(20, width).double():
        assert distances(rows, found) <= distances(rows, found + 0.01 * direction) * (1 + 1e-4)


def test_on_a_row_that_holds_it() -> None:
    """The mean is a row here, and the median is elsewhere, or that very row."""
    held = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert torch.equal(geometric_median(held), torch.zeros(2))
    left = torch.tensor([[0.0, 0.0], [9.0, 0.0], [-3.0, 0.1], [-3.0, 0.0], [-3.0, -0.1]])
    assert torch.equal(left.mean(dim=0), torch.zeros(2))
    for row in left:
        assert distances(left, geometric_median(left)) < distances(left, row)
