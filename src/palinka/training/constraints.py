"""Keeping every latent's direction at norm 1 while it is trained."""

from torch import Tensor

from palinka.kernels import normalize_rows_, project_gradient_


def project_gradient(dictionary: Tensor) -> None:
    """Take out of each row's gradient what would only change the row's norm.

    Args:
        dictionary: A leaf with rows of norm 1, `(latent_dim, input_dim)`; its `.grad` is
            changed in place.
    """
    if dictionary.grad is not None:
        project_gradient_(dictionary.grad, dictionary)


def normalize_rows(dictionary: Tensor) -> None:
    """Scale each row to norm 1, in place; a row of zeros stays one."""
    normalize_rows_(dictionary)
