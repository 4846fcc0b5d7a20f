"""Making the machine ready for a fit: memory that stays, and the better of two matrix products."""

import torch
from lightning.pytorch.utilities import rank_zero_info

from palinka.autoencoders import Autoencoder
from palinka.float32_products import choose_products
from palinka.freed_memory import keep_freed_memory
from palinka.kernels.collectives import copy_from_first, world

# Weights of fewer elements are not worth a trial, nor a difference in the last digit.
WORTH_A_TRIAL = 1 << 20
_CHOICES = ("highest", "medium")


def prepare_machine(
    autoencoder: Autoencoder, device: torch.device, precision: str | None = None
) -> str:
    """Before a fit on the CPU, let memory be reused and choose how float32 is multiplied.

    Whoever has set torch's precision of float32 products keeps it. All processes take what the
    first one has found, and a run that goes on what it began with, so that it ends the same.

    Args:
        autoencoder: What is to be trained.
        device: Where.
        precision: torch's precision with which the run began, if it goes on.

    Returns:
        torch's precision before, for `torch.set_float32_matmul_precision` when the fit is over.
    """
    before = torch.get_float32_matmul_precision()
    if device.type != "cpu":
        return before
    keep_freed_memory()
    size = autoencoder.input_dim * autoencoder.latent_dim
    if size < WORTH_A_TRIAL or before != "highest":
        return before
    if precision in _CHOICES:
        torch.set_float32_matmul_precision(precision)
        return before
    chosen, reason = choose_products()
    torch.set_float32_matmul_precision(_of_first_process(chosen))
    rank_zero_info(reason)
    return before


def _of_first_process(precision: str) -> str:
    choice = torch.tensor(_CHOICES.index(precision))
    return _CHOICES[int(copy_from_first(choice, world()))]
