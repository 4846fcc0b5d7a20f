"""Which library saved a folder, and reading and writing it."""

from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from palinka.autoencoders.base import Autoencoder
from palinka.autoencoders.formats import dictionary_learning, openai, saelens, sparsify
from palinka.autoencoders.formats.architectures import built, plain
from palinka.autoencoders.formats.model_card import CARD, model_card
from palinka.autoencoders.formats.origin import Origin
from palinka.autoencoders.formats.plain import Plain
from palinka.autoencoders.formats.writing import write_text
from palinka.autoencoders.pretrained import CONFIG, WEIGHTS
from palinka.autoencoders.pretrained import save as save_palinka
from palinka.errors import InputError

# The files by which each library's folders are known.
_FILES: dict[str, tuple[str, ...]] = {
    "palinka": (CONFIG, WEIGHTS),
    "SAELens": saelens.FILES,
    "sparsify": sparsify.FILES,
    "dictionary_learning": dictionary_learning.FILES,
}
_READERS: dict[str, Callable[[Path], tuple[Plain, Origin]]] = {
    "SAELens": saelens.read,
    "sparsify": sparsify.read,
    "dictionary_learning": dictionary_learning.read,
}
FORMATS = ("saelens", "sparsify", "palinka")
_MOST_LISTED = 10


def library_of(files: Iterable[str], where: str) -> tuple[str, list[str]]:
    """Which library saved a folder, by the names of its files.

    Args:
        files: The paths of the files within the folder, with `/` between their parts.
        where: The folder's name for messages.

    Returns:
        The library, and the files that hold the autoencoder.

    Raises:
        InputError: If it is none, or several; says what was found, also in subfolders.
    """
    names = set(files)
    found = {name: list(needed) for name, needed in _FILES.items() if names >= set(needed)}
    lone = [name for name in names if "/" not in name and name.endswith(".pt")]
    if not found and len(lone) == 1 and lone != [dictionary_learning.WEIGHTS]:
        found["OpenAI"] = lone
    if len(found) == 1:
        return next(iter(found.items()))
    if found:
        raise InputError(
            f"{where} holds what {' and '.join(found)} save ({', '.join(sorted(names)[:6])}):"
            " leave the files of one of them in a folder"
        )
    within = sorted({str(PurePosixPath(name).parent) for name in names if "/" in name})
    inside = [folder for folder in within if _is_one(names, folder)]
    if inside:
        more = f" and {len(inside) - _MOST_LISTED} more" if len(inside) > _MOST_LISTED else ""
        raise InputError(
            f"{where} holds autoencoders in {', '.join(inside[:_MOST_LISTED])}{more}:"
            f" give one of them, such as {where}/{inside[0]}"
        )
    raise InputError(_lacking(names, where))


def _lacking(names: set[str], where: str) -> str:
    """What a folder that no library saved lacks to be one."""
    lacking = {
        library: [name for name in needed if name not in names]
        for library, needed in _FILES.items()
        if names & set(needed)
    }
    if lacking:
        missing = ", or ".join(
            f"{where}/{' and '.join(files)} ({library})" for library, files in lacking.items()
        )
        present = sorted(names & {name for needed in _FILES.values() for name in needed})
        return f"no file {missing}, beside {', '.join(present)}: complete the folder"
    shown = ", ".join(sorted(name for name in names if "/" not in name)[:_MOST_LISTED])
    expected = "; ".join(f"{' + '.join(needed)} ({name})" for name, needed in _FILES.items())
    return (
        f"{where} holds {shown or 'no files'}: no autoencoder that can be read, which would be"
        f" {expected}; or a single .pt file (OpenAI)"
    )


def _is_one(names: set[str], folder: str) -> bool:
    return any(all(f"{folder}/{name}" in names for name in needed) for needed in _FILES.values())


def read_foreign(folder: Path, library: str, files: list[str]) -> tuple[Autoencoder, Origin]:
    """Read the folder of another library.

    Args:
        folder: The folder.
        library: As `library_of` found it.
        files: The same.

    Raises:
        InputError: If it cannot be read, or nothing here computes the same.
    """
    if library == "OpenAI":
        weights, origin = openai.read(folder / files[0])
    else:
        weights, origin = _READERS[library](folder)
    try:
        return built(weights), origin
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error


def files_within(folder: Path) -> list[str]:
    """The names of a folder's files, and of those in folders within it, one level deep.

    Raises:
        InputError: If the folder cannot be listed.
    """
    try:
        first = sorted(folder.iterdir())
        inner = [path for each in first if each.is_dir() for path in sorted(each.iterdir())]
    except OSError as error:
        raise InputError(f"{folder} cannot be listed: {error.strerror}") from error
    return [path.relative_to(folder).as_posix() for path in (*first, *inner) if not path.is_dir()]


def write(autoencoder: Autoencoder, origin: Origin, library: str, folder: Path) -> Path:
    """Write an autoencoder of raw activations for a library, with a model card.

    Args:
        autoencoder: What is written.
        origin: What the card says of it.
        library: One of `FORMATS`.
        folder: Where to; made where it is missing.

    Returns:
        The folder that the library loads, which for sparsify is one within.

    Raises:
        InputError: If the library knows no such architecture, or the folder cannot be written.
    """
    inner = folder
    if library == "palinka":
        save_palinka(autoencoder, folder, origin.described())
    elif library == "saelens":
        saelens.write(plain(autoencoder), origin, folder)
    else:
        inner = folder / sparsify.hookpoint(origin)
        sparsify.write(plain(autoencoder), origin, inner)
    card = model_card(autoencoder, origin, library, inner.relative_to(folder).as_posix())
    write_text(folder / CARD, card)
    return inner
