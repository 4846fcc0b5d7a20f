"""The command `palinka import`: another library's autoencoder as a checkpoint."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning

from palinka.autoencoders import Autoencoder
from palinka.autoencoders.formats import Origin, load
from palinka.errors import InputError
from palinka.paths import expanded
from palinka.plain_parser import PlainParser
from palinka.printable import printable
from palinka.training import SparseAutoencoderModule
from palinka.training.checkpoint_io import DurableCheckpointIO


def run(arguments: Sequence[str]) -> int:
    """Run the command line `palinka import …`.

    Args:
        arguments: What follows `import`.

    Returns:
        The exit status.

    Raises:
        InputError: If the command line cannot be understood, there is no autoencoder that can be
            read, or the file is there already or cannot be written.
    """
    given = _parser().parse_args(arguments)
    local = expanded(given.where)
    where = str(local) if local.exists() else given.where
    output = expanded(given.output) if given.output else Path(f"{Path(where).resolve().name}.ckpt")
    if output.exists():
        raise InputError(f"{output} is there already; give another --output")
    autoencoder, origin = load(where, given.revision)
    write_checkpoint(autoencoder, origin, output)
    print(f"{_described(autoencoder, origin)}\n\nimported to   {printable(str(output))}")
    return 0


def write_checkpoint(autoencoder: Autoencoder, origin: Origin, path: Path) -> None:
    """Write a checkpoint that `validate`, `test`, `predict` and `analyze` take.

    It says of the language model only what names the same weights everywhere, so that a model may
    have another name here; it has no data to go on training with.

    Args:
        autoencoder: Of raw activations.
        origin: Where it comes from.
        path: The file, which appears whole or not at all.

    Raises:
        InputError: If it cannot be written.
    """
    module = SparseAutoencoderModule(autoencoder)
    content: dict[str, Any] = {
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": lightning.__version__,
        "state_dict": module.state_dict(),
        "hyper_parameters": dict(module.hparams),
        "callbacks": {},
        "source": origin.described(),
    }
    try:
        DurableCheckpointIO().save_checkpoint(content, path)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: {error.strerror}; choose another --output"
        ) from error


def parsers() -> dict[str, PlainParser]:
    """The parser of `palinka import`."""
    return {"import": _parser()}


def _parser() -> PlainParser:
    parser = PlainParser(
        "palinka import",
        description="Make a checkpoint of an autoencoder that palinka, SAELens, sparsify,"
        " dictionary_learning or OpenAI's sparse_autoencoder saved.",
    )
    parser.add_argument(
        "where",
        metavar="DIR",
        help="a folder, or owner/repository[/folder] on the Hugging Face hub",
    )
    parser.add_argument("--output", metavar="FILE", help="the checkpoint; DIR's name with .ckpt")
    parser.add_argument("--revision", help="a branch, tag or commit on the hub")
    return parser


def _described(autoencoder: Autoencoder, origin: Origin) -> str:
    facts = {
        "class": type(autoencoder).__name__,
        "width": str(autoencoder.input_dim),
        "latents": str(autoencoder.latent_dim),
        "model": origin.language_model or "not said",
        "site": origin.site or origin.hook or "not said",
    }
    return "\n".join(f"  {name:<10}{printable(value)}" for name, value in facts.items())
