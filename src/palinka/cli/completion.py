import argparse
import re
from collections.abc import Iterator
from typing import Any, Literal

import shtab

from palinka.cli.commands import COMMANDS
from palinka.cli.options import Options


def completion(shell: Literal["bash", "fish", "zsh"], /) -> int:
    """Print a script that completes commands and options.

    For bash: palinka completion bash > ~/.local/share/bash-completion/completions/palinka

    Args:
        shell: The shell.
    """
    # jsonargparse's own integration with shtab writes every argument of every class: 80 MB of bash.
    root = argparse.ArgumentParser("palinka")
    within = {"": root.add_subparsers()}
    for words, command in sorted(COMMANDS.items()):
        parent, _, name = words.rpartition(" ")
        if parent not in within:
            known = within[""].choices.get(parent) or within[""].add_parser(parent, help="")
            within[parent] = known.add_subparsers()
        parser = within[parent].add_parser(name, help=command.does)
        parser.add_argument("--quiet", action="store_true", help="only results and errors")
        for arguments in _arguments(Options(words)):
            parser.add_argument(*arguments.pop("names"), **arguments)
    print(shtab.complete(root, shell))
    return 0


def _arguments(options: Options) -> Iterator[dict[str, Any]]:
    """The options of a command as `add_argument` takes them."""
    known = options.names()
    for key in list(known):
        known |= {
            f"{key}.{n}": e for a in options.classes.get(key, {}).values() for n, e in a.items()
        }
    if options.sections:
        yield {"names": ["--config"], "help": "a YAML configuration"}
        yield {"names": ["--print_config"], "action": "store_true", "help": "show it and stop"}
    for name, entry in known.items():
        # Characters that have no meaning to a shell.
        text = re.sub(r"[^\w ,./()-]", "", entry.get("help", "").partition(";")[0])
        kinds = entry["type"]
        choices = [str(c) for kind in kinds if isinstance(kind, list) for c in kind]
        choices += ["true", "false"] * ("bool" in kinds) + list(options.classes.get(name, {}))
        if entry.get("positional"):
            yield {"names": [name], "choices": choices or None, "nargs": "?", "help": text}
        elif "flag" in kinds:
            yield {"names": [f"--{name}"], "action": "store_true", "help": text}
        else:
            yield {"names": [f"--{name}"], "choices": choices or None, "help": text}
