"""A line on the machine that figures come from."""

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("palinka", "torch", "numpy", "scipy", "numba", "lightning", "transformers")
PEERS = ("sae-lens", "transformer-lens", "dictionary_learning", "overcomplete", "eai-sparsify")


def machine() -> str:
    """The processor, its cores and memory, the threads in use, and the versions at work."""
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    return (
        f"{processor()}, {os.cpu_count()} cores, {gigabytes:.0f} GB; {torch.get_num_threads()} "
        f"threads, load {load}; {platform.system()}, Python {platform.python_version()}, "
        f"{', '.join(versions())}; {time.strftime('%Y-%m-%d')}."
    )


def processor() -> str:
    """The processor's name, and which short number formats it multiplies."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    fields = [line.partition(":") for line in info.read_text().splitlines()]
    values = {name.strip(): value.strip() for name, _, value in fields}
    flags = set(values.get("flags", "").split())
    formats = [name for name in ("avx512_bf16", "amx_bf16", "avx512_fp16") if name in flags]
    return " with ".join(
        part for part in (values.get("model name", platform.machine()), ", ".join(formats)) if part
    )


def versions() -> list[str]:
    """The packages at work, and those peers that are there."""
    found = []
    for package in PACKAGES + PEERS:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return found
