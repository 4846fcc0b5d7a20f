"""`palinka doctor`: check the installation."""

import os
import platform
import re
import shutil
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from packaging.requirements import Requirement

import palinka
from palinka.cli.commands import PlainParser
from palinka.data.cache import default_cache_dir
from palinka.errors import colored, is_quiet, printable
from palinka.language_models.cpu import choose_precision, slow_products, slowdown, try_precisions


class State(Enum):
    """How something is."""

    FINE = "ok"
    REMARK = "note"
    """Palinka works, though not with this, or not as fast as it could."""
    BROKEN = "bad"
    """Palinka, or a command of it, does not work."""


class Finding(NamedTuple):
    """What was found.

    Attributes:
        name: What was looked at.
        text: How it is, and if need be what to do, on one line.
        state: Whether that is as it should be.
    """

    name: str
    text: str
    state: State = State.FINE


Look = Callable[[], list[Finding]]


def within(seconds: float, name: str, look: Look) -> list[Finding]:
    """Look at something, but not for longer than so many seconds.

    A folder on a server that is gone, a name that nobody resolves or a broken driver may keep one
    waiting for ever. Whoever waits for them then is a thread that ends with the process.

    Args:
        seconds: How long.
        name: What is looked at.
        look: Looks at it; what it raises is a finding, too.
    """
    found: list[list[Finding]] = []

    def work() -> None:
        try:
            found.append(look())
        except Exception as error:
            text = " ".join(str(error).split()) or type(error).__name__
            found.append([Finding(name, text, State.BROKEN)])

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if not found:
        return [Finding(name, f"no answer within {seconds:g} seconds", State.BROKEN)]
    return found[0]


_SHOWN = ("torch", "lightning", "transformers")


def software() -> list[Finding]:
    """Python, the packages that palinka needs, and those for its extras."""
    found = [
        Finding("palinka", palinka.__version__),
        Finding("python", f"{platform.python_version()} on {platform.platform()}"),
    ]
    wanted = [Requirement(line) for line in _requirements()]
    needed = [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    fitting = []
    for requirement in needed:
        state, text = _held_against(requirement)
        if state is State.FINE and requirement.name not in _SHOWN:
            fitting.append(f"{requirement.name} {text}")
        else:
            found.append(Finding(requirement.name, text, state))
    found.append(Finding("packages", ", ".join(fitting)))
    for requirement in (one for one in wanted if one not in needed):
        if not _installed(requirement.name):
            extra = str(requirement.marker).rpartition("==")[2].strip(" \"'")
            text = f"not installed; pip install 'palinka[{extra}]' if you need it"
            found.append(Finding(requirement.name, text, State.REMARK))
    return found


def _requirements() -> list[str]:
    try:
        return requires("palinka") or []
    except PackageNotFoundError:  # run from its source, without being installed
        return []


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _held_against(requirement: Requirement) -> tuple[State, str]:
    there = _installed(requirement.name)
    asked = f"pip install '{requirement.name}{requirement.specifier}'"
    if there is None:
        return State.BROKEN, f"not installed; {asked}"
    if not requirement.specifier.contains(there, prereleases=True):
        return State.BROKEN, f"{there}, but palinka needs {requirement.specifier}; {asked}"
    return State.FINE, there


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

    from palinka.autoencoders.kernels import dispatch as compiled

    @compiled.compiled()
    def double(numbers: Any) -> Any:
        return numbers * 2.0

    double(np.ones(1))
    kept = getattr(getattr(double, "_cache", None), "cache_path", None)
    if kept is None:
        text = "compiled anew in every process; set NUMBA_CACHE_DIR to a folder that can be written"
        return [Finding("compiled loops", text, State.REMARK)]
    return [Finding("compiled loops", f"kept in {kept}")]


# A cache of a few million rows of a small model takes more.
_LITTLE = 10 * 1000**3


def caches() -> list[Finding]:
    """The folder of activations."""
    return [_folder("caches", default_cache_dir(), "set PALINKA_CACHE", needed=True)]


def models() -> list[Finding]:
    """The folder in which the Hugging Face hub keeps models."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return [_folder("models", Path(HF_HUB_CACHE), "set HF_HOME", needed=False)]


def here() -> list[Finding]:
    """The working folder, in which a fit writes its logs unless told otherwise."""
    return [_folder("working folder", Path.cwd(), "give --trainer.default_root_dir", needed=False)]


def _folder(name: str, folder: Path, remedy: str, *, needed: bool) -> Finding:
    broken = State.BROKEN if needed else State.REMARK
    there = folder
    while not there.exists():
        there = there.parent
    try:
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(13, "not writable")
        tempfile.TemporaryFile(dir=there).close()  # what a read-only file system refuses to root
        free = shutil.disk_usage(there).free
    except OSError as error:
        return Finding(name, f"{folder}: {error.strerror}; {remedy} to another folder", broken)
    text = f"{folder}, {free / 1000**3:.1f} GB free"
    if needed and free < _LITTLE:
        return Finding(name, f"{text}, which is little: {remedy} to a roomier one", State.REMARK)
    return Finding(name, text if there == folder else f"{text} (not there yet)")


SECONDS = 4.0
_LOCAL = "models that are on this computer, and the bundled one, still work"


def hub() -> list[Finding]:
    """Ask the Hugging Face hub for its front page."""
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        return [Finding("hub", f"not asked, as HF_HUB_OFFLINE is set; {_LOCAL}", State.REMARK)]
    request = urllib.request.Request(ENDPOINT, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=SECONDS):
            pass
    except urllib.error.HTTPError:
        pass  # it has answered
    except (OSError, ValueError) as error:
        why = " ".join(str(getattr(error, "reason", error)).split())
        return [Finding("hub", f"{ENDPOINT} not reached ({why}); {_LOCAL}", State.REMARK)]

    return [Finding("hub", f"{ENDPOINT} answers")]


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


_COLORS = {State.FINE: "green", State.REMARK: "yellow", State.BROKEN: "red"}
# Where each is looked at, and for how many seconds at most; importing from a slow disk takes time.
LOOKS = {
    "versions": ("software", 20.0),
    "processor": ("processor", 60.0),
    "accelerator": ("accelerators", 30.0),
    "matrix products": ("products", 20.0),
    "compiled loops": ("loops", 60.0),
    "bundled model": ("bundled_model", 90.0),
    "caches": ("caches", 10.0),
    "models": ("models", 10.0),
    "working folder": ("here", 10.0),
    "hub": ("hub", 6.0),
}


def run(arguments: Sequence[str]) -> int:
    """Run `palinka doctor`.

    Args:
        arguments: What follows `palinka doctor` on the command line.

    Returns:
        The exit status: 0, or 1 if something that palinka needs does not work.

    Raises:
        InputError: If the command line cannot be understood.
    """
    _parser().parse_args(arguments)
    broken = False
    for finding in look():
        broken |= finding.state is State.BROKEN
        if finding.state is not State.FINE or not is_quiet():
            mark = colored(f"{finding.state.value:<5}", _COLORS[finding.state])
            print(f"{mark}{finding.name:<17}{printable(finding.text)}", flush=True)
    return int(broken)


def look() -> Iterator[Finding]:
    """Look at one thing after the other, and at none for longer than its seconds."""
    for name, (where, seconds) in LOOKS.items():
        yield from within(seconds, name, partial(_look, where))


def _look(name: str) -> list[Finding]:
    found: list[Finding] = globals()[name]()
    return found


def parsers() -> dict[str, PlainParser]:
    """The parser of `palinka doctor`."""
    return {"doctor": _parser()}


def _parser() -> PlainParser:
    return PlainParser(
        "palinka doctor",
        description="Look at versions, devices, matrix products, folders and the hub. The exit"
        " status is 0, or 1 if something that palinka needs does not work.",
    )
