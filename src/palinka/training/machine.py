"""Making the machine ready for a fit: memory that stays, and the faster of two matrix products."""

import torch
from lightning.pytorch.utilities import rank_zero_info

from palinka.autoencoders import Autoencoder
from palinka.kernels.matmul import choose_precision, try_precisions
from palinka.kernels.memory import keep_freed_memory

# Weights of fewer elements are not worth a trial, nor a difference in the last digit.
WORTH_A_TRIAL = 1 << 20


def prepare_machine(autoencoder: Autoencoder, device: torch.device) -> str:
    """Before a fit on the CPU, let memory be reused and choose how float32 is multiplied.

    Whoever has set torch's precision of float32 products keeps it.

    Args:
        autoencoder: What is to be trained.
        device: Where.

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
    trials = try_precisions()
    chosen = choose_precision(trials)
    torch.set_float32_matmul_precision(chosen)
    gain = trials["highest"].seconds / trials["medium"].seconds
    rank_zero_info(
        f"float32 products: {'oneDNN' if chosen == 'medium' else 'as torch has them'}; here oneDNN"
        f" is {gain:.1f} times as fast, with an error of {trials['medium'].error:.1e} against"
        f" {trials['highest'].error:.1e}"
    )
    return before
