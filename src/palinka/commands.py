"""The commands: a name, what it does in a line, and the module that does it.

A module of a command has `run(arguments)`, which takes what follows the name and returns the exit
status, and `parsers()`, which returns the parsers of its command lines by the words they begin
with, such as `cache list`. A new command is a line here.
"""

import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple


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
    "fit": Command("train a sparse autoencoder on a model's activations", "palinka.cli", True),
    "validate": Command("measure a checkpoint on the validation split", "palinka.cli", True),
    "test": Command("the same under the names of a test", "palinka.cli", True),
    "predict": Command("write the latents of the validation split to disk", "palinka.cli", True),
    "harvest": Command("only fill the cache of activations", "palinka.cli", True),
    "verify": Command("read a configuration's caches, compare checksums", "palinka.cli", True),
    "analyze": Command("ask neurons or latents questions, without training", "palinka.analyze"),
    "export": Command("write a checkpoint in another library's format", "palinka.export"),
    "import": Command("make a checkpoint of another library's", "palinka.import_command"),
    "cache": Command("list the caches of activations, or remove some", "palinka.cache_command"),
    "atlas": Command("write pages about every latent, or serve them", "palinka.atlas_command"),
    "doctor": Command("look at what is installed and whether it works", "palinka.doctor.command"),
    "completion": Command("complete commands in bash, zsh or fish", "palinka.completion.command"),
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
