"""Making the machine ready for a fit: memory that stays, and the better of two matrix products."""

import torch
from lightning.pytorch.utilities import rank_zero_info

from palinka.autoencoders import Autoencoder
from palinka.freed_memory import keep_freed_memory
from palinka.kernels.collectives import copy_from_first, world
from palinka.kernels.matmul import choose_precision, try_precisions

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
    errors = try_precisions()
    chosen = _of_first_process(choose_precision(errors))
    torch.set_float32_matmul_precision(chosen)
    rank_zero_info(
        f"float32 products: by {'oneDNN' if chosen == 'medium' else 'what torch takes by itself'};"
        f" the error of oneDNN is {errors['medium']:.1e} here, that of MKL {errors['highest']:.1e}"
    )
    return before


def _of_first_process(precision: str) -> str:
    choice = torch.tensor(_CHOICES.index(precision))
    return _CHOICES[int(copy_from_first(choice, world()))]
