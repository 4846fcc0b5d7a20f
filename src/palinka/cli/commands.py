"""The commands, and the module of each."""

import argparse
import difflib
import importlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from palinka.errors import InputError

_CHOICES = re.compile(r"(?P<what>invalid choice: '(?P<given>[^']*)')")


class ArgumentParser(argparse.ArgumentParser):
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


class Command(NamedTuple):
    """One command.

    Attributes:
        does: What it does, for the list of all commands.
        module: Where it is.
        shared: Whether the module has several commands, and is told which.
    """

    does: str
    module: str
    shared: bool = False


COMMANDS = {
    "fit": Command("train a sparse autoencoder on a model's activations", "palinka.cli.fit", True),
    "validate": Command("measure a checkpoint on the validation split", "palinka.cli.fit", True),
    "test": Command("the same under the names of a test", "palinka.cli.fit", True),
    "predict": Command(
        "write the latents of the validation split to disk", "palinka.cli.fit", True
    ),
    "harvest": Command("only fill the cache of activations", "palinka.cli.fit", True),
    "verify": Command("read a configuration's caches, compare checksums", "palinka.cli.fit", True),
    "analyze": Command("ask neurons or latents questions, without training", "palinka.cli.analyze"),
    "export": Command(
        "write a checkpoint in another library's format", "palinka.cli.convert", True
    ),
    "import": Command("make a checkpoint of another library's", "palinka.cli.convert", True),
    "cache": Command("list the caches of activations, or remove some", "palinka.cli.cache"),
    "atlas": Command("write pages about every latent, or serve them", "palinka.cli.atlas"),
    "doctor": Command("check the installation", "palinka.cli.doctor"),
    "completion": Command("print a shell completion script", "palinka.cli.completion"),
}


def run(name: str, arguments: Sequence[str]) -> int:
    """Run a command and return its exit status.

    Args:
        name: One of `COMMANDS`.
        arguments: What follows it.
    """
    command = COMMANDS[name]
    given = [name, *arguments] if command.shared else list(arguments)
    status: int = importlib.import_module(command.module).run(given)
    return status


def parsers() -> dict[str, Any]:
    """Every command line's parser, by the words that it begins with; imports everything."""
    modules = dict.fromkeys(command.module for command in COMMANDS.values())
    found: dict[str, Any] = {}
    for module in modules:
        found |= importlib.import_module(module).parsers()
    return found
