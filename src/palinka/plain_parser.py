"""Small command lines, whose mistakes are answered in a line that names the nearest valid word."""

import argparse
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NoReturn

from palinka.errors import InputError

_CHOICES = re.compile(r"(?P<what>invalid choice: '(?P<given>[^']*)')")


class PlainParser(argparse.ArgumentParser):
    """argparse's parser, with errors as one `InputError` line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse a command line.

        Raises:
            InputError: If it cannot be understood.
        """
        given, unknown = self.parse_known_args(args, namespace)
        if unknown:
            word = next((one for one in unknown if one.startswith("-")), unknown[0])
            hint = nearest(word.partition("=")[0], self._options(vars(given)))
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return given

    def error(self, message: str) -> NoReturn:
        """Refuse the command line.

        Raises:
            InputError: Always.
        """
        found = _CHOICES.search(message)
        if found:
            message += nearest(found["given"], re.findall(r"'([^']*)'", message[found.end() :]))
        raise InputError(f"{message}; see `{self.prog} --help`")

    def _options(self, chosen: Mapping[str, Any]) -> Iterator[str]:
        """Its options, and those of the subcommand that was chosen."""
        for action in self._actions:
            yield from action.option_strings
            if isinstance(action, argparse._SubParsersAction):
                inner = action.choices.get(chosen.get(action.dest) or "")
                if inner is not None:
                    yield from (o for a in inner._actions for o in a.option_strings)


def nearest(given: str, names: Iterable[str]) -> str:
    """What to add to a refusal: the name that is most like the given one, if any is."""
    found = difflib.get_close_matches(given, list(names), n=1, cutoff=0.5)
    return f"; did you mean '{found[0]}'?" if found else ""
