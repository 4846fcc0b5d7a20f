"""Whether a model can be run at all: the bundled one reads some tokens."""

import time
from typing import Any

import torch

from palinka.doctor.finding import Finding, State


def bundled_model() -> list[Finding]:
    """Load it and read one of its sites."""
    import transformers

    from palinka.language_models import LanguageModelSpec

    began = time.perf_counter()
    logging: Any = transformers.utils.logging  # without types
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model = LanguageModelSpec(device="cpu").load()
    finally:
        if shown:
            logging.enable_progress_bar()
    site = "blocks.middle.mlp.pre"
    (rows,) = model.read_blocks(torch.arange(8).reshape(1, 8), [site]).values()
    if not bool(rows.isfinite().all()):
        return [Finding("bundled model", f"{site} holds NaN or infinities", State.BROKEN)]
    seconds = time.perf_counter() - began
    return [Finding("bundled model", f"reads {tuple(rows.shape)} at {site}, {seconds:.1f} s")]
