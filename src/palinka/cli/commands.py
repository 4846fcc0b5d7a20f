"""The commands, and the parsers of those that are plain functions."""

import atexit
import errno
import gc
import importlib
import inspect
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from palinka.cli.configs import with_paths
from palinka.cli.options import Options
from palinka.errors import InputError, one_line


class Command(NamedTuple):
    """One command."""

    does: str  # its purpose, for the list of all commands
    # `module:name` of a function whose type hints and docstring are the command line, or the module
    # of Lightning's commands. A function `overrides` in its module gives settings that win over
    # configuration files.
    function: str


COMMANDS = {
    "fit": Command("train a sparse autoencoder on a model's activations", "fit"),
    "validate": Command("measure a checkpoint on the validation split", "fit"),
    "test": Command("measure a checkpoint, logged as test metrics", "fit"),
    "predict": Command("write the latents of the validation split to disk", "fit"),
    "harvest": Command("fill the cache of activations, without training", "fit"),
    "verify": Command("compare the checksums of a configuration's caches", "fit"),
    "analyze": Command("test what neurons or latents respond to", "analyze:analyze"),
    "evaluate": Command(
        "measure dictionaries with intervals, and compare them", "evaluate:evaluate"
    ),
    "explain": Command("describe latents with a language model, scored", "atlas:explain"),
    "steer": Command("continue a text with a direction added, and without", "analyze:steer"),
    "export": Command("write a checkpoint in another library's format", "convert:export"),
    "import": Command("convert an autoencoder of another library", "convert:import_"),
    "cache list": Command("list the caches of activations", "cache:list_caches"),
    "cache remove": Command("remove some of them", "cache:remove_caches"),
    "atlas": Command("write a feature dashboard of every latent", "atlas:atlas"),
    "atlas serve": Command("serve it, with a box for your own text", "atlas:serve"),
    "configs": Command("list the configurations that come with palinka", "configs:list_configs"),
    "configs copy": Command("write one of them to edit", "configs:copy_config"),
    "doctor": Command("check the installation", "doctor:doctor"),
    "completion": Command("print a shell completion script", "completion:completion"),
}
# An OSError with one of these is about a path of the user; any other is a bug.
PATH_ERRORS = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST,
)  # fmt: skip


def run(words: str, arguments: Sequence[str]) -> int:
    """Run one of `COMMANDS` with the arguments that follow it; return its exit status."""
    arguments = list(with_paths(arguments))
    options = Options(words)
    if (text := options.requested_help(arguments)) is not None:
        print(text, end="")
        return 0
    options.check(arguments)
    target = target_of(words)
    # Lightning, which the target imports, replaces it, too: by the source line of each warning.
    warnings.formatwarning = lambda message, *_, **__: f"palinka: warning: {one_line(message)}\n"
    try:
        if callable(target):
            return _call(target, parser_of(words, target), arguments)
        return int(target.run(words, arguments))
    except OSError as error:
        if error.errno not in PATH_ERRORS:
            raise
        problem = f"{error.filename2 or error.filename or 'writing'}: {error.strerror}"
        raise InputError(f"{problem}; choose another path, or make room") from error


def _call(function: Callable[..., int], parser: Any, arguments: Sequence[str]) -> int:
    if overrides := getattr(sys.modules[function.__module__], "overrides", None):
        parser.add_overrides(overrides)
    try:
        made = vars(parser.instantiate(parser.parse_args(arguments)))
    except ValueError as error:  # jsonargparse's has several lines
        raise InputError(one_line(error)) from error
    given = {name: made[name] for name in inspect.signature(function).parameters}
    return int(function(*[given.pop(name) for name in _positional(function)], **given))


def target_of(words: str) -> Any:
    """Function of a command, or its module."""
    module, _, function = COMMANDS[words].function.partition(":")
    module = f"palinka.cli.{module}"
    if module not in sys.modules:
        # Collecting among objects of which none is garbage takes a third of a short command.
        atexit.register(gc.freeze)
        gc.disable()
    target = importlib.import_module(module)
    gc.enable()
    return getattr(target, function) if function else target


def _positional(function: Callable[..., int]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY]


def parser_of(words: str, function: Callable[..., int]) -> Any:
    """Parser of a function: positional-only parameters have no option, and False is a flag.

    With required options, it also takes configuration files.
    """
    import docstring_parser
    from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]

    from palinka.cli.parser import ArgumentParser

    described = docstring_parser.parse(function.__doc__ or "")
    helps = {param.arg_name: param.description for param in described.params}
    parameters = inspect.signature(function).parameters
    positional = _positional(function)
    flags = [name for name, p in parameters.items() if p.default is False]
    needed = [n for n, p in parameters.items() if p.default is p.empty and n not in positional]
    parser = ArgumentParser(prog=f"palinka {words}", description=described.description)
    if needed:
        parser.add_argument("-c", "--config", action=ActionConfigFile, help="A YAML configuration.")
    for name in positional:
        several = parameters[name].annotation == list[str]
        options = {"nargs": "*"} if several else {"type": parameters[name].annotation}
        parser.add_argument(name, help=helps[name], **options)
    for name in flags:
        parser.add_argument(f"--{name}", action="store_true", help=helps[name])
    classes = {n: p.annotation for n, p in parameters.items()}
    sections = [n for n, kind in classes.items() if kind.__module__.startswith("palinka.")]
    parser.add_function_arguments(function, skip={*positional, *flags, *sections}, as_group=False)
    for name in sections:
        parser.add_class_arguments(classes[name], name, help=helps[name])
    return parser
