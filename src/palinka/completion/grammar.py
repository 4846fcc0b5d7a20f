"""What may be typed: commands, their options, and the options' values."""

import argparse
import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, get_args, get_origin

from palinka.arguments import class_named, class_names

_FIRST_SENTENCE = re.compile(r"^.*?(?:[.;](?=\s|$)|$)")
_LONGEST = 60


class Option(NamedTuple):
    """One option.

    Attributes:
        name: With its dashes.
        does: In a few words.
        takes: What it takes: `nothing`, `anything` (files are offered) or `choices`.
        choices: Those.
    """

    name: str
    does: str
    takes: str = "anything"
    choices: tuple[str, ...] = ()


class Line(NamedTuple):
    """A command line.

    Attributes:
        does: In a few words.
        options: Its options.
        words: What may follow at once: commands within it, or the choices of its argument.
    """

    does: str
    options: tuple[Option, ...]
    words: tuple[str, ...]


def grammar(parsers: Mapping[str, argparse.ArgumentParser]) -> dict[str, Line]:
    """What each command line takes.

    Args:
        parsers: By the words that the command lines begin with.
    """
    return {
        begins: Line(_brief(parser.description), tuple(_options(parser)), _words(begins, parsers))
        for begins, parser in parsers.items()
    }


def _words(begins: str, parsers: Mapping[str, argparse.ArgumentParser]) -> tuple[str, ...]:
    """The choices of an argument without dashes, and the commands in this one."""
    choices = [
        str(choice)
        for action in parsers[begins]._actions
        if not action.option_strings
        for choice in action.choices or ()
    ]
    inner = [o.removeprefix(f"{begins} ") for o in parsers if o.startswith(f"{begins} ")]
    return tuple(dict.fromkeys([*choices, *inner]))


def _options(parser: argparse.ArgumentParser) -> Iterator[Option]:
    yield Option("--quiet", "only results, warnings and errors", "nothing")
    for action in parser._actions:
        # `--list+` appends to what a file says, and `--class.help` describes a class.
        names = [
            name
            for name in action.option_strings
            if name.startswith("--") and not name.endswith(("+", ".help"))
        ]
        for name in names:
            yield _option(name, action)
        hint = getattr(action, "_typehint", None)
        for parameter in sorted(_parameters(hint)) if names else ():
            yield Option(f"{names[0]}.{parameter}", f"of the {names[0].rpartition('.')[2]}")


def _option(name: str, action: argparse.Action) -> Option:
    hint = getattr(action, "_typehint", None)
    choices = tuple(map(str, action.choices or ())) or tuple(class_names(hint))
    if hint is bool:
        choices = ("true", "false")
    if get_origin(hint) is Literal:
        choices = tuple(map(str, get_args(hint)))
    takes = "choices" if choices else "nothing" if action.nargs == 0 else "anything"
    return Option(name, _brief(action.help), takes, choices)


def _parameters(hint: Any) -> set[str]:
    """The arguments of palinka's own classes that a value may be of."""
    found: set[str] = set()
    for name in class_names(hint):
        kind = class_named(hint, name)
        if kind.__module__.startswith("palinka."):
            found |= set(inspect.signature(kind).parameters)
    return {name for name in found if name not in ("input_dim", "output_dim", "args", "kwargs")}


def _brief(text: str | None) -> str:
    """The first sentence, on one line, of characters that no shell reads anything into."""
    sentence = _FIRST_SENTENCE.match(" ".join((text or "").split()))
    kept = re.sub(r"[^\w ,./()-]", "", sentence[0] if sentence else "").strip(" .;")
    return kept if len(kept) <= _LONGEST else f"{kept[: _LONGEST - 2].rstrip()} …"
