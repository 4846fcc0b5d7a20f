"""Keeping every latent's direction at norm 1 while it is trained."""

import torch
from torch import Tensor


@torch.no_grad()
def project_gradient(dictionary: Tensor) -> None:
    """Take out of each row's gradient what would only change the row's norm.

    Args:
        dictionary: A leaf with rows of norm 1, `(latent_dim, input_dim)`; its `.grad` is
            changed in place.
    """
    if dictionary.grad is not None:
        along = (dictionary.grad * dictionary).sum(dim=1, keepdim=True)
        dictionary.grad.sub_(along * dictionary)


@torch.no_grad()
def normalize_rows(dictionary: Tensor) -> None:
    """Scale each row to norm 1, in place; a row of zeros stays one."""
    norm = dictionary.norm(dim=1, keepdim=True)
    dictionary.div_(norm.where(norm > 0, 1.0))
