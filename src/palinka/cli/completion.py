"""`palinka completion`: shell completion, written by shtab."""

import argparse
import inspect
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args, get_origin

import shtab

from palinka.cli import commands
from palinka.cli.commands import ArgumentParser
from palinka.cli.parser import classes_of


def script(shell: str) -> str:
    """Completion script of all commands for one of `shtab.SUPPORTED_SHELLS`.

    jsonargparse's own integration with shtab writes every argument of every class: 80 MB of bash.
    """
    parsers = commands.parsers()
    root = argparse.ArgumentParser("palinka")
    within = {"": root.add_subparsers()}
    for words in sorted(parsers):
        parent, _, name = words.rpartition(" ")
        does = commands.COMMANDS[words].does if words in commands.COMMANDS else ""
        parser = within[parent].add_parser(name, help=does)
        for arguments in _arguments(parsers[words]):
            parser.add_argument(*arguments.pop("names"), **arguments)
        if any(other.startswith(f"{words} ") for other in parsers):
            within[words] = parser.add_subparsers()
    return shtab.complete(root, shell)


def _arguments(parser: argparse.ArgumentParser) -> Iterator[dict[str, Any]]:
    """The arguments of a parser as `add_argument` takes them."""
    yield {"names": ["--quiet"], "action": "store_true", "help": "only results and errors"}
    for action in parser._actions:
        # `--list+` appends to a list of a file, and `--class.help` describes a class.
        names = [
            name
            for name in action.option_strings
            if name.startswith("--") and name != "--help" and not name.endswith(("+", ".help"))
        ]
        hint = getattr(action, "_typehint", None)
        # The first sentence, of characters that have no meaning to a shell.
        text = re.split(r"[.;](?:\s|$)", " ".join((action.help or "").split()))[0]
        text = re.sub(r"[^\w ,./()-]", "", text)
        choices = list(map(str, action.choices or ())) or sorted(classes_of(hint))
        if hint is bool:
            choices = ["true", "false"]
        elif get_origin(hint) is Literal:
            choices = list(map(str, get_args(hint)))
        if names and action.nargs == 0:
            yield {"names": names, "action": "store_true", "help": text}
        elif names:
            yield {"names": names, "choices": choices or None, "help": text}
        elif choices and not (action.option_strings or action.dest == "command"):
            yield {"names": [action.dest], "choices": choices, "nargs": "?"}
        for parameter in sorted(_parameters(hint)) if names else ():
            yield {"names": [f"{names[0]}.{parameter}"], "help": f"of {names[0][2:]}"}


def _parameters(hint: Any) -> set[str]:
    """Arguments of palinka's own classes of a type."""
    found: set[str] = set()
    for kind in classes_of(hint).values():
        if kind.__module__.startswith("palinka."):
            found |= set(inspect.signature(kind).parameters)
    return found - {"input_dim", "output_dim", "args", "kwargs"}


def run(arguments: Sequence[str]) -> int:
    """Run `palinka completion`: print the script."""
    print(script(_parser().parse_args(arguments).shell))
    return 0


def parsers() -> dict[str, ArgumentParser]:
    """The parser of `palinka completion`."""
    return {"completion": _parser()}


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        "palinka completion",
        description="Print a script that completes commands and options; for bash:"
        " palinka completion bash > ~/.local/share/bash-completion/completions/palinka",
    )
    parser.add_argument("shell", choices=shtab.SUPPORTED_SHELLS)
    return parser
