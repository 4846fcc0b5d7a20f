"""`palinka doctor`: check the installation."""

import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement

import palinka
from palinka.errors import colored, escape_control_chars, is_quiet, one_line, suppress_progress

OK, WARN, FAIL = "ok", "note", "bad"  # WARN: palinka works without it, or works slowly with it
_COLORS = {OK: "green", WARN: "yellow", FAIL: "red"}
_LITTLE_SPACE = 10 * 1000**3  # a cache of a few million rows of a small model takes more


class Finding(NamedTuple):
    """One line of the report."""

    name: str
    text: str
    state: str = OK


def versions() -> Iterator[Finding]:
    """Python, the required packages, and those of the extras."""
    yield Finding("palinka", palinka.__version__)
    yield Finding("python", f"{platform.python_version()} on {platform.platform()}")
    fitting = []
    for requirement in map(Requirement, requires("palinka") or []):
        name, needed, installed = requirement.name, requirement.specifier, None
        extra = re.search(r"extra == .([\w-]+)", str(requirement.marker))
        with suppress(PackageNotFoundError):
            installed = version(name)
        if extra:
            if installed is None:
                text = f"not installed; pip install 'palinka[{extra[1]}]' if you need it"
                yield Finding(name, text, WARN)
        elif installed is None or not needed.contains(installed, prereleases=True):
            fault = f"{installed}, but palinka needs {needed}" if installed else "not installed"
            yield Finding(name, f"{fault}; pip install '{name}{needed}'", FAIL)
        elif name in ("torch", "lightning", "transformers"):
            yield Finding(name, installed)
        else:
            fitting.append(f"{name} {installed}")
    yield Finding("packages", ", ".join(fitting))


def devices() -> Iterator[Finding]:
    """Processor, memory and GPUs."""
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} used by torch"
    yield Finding("processor", f"{platform.machine()}, {cores}, {memory:.1f} GiB of memory")
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        text = f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, capability {gpu.major}.{gpu.minor}"
        yield Finding(f"cuda:{index}", text)
    if torch.backends.mps.is_available():
        yield Finding("mps", "Apple's GPU")
    elif not torch.cuda.device_count():
        gpu_build = torch.version.cuda or torch.version.hip
        reason = "torch sees no GPU" if gpu_build else "this torch is built for the CPU alone"
        yield Finding("accelerator", f"none: {reason}")


def matrix_products() -> Iterator[Finding]:
    """BLAS libraries, the float32 products of a fit, and the speed of bfloat16."""
    import torch

    from palinka.language_models import cpu

    library = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
    _, reason = cpu.select_matmul_backend()
    blas = library[1] if library else "an unknown BLAS"
    yield Finding("matrix products", f"torch with {blas}; {reason}")
    slow = cpu.slow_products(torch.bfloat16)
    factor = cpu.slowdown(torch.bfloat16)
    text = slow or f"bfloat16 products take {factor:.2g} times as long as float32's"
    yield Finding("bfloat16", text, WARN if slow else OK)


def bundled_model() -> Iterator[Finding]:
    """Load the bundled model and read one of its sites."""
    import torch

    from palinka.language_models import LanguageModel, LanguageModelSpec

    started = time.perf_counter()
    model = LanguageModel.load(LanguageModelSpec(device="cpu"))
    site = "blocks.middle.mlp.pre"
    (rows,) = model.read_contexts(torch.arange(8).reshape(1, 8), [site]).values()
    text = f"reads {tuple(rows.shape)} at {site}, {time.perf_counter() - started:.1f} s"
    finite = bool(rows.isfinite().all())
    text += "" if finite else ": NaN or infinite values"
    yield Finding("bundled model", text, OK if finite else FAIL)


def folders() -> Iterator[Finding]:
    """Folders of caches, of downloaded models, and of logs."""
    from huggingface_hub.constants import HF_HUB_CACHE

    from palinka.data.cache import default_cache_dir

    for name, folder, remedy in (
        ("caches", default_cache_dir(), "set PALINKA_CACHE"),
        ("models", Path(HF_HUB_CACHE), "set HF_HOME"),
        ("working folder", Path.cwd(), "give --trainer.default_root_dir"),
    ):
        parent = next(path for path in (folder, *folder.parents) if path.exists())
        needed, state = name == "caches", OK
        try:
            tempfile.TemporaryFile(dir=parent).close()
            free = shutil.disk_usage(parent).free
            text = f"{folder}, {free / 1000**3:.1f} GB free"
            if needed and free < _LITTLE_SPACE:
                text, state = f"{text}, which is little: {remedy} to another disk", WARN
            elif parent != folder:
                text += " (does not exist yet)"
        except OSError as error:
            text = f"{folder}: {error.strerror}; {remedy} to another folder"
            state = FAIL if needed else WARN
        yield Finding(name, text, state)


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    versions, devices, matrix_products, bundled_model, folders,
)  # fmt: skip


def _run_checks() -> Iterator[Finding]:
    for check in CHECKS:
        try:
            yield from check()
        except Exception as error:
            yield Finding(check.__name__.replace("_", " "), one_line(error), FAIL)


def doctor() -> int:
    """Check versions, devices, matrix products and folders.

    Returns:
        The exit status: 0, or 1 if something that palinka needs does not work.
    """
    failed, quiet = False, is_quiet()
    with suppress_progress(wanted=True):
        for name, text, state in _run_checks():
            failed |= state == FAIL
            if state != OK or not quiet:
                mark = colored(f"{state:<5}", _COLORS[state])
                print(f"{mark}{name:<17}{escape_control_chars(text)}", flush=True)
    return int(failed)
