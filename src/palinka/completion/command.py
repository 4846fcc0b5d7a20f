"""The command `palinka completion`: a script for a shell."""

from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence

from palinka import commands
from palinka.completion.scripts import SCRIPTS
from palinka.plain_parser import PlainParser

_DESCRIPTION = """\
Print a script with which a shell completes commands, options and the names of classes. Everything
is in the script, so that completing takes no time; print it again after an update.

  bash   palinka completion bash > ~/.local/share/bash-completion/completions/palinka
  zsh    palinka completion zsh > ~/.zfunc/_palinka   (with ~/.zfunc in $fpath)
  fish   palinka completion fish > ~/.config/fish/completions/palinka.fish
"""


def run(arguments: Sequence[str]) -> int:
    """Run `palinka completion SHELL`.

    Args:
        arguments: What follows `palinka completion` on the command line.

    Returns:
        The exit status.

    Raises:
        InputError: If the command line cannot be understood.
    """
    shell = _parser().parse_args(arguments).shell
    from palinka.completion.grammar import grammar  # imports every command

    does = {name: command.does for name, command in commands.COMMANDS.items()}
    print(SCRIPTS[shell](does, grammar(commands.parsers())), end="")
    return 0


def parsers() -> dict[str, PlainParser]:
    """The parser of `palinka completion`."""
    return {"completion": _parser()}


def _parser() -> PlainParser:
    parser = PlainParser(
        "palinka completion", description=_DESCRIPTION, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument("shell", choices=sorted(SCRIPTS), help="the shell that is to complete")
    return parser
