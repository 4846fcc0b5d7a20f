"""Processors, accelerators, and how float32 matrices are multiplied on them."""

import os
import platform
import re
from typing import Any

import torch

from palinka.doctor.finding import Finding, State
from palinka.float32_products import choose_precision, slow_products, slowdown, try_precisions


def processor() -> list[Finding]:
    """The processor's cores and memory."""
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    text = (
        f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} used by torch,"
        f" {pages / 2**30:.1f} GiB of memory"
    )
    return [Finding("processor", text)]


def accelerators() -> list[Finding]:
    """Every GPU that torch can use."""
    found = []
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        major, minor = torch.cuda.get_device_capability(index)
        text = f"{device.name}, {device.total_memory / 2**30:.0f} GiB, capability {major}.{minor}"
        found.append(Finding(f"cuda:{index}", text))
    if torch.backends.mps.is_available():
        found.append(Finding("mps", "Apple's GPU"))
    if not found:
        built = torch.version.cuda or torch.version.hip
        why = "torch sees no GPU" if built else "this torch is built for the CPU alone"
        found.append(Finding("accelerator", f"none: {why}"))
    return found


def products() -> list[Finding]:
    """Which libraries multiply matrices, and what a fit chooses for float32."""
    config = torch.__config__.show()
    library = re.search(r"BLAS_INFO=(\w+)", config)
    built = [library[1] if library else "an unknown BLAS"]
    onednn: Any = torch.backends.mkldnn  # without types
    built += ["oneDNN"] if onednn.is_available() else []
    errors = try_precisions()
    chosen = choose_precision(errors)
    text = (
        f"torch with {' and '.join(built)}; fits on the CPU multiply float32 "
        f"{'by oneDNN' if chosen == 'medium' else 'as torch does by itself'} (the error of oneDNN"
        f" is {errors['medium']:.0e}, against {errors['highest']:.0e})"
    )
    slow = slow_products(torch.bfloat16)
    quick = f"bfloat16 products take {slowdown(torch.bfloat16):.1f} times as long as float32's"
    return [
        Finding("matrix products", text),
        Finding("bfloat16", slow or quick, State.FINE if slow is None else State.REMARK),
    ]


def loops() -> list[Finding]:
    """Whether compiled loops are kept, or compiled anew in every process."""
    import numpy as np

    from palinka.kernels import compiled

    @compiled.compiled()
    def double(numbers: Any) -> Any:
        return numbers * 2.0

    double(np.ones(1))
    kept = getattr(getattr(double, "_cache", None), "cache_path", None)
    if kept is None:
        text = "compiled anew in every process; set NUMBA_CACHE_DIR to a folder that can be written"
        return [Finding("compiled loops", text, State.REMARK)]
    return [Finding("compiled loops", f"kept in {kept}")]
