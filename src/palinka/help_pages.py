"""How `palinka COMMAND --help` reads: what is needed first, the data and the model, then the rest.

jsonargparse writes a usage of a hundred lines, and lists the path of every class that would do.
"""

import argparse
import re
from collections.abc import Iterable, Sequence

from jsonargparse import DefaultHelpFormatter

_SUBCLASSES = re.compile(r", known subclasses: (?P<paths>[\w., ]+)")
_MOST_CLASSES = 12
# By how their options begin; what belongs to none of these comes before them.
_SECTIONS = ("data.", "model.", "options.", "trainer.")
# Of as many options the usage names those that must be given.
_MANY = 8


class HelpFormatter(DefaultHelpFormatter):
    """jsonargparse's, with classes by the short names that a command line takes."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text: str = super()._get_help_string(action)
        return _SUBCLASSES.sub(lambda found: _classes(found["paths"].split(", ")), text)


def _classes(paths: Sequence[str]) -> str:
    """Palinka's own where there are any; those of Lightning and torch are known elsewhere."""
    own = [path for path in paths if path.startswith("palinka.")]
    names = list(dict.fromkeys(path.rpartition(".")[2] for path in own or paths))
    more = ", …" if len(names) > _MOST_CLASSES or 0 < len(own) < len(paths) else ""
    return f", classes: {', '.join(names[:_MOST_CLASSES])}{more}"


def usage(parser: argparse.ArgumentParser) -> str | None:
    """The command line in brief; None for argparse's own where that is brief enough."""
    options = [action for action in parser._actions if action.option_strings]
    if len(options) <= _MANY:
        return None
    needed = [
        f"{action.option_strings[0]} {action.metavar or action.dest.rpartition('.')[2].upper()}"
        for action in options
        if action.required and "." not in action.dest
    ]
    # A command of Lightning's is called `palinka [options] fit` by jsonargparse.
    words = parser.prog.replace(" [options]", "")
    return " ".join([words, *needed, "[--config FILE ...] [--KEY VALUE ...]"])


def in_order(groups: Iterable[argparse._ArgumentGroup]) -> list[argparse._ArgumentGroup]:
    """Groups of options as they are to be read."""

    def rank(group: argparse._ArgumentGroup) -> int:
        names = [action.dest for action in group._group_actions]
        if group.title == "Linked arguments":
            return len(_SECTIONS) + 1
        sections = (
            place
            for place, start in enumerate(_SECTIONS, 1)
            if any(n.startswith(start) for n in names)
        )
        return next(sections, 0)

    return sorted(groups, key=rank)
