import pytest
import torch

from palinka.training.callbacks.tensorboard import nearest_cosine


def test_nearest_cosine_is_that_of_the_closest_other_direction() -> None:
    dictionary = torch.randn(30, 7, generator=torch.Generator().manual_seed(0))
    expected = []
    for i, row in enumerate(dictionary):
        others = [
            torch.dot(row, o) / row.norm() / o.norm() for j, o in enumerate(dictionary) if j != i
        ]
        expected.append(float(max(others)))
    assert nearest_cosine(dictionary).tolist() == pytest.approx(expected, abs=1e-6)


def test_a_sample_is_taken_evenly() -> None:
    dictionary = torch.randn(11, 5, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(
        nearest_cosine(dictionary, sample=3), nearest_cosine(dictionary)[[0, 5, 10]]
    )


def test_one_latent_has_no_neighbour() -> None:
    assert nearest_cosine(torch.ones(1, 4)).isnan().all()
