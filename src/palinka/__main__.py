"""The command `palinka`, also as `python -m palinka`.

`--version`, `--help` and mistyped commands are answered before torch is imported.
"""

import os
import signal
import sys
from collections.abc import Sequence

from palinka import __version__
from palinka.cli import commands
from palinka.cli.commands import COMMANDS
from palinka.errors import InputError, colored, did_you_mean, suppress_progress

# Exit statuses that shells report of a process that a signal ended.
INTERRUPTED, EXIT_BROKEN_PIPE = 128 + signal.SIGINT, 128 + signal.SIGPIPE

# Names of commands elsewhere that are too far from the names here to be suggested by spelling.
SYNONYMS = {"train": "fit", "resume": "fit --ckpt_path last", "dashboard": "atlas"}
_COMMAND_LINES = "\n".join(f"  {name:<14}{command.does}" for name, command in COMMANDS.items())
HELP = f"""\
usage: palinka [--quiet] COMMAND [--config FILE ...] [--KEY VALUE ...]

Trains sparse autoencoders on a language model's activations, and tests what
neurons and features respond to.

commands:
{_COMMAND_LINES}

options:
  --config FILE     YAML; repeatable; options on the command line win
  --print_config    print the whole configuration and exit
  --ckpt_path FILE  a checkpoint to resume or measure; `last` for the last
  --quiet           only results, warnings and errors: no bars, no banners
  --help, --version `palinka COMMAND --help` lists every option of a command

exit status: 0 done, 1 failed, 2 unusable input, 130 interrupted, 143 stopped
environment: PALINKA_CACHE, PALINKA_QUIET, NO_COLOR, HF_HOME, HF_HUB_OFFLINE

A first run, offline:  palinka fit --config quickstart
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status, of `HELP` or 141 after a broken pipe."""
    given = list(sys.argv[1:] if argv is None else argv)
    arguments = [argument for argument in given if argument != "--quiet"]
    try:
        with suppress_progress(len(arguments) < len(given)):
            status = _run(arguments)
            sys.stdout.flush()
            return status
    except InputError as error:
        print(f"palinka: {colored('error:', 'red', sys.stderr)} {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, SystemExit) as ended:
        # After Ctrl-C Lightning cleans up and exits with status 1.
        if KeyboardInterrupt not in (type(ended), type(ended.__context__)):
            raise
        print("palinka: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # As in `palinka cache list | head`. Python flushes standard output once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE


def _run(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if arguments[0] == "--version":
        print(f"palinka {__version__}")
        return 0
    for words in (2, 1):  # `cache list` before `cache`
        if (name := " ".join(arguments[:words])) in COMMANDS:
            return commands.run(name, arguments[words:])
    kind = "option" if arguments[0].startswith("-") else "command"
    within = [name for name in COMMANDS if name.startswith(f"{arguments[0]} ")]
    given = " ".join(arguments[: 1 + bool(within)])
    if given in SYNONYMS:
        raise InputError(f"there is no command '{given}' (did you mean '{SYNONYMS[given]}'?)")
    hint = did_you_mean(given, within or [*COMMANDS, "--help", "--version", "--quiet"])
    raise InputError(f"there is no {kind} '{given}'{hint}")


if __name__ == "__main__":
    sys.exit(main())
