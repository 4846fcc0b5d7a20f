"""Input errors, and the helpers that every room needs."""

import difflib
import importlib
import os
import pkgutil
import re
import stat
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType, NoneType, UnionType
from typing import Any, BinaryIO, Literal, TextIO, TypeVar, Union, get_args, get_origin

import yaml
from tqdm.auto import tqdm

# Zero-width non-joiner and joiner, which Persian words and families of emoji hold.
_JOINERS = "\u200c\u200d"


def escape_control_chars(text: str) -> str:
    r"""Write what a terminal would obey, or what nobody can see, as escapes such as `\x1b`.

    Line breaks, control characters, marks that turn the direction of text and halves of
    characters are escaped; letters, accents and spaces of every script stay, and so do joiners
    within a word or an emoji.

    Args:
        text: Any text.

    Returns:
        One line.
    """
    if text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable()
        or unicodedata.category(character) == "Zs"
        or (character in _JOINERS and _within_word(text, place))
        else character.encode("unicode_escape").decode()
        for place, character in enumerate(text)
    )


def _within_word(text: str, place: int) -> bool:
    """Whether letters or signs beyond ASCII stand on both sides."""
    around = text[max(0, place - 1) : place] + text[place + 1 : place + 2]
    return len(around) == 2 and not around[0].isascii() and around[1:].isprintable()


# What is longer helps nobody: both ends are shown.
_LONGEST = 20_000


class InputError(ValueError):
    """What the user gave cannot be used.

    The message is one line that names what was given, what was expected and what to do. What
    was given may have been written by anyone, so whatever is not printable in it is escaped.
    The command line prints it without a traceback and exits with status 2.
    """

    def __init__(self, message: str) -> None:
        if len(message) > _LONGEST:
            message = f"{message[: _LONGEST // 2]} … {message[-_LONGEST // 2 :]}"
        super().__init__(escape_control_chars(message))


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Suggest the nearest valid name, as in ` (did you mean 'tied'?)`; empty if none."""
    nearest = difflib.get_close_matches(name, list(names), n=1)
    return f" (did you mean {nearest[0]!r}?)" if nearest else ""


def first_line(error: BaseException) -> str:
    """First line of an exception's message, or the name of its class."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


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
        raise InputError(f"{path} has no {name!r}{did_you_mean(name, vars(module))}")
    return getattr(module, name)


_VARIABLE = re.compile(r"\$\{?(\w+)\}?")


def expanded(path: str | Path) -> Path:
    """Put the home folder for `~`, and their values for `$NAME` and `${NAME}`.

    Args:
        path: A path in which environment variables may stand.

    Raises:
        InputError: If a variable is not set, there is no such user, or no file can be named so.
    """
    if "\0" in str(path):
        raise InputError(f"{path}: no file has a NUL in its name; check the path")

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name not in os.environ:
            raise InputError(f"{path}: the environment variable {name} is not set; set it first")
        return os.environ[name]

    try:
        return Path(_VARIABLE.sub(value, str(path))).expanduser()
    except RuntimeError as error:
        raise InputError(f"{path}: there is no such user's home folder; check the path") from error


def open_ordinary(path: Path) -> BinaryIO:
    """Open a file for reading, without ever waiting for one that is no file.

    Reading from a pipe or a device would take forever, or all memory.

    Args:
        path: The file; symbolic links are followed.

    Raises:
        InputError: If it is a pipe, a device or a folder, or cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:  # ValueError: NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read: {reason}; check the path") from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        what = "Is a directory" if stat.S_ISDIR(mode) else "it is a pipe or a device"
        raise InputError(f"{path} cannot be read: {what}; give a file")
    return os.fdopen(descriptor, "rb")


def read_ordinary(path: Path, largest: int) -> bytes:
    """The bytes of an ordinary file.

    Args:
        path: The file.
        largest: How many bytes are read at most.

    Raises:
        InputError: If it is no ordinary file, cannot be read, or is larger.
    """
    with open_ordinary(path) as file:
        try:
            content = file.read(largest + 1) if _size(file) <= largest else b""
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}; check the disk") from error
        if max(len(content), _size(file)) > largest:
            raise InputError(
                f"{path} has {_size(file)} bytes; expected at most {largest}: divide it"
            )
    return content


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a new version of a file, which takes its name once it is complete and on the disk.

    The bytes go to `<name>.tmp`, which is flushed (`fsync`) and renamed at the end of the `with`
    block. If an exception ends the block, the old version stays and the new one is removed. Only
    one process may write a file at a time.

    Args:
        path: The file; its folder must exist.

    Raises:
        OSError: If it cannot be written.
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


_QUIET = "PALINKA_QUIET"
# Other libraries' own ways of drawing no bars; read when they are imported.
_OTHERS = ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")
_COLORS = {"red": 31, "green": 32, "yellow": 33, "bold": 1}


def is_quiet() -> bool:
    """Whether only results, warnings and errors are wanted: `--quiet`, or `PALINKA_QUIET=1`."""
    return os.environ.get(_QUIET, "0") not in ("", "0")


@contextmanager
def suppress_progress(wanted: bool) -> Iterator[None]:
    """Be quiet within, if wanted; processes that are started within are quiet as well."""
    before = {name: os.environ.get(name) for name in (_QUIET, *_OTHERS)}
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
    """Text as a stream should get it: in color on a terminal, and plain everywhere else.

    Args:
        text: What to write; nothing in it is escaped.
        color: `red`, `green`, `yellow` or `bold`.
        stream: Where it goes; standard output if left out.
    """
    stream = stream or sys.stdout
    # https://no-color.org: any value but the empty one.
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not stream.isatty():
        return text
    return f"\x1b[{_COLORS[color]}m{text}\x1b[0m"


T = TypeVar("T")

# Shorter work ends without ever drawing a bar.
DELAY_SECONDS = 2.0


def _refresh_seconds() -> float:
    """Seldom in a log file, where every refresh is a line that stays."""
    return 0.1 if sys.stderr.isatty() else 5.0


def track(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Go through `iterable`, with a bar once it has taken more than two seconds."""
    yield from tqdm(
        iterable,
        desc=description,
        total=total,
        delay=DELAY_SECONDS,
        disable=is_quiet(),
        mininterval=_refresh_seconds(),
        dynamic_ncols=True,
    )


@contextmanager
def progress(description: str, total: int | None, unit: str) -> Iterator[Any]:
    """A bar that the caller moves with `.update(n)`; its rate is in `unit` per second.

    Args:
        description: What is going on, for the left edge of the bar.
        total: How many units there will be, if known.
        unit: The unit's name, such as `"tokens"`.
    """
    with tqdm(
        total=total,
        desc=description,
        unit=f" {unit}",
        unit_scale=True,
        delay=DELAY_SECONDS,
        disable=is_quiet(),
        mininterval=_refresh_seconds(),
        dynamic_ncols=True,
    ) as bar:
        yield bar


_SHOWN = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    NoneType: "null",
}


def type_mismatch(value: Any, hint: Any) -> str | None:
    """What a type hint expects instead of a value, in words.

    Numbers are not truth values, and no text stands for a number; a whole number may stand
    where a number is expected.

    Args:
        value: A truth value, number, text or null.
        hint: A type hint of such types, literals and unions of them.

    Returns:
        None where the value fits, or where the hint names other types than these.
    """
    choices = _choices(hint)
    if any(isinstance(choice, type) and choice not in _SHOWN for choice in choices):
        return None
    if any(_fits(value, choice) for choice in choices):
        return None
    return " or ".join(
        _SHOWN[choice] if isinstance(choice, type) else repr(choice) for choice in choices
    )


def admits_null(hint: Any) -> bool:
    """Whether null may stand where a type hint stands; also where the hint says nothing."""
    return any(choice in (NoneType, object, Any, None) for choice in _choices(hint))


def _choices(hint: Any) -> list[Any]:
    """The alternatives that a type hint gives: types, and single values."""
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


DEEPEST = 40


class UnboundedError(yaml.YAMLError):
    """A document beyond the bounds, in one line."""


def check_bounds(text: str, most: int, longest: int | None = None) -> None:
    """Go through a YAML document event by event, which builds nothing.

    Texts inside of the document are held to the same bounds: an option's text may be read as
    YAML once more.

    Args:
        text: The document. What is wrong with it otherwise is left to its reader.
        most: How many values it may stand for once its aliases are written out.
        longest: How many values a single list or mapping may have, keys included.

    Raises:
        UnboundedError: If it is nested more than forty levels deep, stands for more values,
            has a longer list, or an alias inside of what the alias stands for.
    """
    if len(text) <= DEEPEST:
        return
    sizes: dict[str, int] = {}  # of what each finished anchor stands for
    # The open collections: anchor, values so far at any depth, and members.
    pending: list[tuple[str | None, int, int]] = []
    total = 0
    try:
        for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            size = 0
            if isinstance(event, yaml.CollectionStartEvent):
                pending.append((event.anchor, 1, 0))
                if len(pending) > DEEPEST:
                    raise UnboundedError(f"nested more than {DEEPEST} levels deep")
            elif isinstance(event, yaml.CollectionEndEvent):
                anchor, size, _ = pending.pop()
                if anchor is not None:
                    sizes[anchor] = size
            elif isinstance(event, yaml.ScalarEvent):
                size = 1
                if event.anchor is not None:
                    sizes[event.anchor] = 1
                if len(event.value) < len(text):
                    check_bounds(event.value, most, longest)
            elif isinstance(event, yaml.AliasEvent):
                name = str(event.anchor)
                if any(anchor == name for anchor, *_ in pending):
                    raise UnboundedError(f"the alias *{name} stands inside of itself")
                size = sizes.get(name, 1)
            if pending and size:
                anchor, before, members = pending[-1]
                pending[-1] = (anchor, before + size, members + 1)
                total = before + size
                if longest is not None and members >= longest:
                    raise UnboundedError(f"it has a list of more than {longest} values")
            if total > most:
                raise UnboundedError(f"it stands for more than {most} values")
    except UnboundedError:
        raise
    except (yaml.YAMLError, ValueError):
        return


class FunctionPackage(ModuleType):
    """A package whose attribute `name` is the function `name` of its module `name`.

    A package becomes one by `sys.modules[__name__].__class__ = FunctionPackage`. A new file is
    then found without being listed anywhere, when it is first asked for.
    """

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and name in dir(self):
            importlib.import_module(f"{self.__name__}.{name}")
            return self.__dict__[name]
        raise AttributeError(f"module '{self.__name__}' has no attribute '{name}'")

    def __setattr__(self, name: str, value: Any) -> None:
        # Whoever imports a module of the package makes the import system bind it here.
        if isinstance(value, ModuleType) and hasattr(value, name):
            value = getattr(value, name)
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted(module.name for module in pkgutil.iter_modules(self.__path__))
