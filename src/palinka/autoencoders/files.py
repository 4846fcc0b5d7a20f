"""Files of autoencoders: JSON, safetensors, and folders on disk and on the hub."""

import fnmatch
import glob
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from palinka.errors import InputError, atomic_write, first_line

Libraries = Mapping[str, tuple[str, ...]]
"""File names, or patterns, that an autoencoder of each library consists of."""

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(/[^/]+)*")
# Enough for a slow connection; the hub's client would retry for half a minute.
_HUB_SECONDS = 10.0
_MAX_LISTED = 10


def read_json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a readable JSON file: {first_line(error)}") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} must hold a JSON object, got {type(config).__name__}")
    return config


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, on the CPU."""
    try:
        return load_file(path)
    except (OSError, SafetensorError, MemoryError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} is not a complete safetensors file: {error}") from error


def write_files(folder: Path, contents: Mapping[str, Any]) -> None:
    """Write files into a folder, made where missing; each appears whole or not at all.

    Args:
        folder: The folder.
        contents: By file name: tensors for `.safetensors`, an object for `.json`, or text.

    Raises:
        InputError: If one cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            with atomic_write(folder / name) as file:
                if name.endswith(".safetensors"):
                    # Copies, since the format has no tensors that share memory.
                    tensors = {n: t.detach().cpu().contiguous().clone() for n, t in content.items()}
                    save_file(tensors, file.name, metadata={"format": "pt"})
                else:
                    text = content if isinstance(content, str) else json.dumps(content, indent=2)
                    file.write(text.encode())
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot save into {folder}: {error}; choose a writable folder") from error


def identify(names: Iterable[str], where: str, libraries: Libraries) -> tuple[str, list[str]]:
    """Identify the library that saved a folder, by its file names.

    Args:
        names: Paths of the files relative to the folder, with `/` between their parts.
        where: The folder, for messages.
        libraries: The libraries to look for.

    Returns:
        The library, and the files of the autoencoder.

    Raises:
        InputError: If there is none, or several; names those in folders within.
    """
    folders: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        folder, _, file = name.rpartition("/")
        folders[folder].append(file)
    complete = {
        folder: {
            library: matched
            for library, files in libraries.items()
            if len(matched := _matching(here, files, libraries)) == len(files)
        }
        for folder, here in folders.items()
    }
    found = complete.pop("", {})
    if len(found) == 1:
        return next(iter(found.items()))
    if found:
        raise InputError(f"{where} holds files of {' and '.join(found)}: keep those of one")
    if inside := [folder for folder, found in complete.items() if found]:
        more = f" and {len(inside) - _MAX_LISTED} more" if len(inside) > _MAX_LISTED else ""
        raise InputError(
            f"{where} holds autoencoders in {', '.join(inside[:_MAX_LISTED])}{more}:"
            f" give one of them, such as {where}/{inside[0]}"
        )
    expected = "; ".join(f"{' + '.join(files)} ({name})" for name, files in libraries.items())
    raise InputError(
        f"{where} holds {', '.join(folders[''][:_MAX_LISTED]) or 'no files'}: expected {expected}"
    )


def _matching(names: list[str], patterns: Iterable[str], libraries: Libraries) -> list[str]:
    """Names that match patterns; a wildcard leaves out the names of all libraries."""
    named = {file for files in libraries.values() for file in files}
    return [
        name
        for pattern in patterns
        for name in fnmatch.filter(names, pattern)
        if name == pattern or name not in named
    ]


def find_folder(
    where: str | PathLike[str], revision: str | None, libraries: Libraries
) -> tuple[Path, str, list[str]]:
    """Find an autoencoder's folder on disk, or download its files from the Hugging Face hub.

    Args:
        where: A folder, or `owner/repository[/folder]` on the hub; read from the hub's cache
            where the hub cannot be reached.
        revision: A branch, tag or commit on the hub.
        libraries: The libraries to look for.

    Returns:
        The folder, the library that saved it, and the files of the autoencoder.

    Raises:
        InputError: If the folder does not exist, or does not hold one autoencoder.
    """
    folder = Path(where)
    if not folder.is_dir():
        folder = _download(str(where), revision, libraries)
    elif revision is not None:
        raise InputError(f"{where} is a folder, and only the hub has revisions; leave it out")
    paths = [*folder.glob("*"), *folder.glob("*/*")]
    names = [path.relative_to(folder).as_posix() for path in paths if path.is_file()]
    return folder, *identify(names, str(where), libraries)


def _download(where: str, revision: str | None, libraries: Libraries) -> Path:
    if Path(where).exists() or not _HUB_NAME.fullmatch(where):
        raise InputError(f"no folder {where}: give a folder, or owner/repository on the hub")
    from huggingface_hub import HfApi, snapshot_download

    owner, name, *inner = where.split("/")
    repo, prefix = f"{owner}/{name}", "".join(f"{part}/" for part in inner)
    files = {file for names in libraries.values() for file in names}
    reason: Exception | None = None
    try:
        info = HfApi().model_info(repo, revision=revision, timeout=_HUB_SECONDS)
    except Exception as error:  # any HTTP client's
        reason = error
    else:
        names = [sibling.rfilename for sibling in info.siblings or []]
        inside = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
        files = set(identify(inside, where, libraries)[1])
    try:
        root = snapshot_download(
            repo,
            revision=revision,
            allow_patterns=[glob.escape(prefix) + file for file in files],
            local_files_only=reason is not None,
        )
    except Exception as error:  # as above
        line = " ".join(str(reason or error).split())
        raise InputError(
            f"no folder {where}, and {repo}{f' at {revision}' if revision else ''} could not be"
            f" loaded from the Hugging Face hub ({line}): check the name, log in for a private"
            " repository, or go online"
        ) from error
    return Path(root, *inner)
