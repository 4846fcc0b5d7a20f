import pytest
import torch
from torch import Tensor, nn

from palinka.errors import InputError
from palinka.language_models.edits import as_function


class Halves:
    """An autoencoder by behavior alone, which loses half of what it is given."""

    def encode(self, x: Tensor) -> Tensor:
        return x * 4

    def decode(self, latents: Tensor) -> Tensor:
        return latents / 8


X = torch.tensor([[1.0, 2.0], [3.0, 4.0]])


def test_an_autoencoder_stands_for_its_reconstruction() -> None:
    assert torch.equal(as_function(Halves(), None, False)(X), X / 2)


def test_an_edit_acts_on_the_latents() -> None:
    edited = as_function(Halves(), lambda latents: latents + 8, False)(X)
    assert torch.equal(edited, X / 2 + 1)


def test_the_error_is_that_of_the_unedited_latents() -> None:
    def edit_in_place(latents: Tensor) -> Tensor:
        latents[:, 0] = 0
        return latents

    expected = X.clone()
    expected[:, 0] -= X[:, 0] / 2  # what the edit took away, and nothing else
    assert torch.equal(as_function(Halves(), edit_in_place, True)(X), expected)
    assert torch.equal(as_function(Halves(), None, True)(X), X)


def test_a_module_is_given_its_own_dtype() -> None:
    class Double(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2).double()

        def encode(self, x: Tensor) -> Tensor:
            result: Tensor = self.linear(x)
            return result

        def decode(self, latents: Tensor) -> Tensor:
            return latents

    assert as_function(Double(), None, False)(X).dtype == torch.float64


def test_a_function_stands_for_itself() -> None:
    assert as_function(torch.relu, None, False) is torch.relu


@pytest.mark.parametrize(
    ("replacement", "edit", "keep_error", "message"),
    [
        (3, None, False, "a int cannot replace a site"),
        (torch.relu, torch.relu, False, "need an autoencoder"),
        (torch.relu, None, True, "need an autoencoder"),
    ],
)
def test_what_cannot_replace_is_refused(
    replacement: object, edit: object, keep_error: bool, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        as_function(replacement, edit, keep_error)  # type: ignore[arg-type]


def test_an_edit_that_returns_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="return the edited latents"):
        as_function(Halves(), lambda latents: None, False)(X)  # type: ignore[arg-type,return-value]
