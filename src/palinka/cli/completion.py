import argparse
import inspect
import re
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import shtab

from palinka.cli import commands
from palinka.cli.parser import classes_of


def completion(shell: Literal["bash", "fish", "zsh"], /) -> int:
    """Print a script that completes commands and options.

    For bash: palinka completion bash > ~/.local/share/bash-completion/completions/palinka

    Args:
        shell: The shell.
    """
    print(script(shell))
    return 0


def script(shell: str) -> str:
    """Completion script of all commands for one of `shtab.SUPPORTED_SHELLS`.

    jsonargparse's own integration with shtab writes every argument of every class: 80 MB of bash.
    """
    root = argparse.ArgumentParser("palinka")
    within = {"": root.add_subparsers()}
    for words, complete in sorted(commands.parsers().items()):
        parent, _, name = words.rpartition(" ")
        if parent not in within:
            known = within[""].choices.get(parent) or within[""].add_parser(parent, help="")
            within[parent] = known.add_subparsers()
        parser = within[parent].add_parser(name, help=commands.COMMANDS[words].does)
        for arguments in _arguments(complete):
            parser.add_argument(*arguments.pop("names"), **arguments)
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
        choices = sorted(classes_of(hint))
        if hint is bool:
            choices = ["true", "false"]
        elif get_origin(hint) is Literal:
            choices = list(map(str, get_args(hint)))
        if names and action.nargs == 0:
            yield {"names": names, "action": "store_true", "help": text}
        elif names:
            yield {"names": names, "choices": choices or None, "help": text}
            for parameter in sorted(_parameters(hint)):
                yield {"names": [f"{names[0]}.{parameter}"], "help": f"of {names[0][2:]}"}
        elif choices and not action.option_strings:
            yield {"names": [action.dest], "choices": choices, "nargs": "?"}


def _parameters(hint: Any) -> set[str]:
    """Arguments of palinka's own classes of a type."""
    own = [kind for kind in classes_of(hint).values() if kind.__module__.startswith("palinka.")]
    found = {name for kind in own for name in inspect.signature(kind).parameters}
    return found - {"input_dim", "output_dim", "args", "kwargs"}
