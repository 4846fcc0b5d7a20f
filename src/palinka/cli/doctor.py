"""`palinka doctor`: check the installation."""

import os
import platform
import re
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from enum import Enum
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, NamedTuple

from packaging.requirements import Requirement

import palinka
from palinka.errors import colored, escape_control_chars, is_quiet, one_line


class State(Enum):
    """Result of a check; `WARN` is something palinka works without, or works slowly with."""

    OK = "ok"
    WARN = "note"
    FAIL = "bad"


class Finding(NamedTuple):
    """One line of the report."""

    name: str
    text: str
    state: State = State.OK


_NAMED = ("torch", "lightning", "transformers")
# A cache of a few million rows of a small model takes more.
_LITTLE_SPACE = 10 * 1000**3
_HUB_SECONDS = 4.0
_COLORS = {State.OK: "green", State.WARN: "yellow", State.FAIL: "red"}


def versions() -> Iterator[Finding]:
    """Python, the required packages, and those of the extras."""
    yield Finding("palinka", palinka.__version__)
    yield Finding("python", f"{platform.python_version()} on {platform.platform()}")
    fitting = []
    for requirement in map(Requirement, requires("palinka") or []):
        name, installed = requirement.name, _installed(requirement.name)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            if installed is None:
                extra = str(requirement.marker).rpartition("==")[2].strip(" \"'")
                text = f"not installed; pip install 'palinka[{extra}]' if you need it"
                yield Finding(name, text, State.WARN)
            continue
        remedy = f"pip install '{name}{requirement.specifier}'"
        if installed is None:
            yield Finding(name, f"not installed; {remedy}", State.FAIL)
        elif not requirement.specifier.contains(installed, prereleases=True):
            text = f"{installed}, but palinka needs {requirement.specifier}; {remedy}"
            yield Finding(name, text, State.FAIL)
        elif name in _NAMED:
            yield Finding(name, installed)
        else:
            fitting.append(f"{name} {installed}")
    yield Finding("packages", ", ".join(fitting))


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def devices() -> Iterator[Finding]:
    """Processor, memory and GPUs."""
    import torch

    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield Finding(
        "processor",
        f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} used by torch,"
        f" {pages / 2**30:.1f} GiB of memory",
    )
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
    onednn: Any = torch.backends.mkldnn  # without types
    libraries = [library[1] if library else "an unknown BLAS"]
    libraries += ["oneDNN"] if onednn.is_available() else []
    _, reason = cpu.select_matmul_backend()
    yield Finding("matrix products", f"torch with {' and '.join(libraries)}; {reason}")
    slow = cpu.slow_products(torch.bfloat16)
    factor = cpu.slowdown(torch.bfloat16)
    text = slow or f"bfloat16 products take {factor:.1f} times as long as float32's"
    yield Finding("bfloat16", text, State.OK if slow is None else State.WARN)


def compiled_loops() -> Iterator[Finding]:
    """Cache of compiled loops."""
    import numpy as np

    from palinka.autoencoders.kernels.dispatch import compiled

    @compiled()
    def double(numbers: Any) -> Any:
        return numbers * 2.0

    double(np.ones(1))
    folder = getattr(getattr(double, "_cache", None), "cache_path", None)
    if folder is None:
        text = "compiled anew in every process; set NUMBA_CACHE_DIR to a writable folder"
        yield Finding("compiled loops", text, State.WARN)
    else:
        yield Finding("compiled loops", f"kept in {folder}")


def bundled_model() -> Iterator[Finding]:
    """Load the bundled model and read one of its sites."""
    import torch
    import transformers

    from palinka.language_models import LanguageModel, LanguageModelSpec

    started = time.perf_counter()
    logging: Any = transformers.utils.logging  # without types
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model = LanguageModel.load(LanguageModelSpec(device="cpu"))
    finally:
        if shown:
            logging.enable_progress_bar()
    site = "blocks.middle.mlp.pre"
    (rows,) = model.read_contexts(torch.arange(8).reshape(1, 8), [site]).values()
    if not bool(rows.isfinite().all()):
        yield Finding("bundled model", f"{site} has NaN or infinite values", State.FAIL)
        return
    seconds = time.perf_counter() - started
    yield Finding("bundled model", f"reads {tuple(rows.shape)} at {site}, {seconds:.1f} s")


def folders() -> Iterator[Finding]:
    """Folders of caches, of downloaded models, and of logs."""
    from huggingface_hub.constants import HF_HUB_CACHE

    from palinka.data.cache import default_cache_dir

    yield _folder("caches", default_cache_dir(), "set PALINKA_CACHE", needed=True)
    yield _folder("models", Path(HF_HUB_CACHE), "set HF_HOME", needed=False)
    remedy = "give --trainer.default_root_dir"
    yield _folder("working folder", Path.cwd(), remedy, needed=False)


def _folder(name: str, folder: Path, remedy: str, *, needed: bool) -> Finding:
    parent = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        tempfile.TemporaryFile(dir=parent).close()
        free = shutil.disk_usage(parent).free
    except OSError as error:
        text = f"{folder}: {error.strerror}; {remedy} to another folder"
        return Finding(name, text, State.FAIL if needed else State.WARN)
    text = f"{folder}, {free / 1000**3:.1f} GB free"
    if needed and free < _LITTLE_SPACE:
        return Finding(name, f"{text}, which is little: {remedy} to another disk", State.WARN)
    return Finding(name, text if parent == folder else f"{text} (does not exist yet)")


def hub() -> Iterator[Finding]:
    """Connection to the Hugging Face hub."""
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    local = "local models and the bundled one still work"
    if HF_HUB_OFFLINE:
        yield Finding("hub", f"not checked: HF_HUB_OFFLINE is set; {local}", State.WARN)
        return
    request = urllib.request.Request(ENDPOINT, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=_HUB_SECONDS):
            pass
    except urllib.error.HTTPError:
        pass  # an answer all the same
    except (OSError, ValueError) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())
        yield Finding("hub", f"{ENDPOINT} could not be reached ({reason}); {local}", State.WARN)
        return
    yield Finding("hub", f"{ENDPOINT} answers")


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    versions, devices, matrix_products, compiled_loops, bundled_model, folders, hub,
)  # fmt: skip


def run_checks() -> Iterator[Finding]:
    """Run every check; an exception is a finding."""
    for check in CHECKS:
        try:
            yield from check()
        except Exception as error:
            text = one_line(error)
            yield Finding(check.__name__.replace("_", " "), text, State.FAIL)


def doctor() -> int:
    """Check versions, devices, matrix products, folders and the hub.

    Returns:
        The exit status: 0, or 1 if something that palinka needs does not work.
    """
    failed = False
    for finding in run_checks():
        failed |= finding.state is State.FAIL
        if finding.state is not State.OK or not is_quiet():
            mark = colored(f"{finding.state.value:<5}", _COLORS[finding.state])
            print(f"{mark}{finding.name:<17}{escape_control_chars(finding.text)}", flush=True)
    return int(failed)
