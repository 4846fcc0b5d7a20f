"""Specification of a language model: source, fingerprint and sites."""

import copy
import hashlib
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from palinka.assets import mini_gpt2_folder
from palinka.errors import InputError, expanded, first_line, one_line, track
from palinka.language_models.cpu import slow_products
from palinka.language_models.sites import Sites, find_sites

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# Long enough for a slow connection; transformers by itself goes on trying for half a minute.
_HUB_SECONDS = 10.0
_ADAPTER = "adapter_config.json"
_TOKENIZER_FILES = (
    "tokenizer*.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
)


@dataclass(frozen=True)
class Source:
    """Location of a model's files.

    Attributes:
        location: A local folder, or a name on the hub.
        revision: The requested revision on the hub.
        commit: The commit of that revision.
        gguf_file: The GGUF file within the location, if it is one.
        offline: Use local and cached files only.
    """

    location: Path | str
    revision: str | None = None
    commit: str | None = None
    gguf_file: str | None = None
    offline: bool = True

    def arguments(self) -> dict[str, Any]:
        """Arguments of every `from_pretrained` of transformers."""
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
    """Find the files of a model, quickly also without a network.

    Args:
        name: `mini`, a local folder, a GGUF file, or a name on the hub.
        revision: A branch, tag or commit on the hub.
        gguf_file: The name of a GGUF file in the folder or repository.

    Raises:
        InputError: If the model does not exist or has a PEFT adapter, or if GGUF files cannot be
            read here.
    """
    path = mini_gpt2_folder() if name == "mini" else expanded(name)
    if path.is_file() and path.suffix == ".gguf" and gguf_file is None:
        path, gguf_file = path.parent, path.name
    if gguf_file is not None:
        missing = [module for module in ("gguf", "accelerate") if find_spec(module) is None]
        if missing:
            raise InputError(
                f"reading {gguf_file!r} needs {' and '.join(missing)}: pip install 'palinka[gguf]'"
            )
    if path.is_dir():
        if revision is not None:
            raise InputError(
                f"revision {revision!r} of the local folder {name!r}; "
                "only models on the hub have revisions"
            )
        if (path / _ADAPTER).exists():
            raise _adapter_error(name)
        needed = gguf_file or "config.json"
        if not (path / needed).is_file():
            others = ", ".join(sorted(file.name for file in path.glob("*.gguf")))
            hint = f"; give gguf_file, one of: {others}" if others else ""
            raise InputError(f"the model folder {name!r} has no {needed}{hint}")
        return Source(path, gguf_file=gguf_file)
    if path.exists() or path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise InputError(
            f"the model folder {name!r} does not exist; give a folder with a config.json, a .gguf "
            "file, a name on the Hugging Face hub, or mini"
        )
    return _on_hub(name, revision, gguf_file)


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
            f"the model {name!r} could not be found, neither as a folder nor on the Hugging Face "
            "hub; check the name, or log in for a private one"
        ) from error
    except Exception as error:  # of the HTTP client, without a network
        commit = _cached_commit(name, revision, gguf_file or "config.json")
        if commit is None:
            at = f" at revision {revision!r}" if revision else ""
            raise InputError(
                f"could not load the model {name!r}{at}: no such folder, not in the Hugging Face "
                f"cache, and the hub was not reached ({first_line(error)}); give a local folder, "
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


def fingerprint(source: Source, dtype: str) -> dict[str, str]:
    """Identify a model by its commit on the hub, or by the content of its local files.

    Args:
        source: Location of the model's files.
        dtype: Dtype in which it is computed.

    Returns:
        `weights`, `tokenizer` and `dtype`; a model on the hub also has its `name` and
        `revision` (the commit). No path and no device is in it.
    """
    if source.commit is not None:
        named = {"name": str(source.location), "revision": source.commit}
        content = ":".join(filter(None, (source.commit, source.gguf_file)))
        return named | {"weights": content, "tokenizer": content, "dtype": dtype}
    folder = Path(source.location)
    if source.gguf_file is not None:
        # Weights, configuration and tokenizer are all in the one file.
        content = _digest(folder / source.gguf_file)
        return {"weights": content, "tokenizer": content, "dtype": dtype}
    # Where both kinds of weights are there, transformers reads the safetensors.
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    tokenizer = {file for pattern in _TOKENIZER_FILES for file in folder.glob(pattern)}
    return {
        "weights": _digest_all([folder / "config.json", *weights]),
        "tokenizer": _digest_all(sorted(tokenizer)),
        "dtype": dtype,
    }


def _digest_all(files: Sequence[Path]) -> str:
    """One hash of the names and contents of files."""
    contents = [[file.name, _digest(file)] for file in track(files, "Hashing the model's files")]
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()


def _digest(file: Path) -> str:
    """SHA-256 of a file, computed again only when the file changes."""
    status = file.stat()
    return _cached_digest(file, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1024)
def _cached_digest(file: Path, _size: int, _changed: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class LanguageModelSpec:
    """Name, dtype and device of a language model.

    Attributes:
        name: `mini` for the bundled model, a name on the Hugging Face hub, a local folder, or
            a GGUF file.
        revision: Branch, tag or commit, for a model on the hub.
        gguf_file: Name of the GGUF file in the folder or repository, if the model is one.
        dtype: `float32`, `bfloat16`, `float16` or `float64`, whatever the weights are stored in.
        device: A torch device, or `auto`: CUDA where there is one, else the CPU.

    Raises:
        InputError: If the dtype is none of these.
    """

    name: str = "mini"
    revision: str | None = None
    gguf_file: str | None = None
    dtype: str = "float32"
    device: str = "auto"

    def __post_init__(self) -> None:
        for key, value in (("name", self.name), ("device", self.device)):
            if not isinstance(value, str):
                raise InputError(f"{key} of the language model is {value!r}; give text")
        if self.dtype not in DTYPES:
            raise InputError(f"dtype {self.dtype!r} for the model; give {', '.join(DTYPES)}")

    @property
    def portable_name(self) -> str:
        """The model's name, without the folders that lead to it on this machine."""
        path = Path(self.name).expanduser()
        return path.name if path.is_absolute() or path.exists() else self.name

    def pretrained_model(self) -> "PreTrainedModel":
        """Load the model of transformers, on its device.

        Raises:
            InputError: If the model or device does not exist, or the files are not those of a
                causal language model.
        """
        from transformers import AutoModelForCausalLM

        device = find_device(self.device)
        dtype: torch.dtype = getattr(torch, self.dtype)
        slow = slow_products(dtype) if device.type == "cpu" and dtype.itemsize == 2 else None
        if slow is not None:
            warnings.warn(slow, stacklevel=3)
        config = copy.deepcopy(self._config)  # loading writes the dtype into it
        if getattr(config, "activation_function", None) == "gelu_new":
            # The tanh form of GELU in one pass: the same function, in a quarter of the time.
            config.activation_function = "gelu_pytorch_tanh"
        with self._readable("model"):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                **self._source.arguments(),
                config=config,
                dtype=dtype,
                output_loading_info=True,
            )
        model, report = loaded
        if report["missing_keys"]:
            missing = sorted(report["missing_keys"])
            raise InputError(
                f"the weights of {self.name!r} lack {missing[0]!r} and {len(missing) - 1} others; "
                "the files are not those of this causal language model"
            )
        on_device: PreTrainedModel = model.to(device)
        return on_device

    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """Load the tokenizer alone."""
        from transformers import AutoTokenizer, PreTrainedTokenizerBase

        with self._readable("tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(**self._source.arguments())
        assert isinstance(tokenizer, PreTrainedTokenizerBase)
        return tokenizer

    def fingerprint(self) -> dict[str, str]:
        """Identity of the weights, the tokenizer and the dtype; no path, no device."""
        return fingerprint(self._source, self.dtype)

    def identity(self) -> str:
        """A short text that names the same weights on every machine, in any dtype."""
        known = self.fingerprint()
        named = [known[key] for key in ("name", "revision") if key in known]
        return "@".join(named) or f"with weights {known['weights'][:12]}"

    def resolve(self, site: str) -> str:
        """The full name of a site; see `Sites.resolve`."""
        return self.sites.resolve(site)

    def width(self, site: str) -> int:
        """The width of the vectors at a site."""
        return self.sites.width(site)

    @cached_property
    def sites(self) -> Sites:
        """The model's sites, found without loading its weights."""
        with self._readable("configuration"):
            return find_sites(self._config)

    @cached_property
    def _config(self) -> "PretrainedConfig":
        """The configuration, read once: in a GGUF file that takes seconds."""
        from transformers import AutoConfig, PretrainedConfig

        with self._readable("configuration"):
            config = AutoConfig.from_pretrained(**self._source.arguments())
        assert isinstance(config, PretrainedConfig)
        return config

    @cached_property
    def _source(self) -> Source:
        return find_source(self.name, self.revision, self.gguf_file)

    @contextmanager
    def _readable(self, what: str) -> Iterator[None]:
        """Turn what transformers raises on files that it cannot use into one line."""
        try:
            yield
        except InputError:
            raise
        except Exception as error:  # of any class, in the code of any model
            reason = one_line(error)[:300]
            raise InputError(
                f"the {what} of {self.name!r} cannot be loaded: {reason}; "
                "give a causal language model as Hugging Face saves it"
            ) from error


def find_device(device: str) -> torch.device:
    """The torch device of a name, tried out; `auto` is CUDA where available, else the CPU.

    Raises:
        InputError: If this machine does not have the device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"device {device!r} cannot be used here: {first_line(error)}; try auto"
        ) from error
