"""Input errors, and the helpers that every room needs."""

import difflib
import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType, NoneType, UnionType
from typing import Any, BinaryIO, Literal, TextIO, TypeVar, Union, get_args, get_origin

T = TypeVar("T")

MAX_MESSAGE = 20_000
# Zero-width non-joiner and joiner, in Persian words and families of emoji.
_JOINERS = "\u200c\u200d"
_UNSET_VARIABLE = re.compile(r"\$\{?(\w+)\}?")
_QUIET = "PALINKA_QUIET"
# Switches of other libraries' progress bars; read when they are imported.
_NO_BARS = ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")
_COLORS = {"red": 31, "green": 32, "yellow": 33, "bold": 1}
# Shorter work ends without a progress bar.
DELAY_SECONDS = 2.0


def escape_control_chars(text: str) -> str:
    r"""Escape what a terminal interprets or hides, as in `\x1b`; the result is one line.

    Line breaks, control characters, bidirectional marks and lone surrogates are escaped;
    letters, accents and spaces of every script stay, and so do joiners within a word or an emoji.
    """
    if text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable()
        or unicodedata.category(character) == "Zs"
        or (character in _JOINERS and _joins(text[max(0, place - 1) : place + 2]))
        else character.encode("unicode_escape").decode()
        for place, character in enumerate(text)
    )


def _joins(around: str) -> bool:
    """Tell a joiner between characters beyond ASCII from one that hides in text."""
    return len(around) == 3 and not around[0].isascii() and around[2].isprintable()


class InputError(ValueError):
    """Unusable input: the command line prints its message and exits with status 2.

    The message is one line that names what was given, what was expected and what to do. Control
    characters in it are escaped, and the middle of a very long one is left out.
    """

    def __init__(self, message: str) -> None:
        if len(message) > MAX_MESSAGE:
            message = f"{message[: MAX_MESSAGE // 2]} … {message[-MAX_MESSAGE // 2 :]}"
        super().__init__(escape_control_chars(message))


def did_you_mean(name: str, names: Iterable[str], most: int = 20) -> str:
    """Suggest the nearest valid name, as in `; did you mean 'tied'?`.

    Args:
        name: An unknown name.
        names: The valid ones, listed if none is near.
        most: Maximum length of that list; longer ones are left out.
    """
    known = sorted(names)
    for nearest in difflib.get_close_matches(name, known, n=1, cutoff=0.5):
        return f"; did you mean '{nearest}'?"
    return f"; choose from {', '.join(known)}" if 0 < len(known) <= most else ""


def first_line(error: BaseException) -> str:
    """First line of an exception's message, or the name of its class."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def one_line(error: BaseException) -> str:
    """An exception's whole message on one line, or the name of its class."""
    return " ".join(str(error).split()) or type(error).__name__


def load_from_file(given: str, folder: Path) -> Any:
    """Load a class or function from a Python file of the user.

    Args:
        given: The file and the name in it, such as `my_analysis.py:nearest_mean`.
        folder: Folder that a relative path starts from.
    """
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
    if unset := _UNSET_VARIABLE.search(full):
        raise InputError(f"{path}: the environment variable {unset[1]} is not set; set it first")
    return Path(full)


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a new version of a file, which takes its name once it is complete and on the disk.

    The bytes go to `<name>.tmp`, which is flushed (`fsync`) and renamed at the end of the `with`
    block. If an exception ends the block, the old version stays and the new one is removed. Only
    one process may write a file at a time, and its folder must exist.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
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
    """Return whether `--quiet` or `PALINKA_QUIET=1` asks for results and errors only."""
    return os.environ.get(_QUIET, "0") not in ("", "0")


@contextmanager
def suppress_progress(wanted: bool) -> Iterator[None]:
    """Suppress progress bars within, also those of child processes, if wanted."""
    before = {name: os.environ.get(name) for name in (_QUIET, *_NO_BARS)}
    if wanted or is_quiet():
        os.environ.update(dict.fromkeys(before, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def colored(text: str, color: str, stream: TextIO | None = None) -> str:
    """Color text `red`, `green`, `yellow` or `bold` on a terminal; others get it as it is."""
    stream = stream or sys.stdout
    # https://no-color.org: any value but the empty one.
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not stream.isatty():
        return text
    return f"\x1b[{_COLORS[color]}m{text}\x1b[0m"


def progress(
    description: str, total: int | None, unit: str = "it", **options: Any
) -> AbstractContextManager[Any]:
    """Make a progress bar that the caller moves with `.update(n)`.

    Args:
        description: Text at the left edge of the bar.
        total: Number of units, if known.
        unit: Plural name of the unit, such as `tokens`; the rate is in units per second.
        **options: Of tqdm.
    """
    from tqdm.auto import tqdm  # brings asyncio, which an error message does not need

    bar: AbstractContextManager[Any] = tqdm(
        desc=description,
        total=total,
        unit=f" {unit}",
        unit_scale=True,
        delay=DELAY_SECONDS,
        disable=is_quiet(),
        # In a log file every refresh is a line.
        mininterval=0.1 if sys.stderr.isatty() else 5.0,
        dynamic_ncols=True,
        **options,
    )
    return bar


def track(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Go through `iterable` with a progress bar."""
    yield from progress(description, total, iterable=iterable)  # type: ignore[misc]


_TYPE_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    NoneType: "null",
}


def type_mismatch(value: Any, hint: Any) -> str | None:
    """Describe the types that a hint allows, if a plain value is of none of them.

    A bool is not a number, and no text stands for a number; an int is a float.

    Args:
        value: A bool, number, text or null.
        hint: Types of such values, literals and unions of them; of any other, nothing is said.
    """
    choices = _choices(hint)
    if any(isinstance(choice, type) and choice not in _TYPE_NAMES for choice in choices):
        return None
    if any(_fits(value, choice) for choice in choices):
        return None
    return " or ".join(_TYPE_NAMES[c] if isinstance(c, type) else repr(c) for c in choices)


def _choices(hint: Any) -> list[Any]:
    """Alternatives of a type hint: types, and single values."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return [choice for part in get_args(hint) for choice in _choices(part)]
    if origin is Literal:
        return list(get_args(hint))
    kind = origin or hint
    return [kind if isinstance(kind, type) else object]


def _fits(value: Any, choice: Any) -> bool:
    if not isinstance(choice, type):
        return type(value) is type(choice) and bool(value == choice)
    return type(value) in ((int, float) if choice is float else (choice,))
