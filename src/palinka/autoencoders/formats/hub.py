"""Autoencoders on the Hugging Face hub."""

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from palinka.autoencoders.formats.folders import library_of, write
from palinka.autoencoders.formats.model_card import CARD
from palinka.autoencoders.formats.origin import Origin
from palinka.errors import InputError

if TYPE_CHECKING:
    from palinka.autoencoders.base import Autoencoder

# Long enough for a slow connection, and no wait without any.
_SECONDS = 10.0
_NAME = re.compile(r"[\w.\-]{1,96}/[\w.\-]{1,96}(?:/[^/\\\0]{1,200}){0,8}")


def may_be_on_hub(name: str) -> bool:
    """Whether a name could be one of the hub's, with a folder within the repository or without."""
    return _NAME.fullmatch(name) is not None and not set(name.split("/")) & {".", ".."}


def download(name: str, revision: str | None = None) -> Path:
    """Fetch the files of an autoencoder, and nothing else that a repository holds.

    Args:
        name: `owner/repository`, or `owner/repository/folder/within`.
        revision: A branch, tag or commit.

    Returns:
        The folder with the files, in the cache of the hub.

    Raises:
        InputError: If there is no such repository or folder, none that can be read, or no
            connection and nothing in the cache.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    owner, repository, *within = name.split("/")
    repo, inner = f"{owner}/{repository}", "/".join(within)
    prefix = f"{inner}/" if inner else ""
    try:
        info = HfApi().model_info(repo, revision=revision, timeout=_SECONDS)
    except RevisionNotFoundError as error:
        raise InputError(f"{repo} on the hub has no revision {revision!r}") from error
    except RepositoryNotFoundError as error:
        raise InputError(
            f"there is no folder {name}, and no {repo} on the Hugging Face hub that is open to you:"
            " check the name, or log in for a private one"
        ) from error
    except Exception as error:  # whatever the HTTP client of the day raises without a network
        cached = _cached(repo, revision)
        if cached is None:
            raise InputError(
                f"there is no folder {name}, {repo} is not in the Hugging Face cache, and the hub"
                f" was not reached ({_reason(error)}): give a folder, or go online"
            ) from error
        return cached / inner
    paths = [sibling.rfilename for sibling in info.siblings or []]
    files = [path.removeprefix(prefix) for path in paths if path.startswith(prefix)]
    _, needed = library_of(files, name)
    try:
        folder = snapshot_download(
            repo,
            revision=revision,  # by its name, which the cache then knows without a network
            allow_patterns=[_literal(prefix + file) for file in (*needed, CARD)],
        )
    except Exception as error:  # as above
        raise InputError(f"{name} cannot be fetched from the hub: {_reason(error)}") from error
    return Path(folder) / inner


def upload(
    autoencoder: "Autoencoder", repo_id: str, private: bool | None, token: str | None
) -> str:
    """Put an autoencoder on the hub, with a model card.

    Returns:
        The address of the commit.

    Raises:
        InputError: If it cannot be put there.
    """
    from huggingface_hub import HfApi

    if not may_be_on_hub(repo_id) or repo_id.count("/") != 1:
        raise InputError(f"{repo_id!r} is no name on the hub: give owner/repository")
    with tempfile.TemporaryDirectory() as folder:
        write(autoencoder, Origin(), "palinka", Path(folder))
        api = HfApi(token=token)
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(repo_id=repo_id, folder_path=folder)
        except Exception as error:  # whatever the HTTP client of the day raises
            raise InputError(
                f"{repo_id} cannot be put on the hub: {_reason(error)}; log in with a token that"
                " may write there"
            ) from error
    return str(commit.commit_url)


def _cached(repo: str, revision: str | None) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, revision=revision, local_files_only=True))
    except Exception:  # nothing is there, or nothing that it can use
        return None


def _literal(path: str) -> str:
    """A file's name as a pattern that only it matches."""
    return re.sub(r"([*?\[])", r"[\1]", path)


def _reason(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
