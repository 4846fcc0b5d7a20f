"""Where a model's files are: bundled, in a local folder, or on the Hugging Face hub."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palinka.errors import InputError
from palinka.paths import expanded

# Long enough for a slow connection; transformers by itself goes on trying for half a minute.
_HUB_SECONDS = 10.0
_ADAPTER = "adapter_config.json"


@dataclass(frozen=True)
class Source:
    """What to load a model from.

    Attributes:
        location: A local folder, or a name on the hub.
        revision: The revision asked for, on the hub.
        commit: What the revision stands for, on the hub.
        gguf_file: The GGUF file within the location, if it is one.
        offline: Whether only local and cached files are to be looked at.
    """

    location: Path | str
    revision: str | None = None
    commit: str | None = None
    gguf_file: str | None = None
    offline: bool = True

    def arguments(self) -> dict[str, Any]:
        """What every `from_pretrained` of transformers takes, the location first."""
        arguments: dict[str, Any] = {
            "pretrained_model_name_or_path": str(self.location),
            "local_files_only": self.offline,
            "trust_remote_code": False,  # without it, transformers would ask whether to run code
        }
        if self.revision is not None:
            arguments["revision"] = self.revision
        if self.gguf_file is not None:
            arguments["gguf_file"] = self.gguf_file
        return arguments


def find_source(name: str, revision: str | None = None, gguf_file: str | None = None) -> Source:
    """Find out where a model is, quickly also when there is no network.

    Args:
        name: `mini`, a local folder, a GGUF file, or a name on the hub.
        revision: A branch, tag or commit on the hub.
        gguf_file: The name of a GGUF file in the folder or repository.

    Raises:
        InputError: If there is no such model, if it has a PEFT adapter, or if GGUF files cannot be
            read here.
    """
    path = _mini() if name == "mini" else expanded(name)
    if path.is_file() and path.suffix == ".gguf" and gguf_file is None:
        path, gguf_file = path.parent, path.name
    if gguf_file is not None:
        _require_gguf(gguf_file)
    if path.is_dir():
        if revision is not None:
            raise InputError(
                f"revision {revision!r} of the local folder {name!r}; "
                "only models on the hub have revisions"
            )
        _check_folder(path, name, gguf_file)
        return Source(path, gguf_file=gguf_file)
    if path.exists() or path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise InputError(
            f"there is no model folder {name!r}; give a folder with a config.json, a .gguf file, "
            "a name on the Hugging Face hub, or mini"
        )
    return _on_hub(name, revision, gguf_file)


def _mini() -> Path:
    from palinka.assets import mini_gpt2_folder

    return mini_gpt2_folder()


def _require_gguf(gguf_file: str) -> None:
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"reading {gguf_file!r} needs {' and '.join(missing)}: pip install 'palinka[gguf]'"
        )


def _check_folder(folder: Path, name: str, gguf_file: str | None) -> None:
    if (folder / _ADAPTER).exists():
        raise _adapter_error(name)
    needed = gguf_file or "config.json"
    if (folder / needed).is_file():
        return
    others = ", ".join(sorted(file.name for file in folder.glob("*.gguf")))
    hint = f"; give gguf_file, one of: {others}" if others else ""
    raise InputError(f"the model folder {name!r} has no {needed}{hint}")


def _adapter_error(name: str) -> InputError:
    """The adapter is not the base model, and transformers applies it only where PEFT is there."""
    return InputError(
        f"the model {name!r} has a PEFT adapter ({_ADAPTER}), which cannot be applied; give a model"
        " into which it is merged (merge_and_unload of PEFT, then save_pretrained), or the base"
        " model without the adapter's files"
    )


def _on_hub(name: str, revision: str | None, gguf_file: str | None) -> Source:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        info = HfApi().model_info(name, revision=revision, timeout=_HUB_SECONDS)
    except HFValidationError as error:
        raise InputError(
            f"{name!r} is neither a folder nor a possible name on the Hugging Face hub"
        ) from error
    except RevisionNotFoundError as error:
        raise InputError(f"the model {name!r} on the hub has no revision {revision!r}") from error
    except RepositoryNotFoundError as error:
        raise InputError(
            f"there is no model {name!r}: no such folder, and none of that name on the Hugging "
            "Face hub that is open to you; check the name, or log in for a private one"
        ) from error
    except Exception as error:  # Whatever the HTTP client of the day raises without a network.
        commit = _cached_commit(name, revision, gguf_file or "config.json")
        if commit is None:
            at = f" at revision {revision!r}" if revision else ""
            raise InputError(
                f"the model {name!r}{at} cannot be had: no such folder, not in the Hugging Face "
                f"cache, and the hub was not reached ({_first_line(error)}); give a local folder, "
                "go online, or use mini"
            ) from error
        if _cached_commit(name, revision, _ADAPTER):
            raise _adapter_error(name) from error
        return Source(name, revision, commit, gguf_file)
    if any(file.rfilename == _ADAPTER for file in info.siblings or ()):
        raise _adapter_error(name)
    return Source(name, revision, info.sha, gguf_file, offline=False)


def _cached_commit(name: str, revision: str | None, file: str) -> str | None:
    """The commit of a revision of which the local cache has a file."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, file, revision=revision)
    if not isinstance(found, str):
        return None
    parts = Path(found).parts  # …/models--<name>/snapshots/<commit>/<file>
    return parts[len(parts) - parts[::-1].index("snapshots")]


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
