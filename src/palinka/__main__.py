"""The command `palinka`, also as `python -m palinka`.

What needs no model (`--version`, `--help`, a mistyped command) is answered before torch is
imported.
"""

import difflib
import os
import signal
import sys
from collections.abc import Sequence

from palinka import __version__
from palinka.cli import commands
from palinka.cli.commands import COMMANDS
from palinka.errors import InputError, colored, suppress_progress

# What shells report of a process that a signal ended.
INTERRUPTED = 128 + signal.SIGINT
NOBODY_READS = 128 + signal.SIGPIPE

_COMMAND_LINES = "\n".join(f"  {name:<12}{command.does}" for name, command in COMMANDS.items())
HELP = f"""\
usage: palinka [--quiet] COMMAND [--config FILE ...] [--KEY VALUE ...]

Distils the activations of a language model into sparse features.

commands:
{_COMMAND_LINES}

options:
  --config FILE     YAML; repeatable; the command line beats every file
  --print_config    show the whole configuration and stop
  --ckpt_path FILE  a checkpoint to go on from or measure; `last` for the last
  --quiet           only results, warnings and errors: no bars, no banners
  --help, --version `palinka COMMAND --help` lists every option of a command

exit status: 0 done, 1 failed, 2 unusable input, 130 interrupted, 143 stopped
environment: PALINKA_CACHE, PALINKA_QUIET, NO_COLOR, HF_HOME, HF_HUB_OFFLINE

A first run, offline:  palinka fit --config configs/quickstart.yaml
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The arguments after the program's name; those of the process if left out.

    Returns:
        The exit status: 0, 1 for a failure while running, 2 for input that cannot be used, 130
        after Ctrl-C, 141 where nobody reads the output any more, 143 after SIGTERM.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    arguments = [argument for argument in given if argument != "--quiet"]
    try:
        with suppress_progress(len(arguments) < len(given)):
            status = _run(arguments)
            sys.stdout.flush()
            return status
    except InputError as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        return _interrupted()
    except SystemExit as ended:
        # Lightning tidies up after Ctrl-C, and ends with status 1.
        if isinstance(ended.__context__, KeyboardInterrupt):
            return _interrupted()
        raise
    except BrokenPipeError:
        # Such as of `palinka cache list | head`. Python would complain when it ends.
        with open(os.devnull, "w") as nowhere:  # noqa: PTH123  (no path to speak of)
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return NOBODY_READS


def _run(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if arguments[0] == "--version":
        print(f"palinka {__version__}")
        return 0
    if arguments[0] not in COMMANDS:
        known = [*COMMANDS, "--help", "--version", "--quiet"]
        nearest = difflib.get_close_matches(arguments[0], known, n=1)
        hint = f"did you mean '{nearest[0]}'?" if nearest else f"choose from {', '.join(COMMANDS)}"
        kind = "option" if arguments[0].startswith("-") else "command"
        raise InputError(f"there is no {kind} '{arguments[0]}': {hint}")
    return commands.run(arguments[0], arguments[1:])


def _refuse(message: str) -> int:
    print(f"palinka: {colored('error:', 'red', sys.stderr)} {message}", file=sys.stderr)
    return 2


def _interrupted() -> int:
    print("palinka: interrupted", file=sys.stderr)
    return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
