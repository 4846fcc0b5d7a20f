"""From a folder, or a name on the hub, to an autoencoder, whoever saved it."""

from os import PathLike
from pathlib import Path

from palinka.autoencoders import pretrained
from palinka.autoencoders.base import Autoencoder
from palinka.autoencoders.formats.folders import files_within, library_of, read_foreign
from palinka.autoencoders.formats.hub import download, may_be_on_hub
from palinka.autoencoders.formats.origin import Origin, object_of, origin_of
from palinka.autoencoders.reading import read_config
from palinka.errors import InputError


def load(
    where: str | PathLike[str],
    revision: str | None = None,
    base: type[Autoencoder] = Autoencoder,
) -> tuple[Autoencoder, Origin]:
    """Read an autoencoder and what its files say of where it comes from.

    Args:
        where: A folder, or a name on the hub, which may go on with a folder in the repository.
        revision: A branch, tag or commit on the hub.
        base: The class that it must be, or be a subclass of.

    Raises:
        InputError: If there is none, it cannot be read, or it is of another class.
    """
    folder = _folder(where, revision)
    library, files = library_of(files_within(folder), str(where))
    if library == "palinka":
        described = object_of(read_config(folder / pretrained.CONFIG), pretrained.SOURCE)
        return pretrained.load(folder, base).eval(), origin_of(described)
    autoencoder, origin = read_foreign(folder, library, files)
    if not isinstance(autoencoder, base):
        raise InputError(
            f"{where} holds a {type(autoencoder).__name__}, and a {base.__name__} is asked for:"
            " use Autoencoder.from_pretrained"
        )
    return autoencoder.eval(), origin


def _folder(where: str | PathLike[str], revision: str | None) -> Path:
    folder = Path(where)
    try:
        if folder.is_dir():
            if revision is not None:
                raise InputError(f"{where} is a folder, and only the hub has revisions")
            return folder
        known_otherwise = folder.exists()
    except (OSError, ValueError) as error:
        raise InputError(f"{where} is no folder that can be read: {error}") from error
    if known_otherwise or not may_be_on_hub(str(where)):
        raise InputError(f"no folder {where}: give a folder that an autoencoder was saved in")
    return download(str(where), revision)
