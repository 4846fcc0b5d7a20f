import torch

from palinka.training.module import normalize_rows, project_gradient


def test_the_gradient_is_left_with_what_keeps_the_norm() -> None:
    torch.manual_seed(0)
    dictionary = torch.nn.Parameter(torch.randn(5, 3, dtype=torch.float64))
    normalize_rows(dictionary)
    torch.testing.assert_close(dictionary.detach().norm(dim=1), torch.ones(5).double())
    before = torch.randn(5, 3, dtype=torch.float64)
    dictionary.grad = before.clone()
    project_gradient(dictionary)
    rows = dictionary.detach()
    expected = torch.stack([g - (g @ row) * row for g, row in zip(before, rows, strict=True)])
    torch.testing.assert_close(dictionary.grad, expected)
    torch.testing.assert_close((dictionary.grad * rows).sum(dim=1), torch.zeros(5).double())


def test_without_a_gradient_nothing_happens() -> None:
    project_gradient(torch.nn.Parameter(torch.ones(2, 2)))


def test_a_row_of_zeros_stays_one() -> None:
    rows = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    normalize_rows(rows)
    assert rows.tolist() == [[0.0, 0.0], [0.6000000238418579, 0.800000011920929]]
