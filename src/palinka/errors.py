"""Input errors, and the helpers that every room needs."""

import difflib
import inspect
import os
import re
import shlex
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache, partial, wraps
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType, NoneType, UnionType
from typing import Any, BinaryIO, Literal, TextIO, TypeVar, Union, cast, get_args, get_origin

T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., Any])
Loop = TypeVar("Loop", bound=Callable[..., Any])

MAX_MESSAGE = 20_000
_JOINERS = "\u200c\u200d"  # zero-width, in Persian words and families of emoji
_QUIET = "PALINKA_QUIET"
# Other libraries' switches, read when they are imported.
_NO_BARS = ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS", "TQDM_DISABLE")
_COLORS = {"red": 31, "green": 32, "yellow": 33, "bold": 1}
DELAY_SECONDS = 2.0  # shorter work ends without a progress bar


def escape_control_chars(text: str) -> str:
    r"""Escape what a terminal interprets or hides, as in `\x1b`; the result is one line."""
    if text.isprintable():
        return text
    shown = ""
    for before, character, after in zip(f" {text}", text, f"{text[1:]}\n", strict=False):
        joins = character in _JOINERS and not before.isascii() and after.isprintable()
        kept = joins or character.isprintable() or unicodedata.category(character) == "Zs"
        shown += character if kept else character.encode("unicode_escape").decode()
    return shown


class InputError(ValueError):
    """Unusable input: the command line prints its message and exits with status 2.

    Control characters in it are escaped, and the middle of a very long one is left out.
    """

    def __init__(self, message: str) -> None:
        if len(message) > MAX_MESSAGE:
            message = f"{message[: MAX_MESSAGE // 2]} … {message[-MAX_MESSAGE // 2 :]}"
        super().__init__(escape_control_chars(message))


def brief(value: Any) -> str:
    """Short text of a value: the shape of an array, and the size of what would be long."""
    if shape := getattr(value, "shape", ()):
        return str(tuple(shape))
    text = f"{value:.4g}" if isinstance(value, float) else repr(value)
    return text if len(text) < 80 else f"<{type(value).__name__}>"


def counted(number: int, plural: str) -> str:
    """A number of things, whose plural has an s: `1 document` of `documents`."""
    return f"{number:,} {plural.removesuffix('s') if number == 1 else plural}"


def did_you_mean(name: str, names: Iterable[str], most: int = 20) -> str:
    """Suggest the nearest name, as in ` (did you mean 'tied'?)`, or list at most `most` names."""
    known = sorted({*names})
    for nearest in difflib.get_close_matches(name, known, n=1, cutoff=0.5):
        return f" (did you mean '{nearest}'?)"
    return f"; choose from {', '.join(known)}" if 0 < len(known) <= most else ""


def first_line(error: BaseException) -> str:
    """First line of an exception's message, or the name of its class."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def one_line(error: BaseException) -> str:
    """An exception's whole message on one line, or the name of its class."""
    return " ".join(str(error).split()) or type(error).__name__


def load_from_file(given: str, folder: Path) -> Any:
    """Load a class or function given as `my_analysis.py:nearest_mean`, relative to a folder."""
    file, _, name = given.rpartition(":")
    path = folder / expanded(file)
    if not path.is_file():
        raise InputError(f"{given}: {path} does not exist; give FILE.py:NAME")
    loader = SourceFileLoader(str(path), str(path))
    module = ModuleType(loader.name)
    sys.modules[loader.name] = module  # where dataclasses look for the types of their fields
    loader.exec_module(module)
    if not hasattr(module, name):
        raise InputError(f"{path} has no {name!r}{did_you_mean(name, vars(module), most=0)}")
    return getattr(module, name)


def expanded(path: str | Path) -> Path:
    """Replace `~`, `$NAME` and `${NAME}` in a path; an unset variable is an `InputError`."""
    full = os.path.expanduser(os.path.expandvars(path))  # noqa: PTH111  (`~nobody` stays)
    if unset := re.search(r"\$\{?(\w+)\}?", full):
        raise InputError(f"{path}: the environment variable {unset[1]} is not set; set it first")
    return Path(full)


def shell_path(path: Path) -> str:
    """Path to type in a shell: relative to the working directory if within it, and quoted."""
    path, here = path.absolute(), Path.cwd()
    typed = str(path.relative_to(here) if path.is_relative_to(here) else path)
    return escape_control_chars(shlex.quote(typed))


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a new version of a file, which takes its name once it is complete and on the disk.

    The bytes go to `<name>.tmp`; only one process may write a file at a time.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            mode = os.fstat(file.fileno()).st_mode  # that of the umask
        # By its name: safetensors puts a file of its own there, with mode 0600.
        with temporary.open("rb") as complete:
            os.fchmod(complete.fileno(), mode)
            os.fsync(complete.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)  # makes the name durable
    finally:
        os.close(folder)


def is_quiet() -> bool:
    """Return whether `--quiet` or `PALINKA_QUIET=1` is set: only results and errors are shown."""
    return os.environ.get(_QUIET, "0") not in ("", "0")


@contextmanager
def suppress_progress(wanted: bool) -> Iterator[None]:
    """Suppress progress bars within, also those of child processes, if wanted."""
    switches = (_QUIET, *_NO_BARS)
    before = {name: os.environ[name] for name in switches if name in os.environ}
    if wanted or is_quiet():
        os.environ.update(dict.fromkeys(switches, "1"))
    try:
        yield
    finally:
        for name in switches:
            os.environ.pop(name, None)
        os.environ.update(before)


def colored(text: str, color: str, stream: TextIO | None = None) -> str:
    """Color text `red`, `green`, `yellow` or `bold` on a terminal; others get it as it is."""
    stream = stream or sys.stdout  # see https://no-color.org
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not stream.isatty():
        return text
    return f"\x1b[{_COLORS[color]}m{text}\x1b[0m"


def refresh_seconds(stream: TextIO) -> float:
    """Seconds between two states of a progress bar, each of which is a line of a log file."""
    return 0.5 if stream.isatty() else 10.0


def progress(
    description: str, total: int | None, unit: str = "it", **options: Any
) -> AbstractContextManager[Any]:
    """Make a tqdm bar that the caller moves with `.update(n)`; the unit is a plural, `tokens`."""
    from tqdm.auto import tqdm  # brings asyncio, which an error message does not need

    named = unit != "it"
    # tqdm would guess a number of steps for `miniters` from the speed of the first ones.
    bar: AbstractContextManager[Any] = tqdm(
        desc=description, total=total, unit=" " * named + unit, unit_scale=named,
        delay=DELAY_SECONDS, disable=is_quiet(), mininterval=refresh_seconds(sys.stderr),
        miniters=0, dynamic_ncols=True, **options,
    )  # fmt: skip
    return bar


def track(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Go through `iterable` with a progress bar."""
    yield from progress(description, total, iterable=iterable)  # type: ignore[misc]


_TYPE_NAMES = {
    bool: "true or false", int: "a whole number", float: "a number", str: "text",
    NoneType: "null", Sequence: "a list", dict: "a mapping",
}  # fmt: skip


def type_mismatch(value: Any, hint: Any) -> str | None:
    """Describe the types that a hint allows, if a plain value is of none of them.

    A bool is not a number, an int is a float. Any value fits a hint that is neither a plain type,
    a list, a literal, nor a union of them.
    """
    choices = _choices(hint)
    for choice in choices:
        kinds = (int, float) if choice is float else (choice,)
        literal = type(value) is type(choice) and value == choice
        other = isinstance(choice, type) and choice not in _TYPE_NAMES
        several = choice is Sequence and isinstance(value, Sequence)
        if type(value) in kinds or literal or several or other:
            return None
    return " or ".join(_TYPE_NAMES[c] if isinstance(c, type) else repr(c) for c in choices)


def _choices(hint: Any) -> list[Any]:
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return [choice for part in get_args(hint) for choice in _choices(part)]
    if origin is Literal:
        return list(get_args(hint))
    return [origin or hint if isinstance(origin or hint, type) else object]


def checks_strings(function: Function) -> Function:
    """Decorate a function to reject a string that the hint of its parameter does not allow."""
    signature = inspect.signature(function)
    hints = cache(partial(inspect.get_annotations, function, eval_str=True))

    @wraps(function)
    def checked(*args: Any, **given: Any) -> Any:
        with suppress(TypeError):  # of wrong parameters, which the function itself raises
            for name, value in signature.bind(*args, **given).arguments.items():
                if isinstance(value, str) and (
                    expected := type_mismatch(str(value), hints()[name])
                ):
                    raise InputError(f"{name} is {value!r}; expected {expected}")
        return function(*args, **given)

    return cast("Function", checked)


def compiled_with(**options: Any) -> Callable[[Loop], Loop]:
    """Compile a loop, with options of `numba.njit`, when it is first called with each type.

    The machine code is cached beside the source, or else in the user's cache directory, or in
    `NUMBA_CACHE_DIR`. Loops release the interpreter lock.
    """
    from numba import njit

    def compile_loop(loop: Loop) -> Loop:
        try:
            return cast("Loop", njit(cache=True, nogil=True, **options)(loop))
        except RuntimeError:  # numba found no directory that it may write to
            return cast("Loop", njit(nogil=True, **options)(loop))

    return compile_loop
