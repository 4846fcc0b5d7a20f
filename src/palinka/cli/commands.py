"""The commands, their modules, and the parser of those without a configuration."""

import argparse
import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from palinka.errors import InputError, did_you_mean

_CHOICES = re.compile(r"invalid choice: '(?P<given>[^']*)' \(choose from (?P<choices>.*)\)")


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser, with errors as one `InputError` line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse a command line; an unknown option is answered with the nearest."""
        given, unknown = self.parse_known_args(args, namespace)
        if unknown:
            word = next((one for one in unknown if one.startswith("-")), unknown[0])
            hint = did_you_mean(word.partition("=")[0], self._options(vars(given)), most=0)
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return given

    def error(self, message: str) -> NoReturn:
        """Raise an `InputError`."""
        if found := _CHOICES.search(message):
            choices = re.findall(r"[\w-]+", found["choices"])
            hint = did_you_mean(found["given"], choices)
            message = f"{message[: found.start()]}invalid choice: '{found['given']}'{hint}"
        raise InputError(f"{message}; see `{self.prog} --help`")

    def _options(self, chosen: Mapping[str, Any]) -> Iterator[str]:
        """Options of this parser and of the chosen subcommand."""
        for action in self._actions:
            yield from action.option_strings
            if isinstance(action, argparse._SubParsersAction):
                inner = action.choices.get(chosen.get(action.dest) or "")
                if inner is not None:
                    yield from (o for a in inner._actions for o in a.option_strings)


class Command(NamedTuple):
    """One command.

    Attributes:
        does: Its purpose, for the list of all commands.
        module: Its module.
        shared: Whether the module has several commands, and its `run` takes the command's name.
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
    """Run one of `COMMANDS` with the arguments that follow it; return its exit status."""
    command = COMMANDS[name]
    given = [name, *arguments] if command.shared else list(arguments)
    status: int = importlib.import_module(command.module).run(given)
    return status


def parsers() -> dict[str, Any]:
    """Parser of every command, by the words that its command line begins with."""
    modules = dict.fromkeys(command.module for command in COMMANDS.values())
    found: dict[str, Any] = {}
    for module in modules:
        found |= importlib.import_module(module).parsers()
    return found
