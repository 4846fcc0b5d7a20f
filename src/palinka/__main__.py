"""The command `palinka`, also as `python -m palinka`.

What needs no model (`--version`, `--help`, a mistyped command) is answered before torch is
imported.
"""

import difflib
import sys
from collections.abc import Sequence

from palinka import __version__
from palinka.errors import InputError

COMMANDS = {
    "fit": "train a sparse autoencoder on the activations of a language model",
    "validate": "measure a checkpoint on the validation split",
    "test": "the same under the names of a test",
    "predict": "write the latents of the validation split to disk",
    "harvest": "only fill the cache of activations",
    "verify": "read the caches of a configuration and compare their checksums",
    "analyze": "ask neurons or latents questions, without any training",
    "atlas": "write pages about every latent for a browser, or serve them to type text into",
    "export": "write a checkpoint's autoencoder in the format of another library",
    "import": "make a checkpoint of an autoencoder that another library saved",
    "cache": "list the caches of activations, or remove some of them",
}

_COMMAND_LINES = "\n".join(f"  {name:<10}{text}" for name, text in COMMANDS.items())
HELP = f"""\
usage: palinka COMMAND [--config FILE ...] [--KEY VALUE ...]

Distils the activations of a language model into sparse features.

commands:
{_COMMAND_LINES}

options:
  --config FILE     YAML; repeatable, later files win, and the command line beats every file
  --print_config    show the whole configuration and stop
  --ckpt_path FILE  the checkpoint to go on from, or to measure; `last` is that of the last run
  --help, --version `palinka COMMAND --help` lists every option of a command

A first run, offline:  palinka fit --config configs/quickstart.yaml
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The arguments after the program's name; those of the process if left out.

    Returns:
        The exit status: 0, 1 for a failure while running, 2 for input that cannot be used.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if arguments[0] == "--version":
        print(f"palinka {__version__}")
        return 0
    if arguments[0] not in COMMANDS:
        nearest = difflib.get_close_matches(arguments[0], COMMANDS, n=1)
        hint = f"did you mean '{nearest[0]}'?" if nearest else f"choose from {', '.join(COMMANDS)}"
        return _refuse(f"there is no command '{arguments[0]}': {hint}")

    try:
        if arguments[0] == "analyze":
            from palinka.analyze import run as analyze

            return analyze(arguments[1:])
        if arguments[0] == "atlas":
            from palinka.atlas_command import run as atlas

            return atlas(arguments[1:])
        if arguments[0] == "cache":
            from palinka.cache_command import run as cache

            return cache(arguments[1:])
        if arguments[0] == "export":
            from palinka.export import run as export

            return export(arguments[1:])
        if arguments[0] == "import":
            from palinka.import_command import run as import_

            return import_(arguments[1:])
        from palinka.cli import run

        return run(arguments)
    except InputError as error:
        return _refuse(str(error))


def _refuse(message: str) -> int:
    print(f"palinka: error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
