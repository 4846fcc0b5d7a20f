"""Which language model is meant, and what can be known of it without its weights."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from palinka.errors import InputError
from palinka.float32_products import slow_products
from palinka.language_models.fingerprint import fingerprint
from palinka.language_models.sites import Sites, find_sites
from palinka.language_models.source import Source, find_source

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from palinka.language_models.language_model import LanguageModel

DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class LanguageModelSpec:
    """A language model by name, with how to compute it.

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
    def name_elsewhere(self) -> str:
        """The model's name, without the folders that lead to it on this machine."""
        path = Path(self.name).expanduser()
        return path.name if path.is_absolute() or path.exists() else self.name

    def load(self) -> "LanguageModel":
        """Load the model and its tokenizer.

        Raises:
            InputError: If there is no such model or device, or if the files are not those of
                a causal language model.
        """
        from transformers import AutoModelForCausalLM

        from palinka.language_models.language_model import LanguageModel

        device = find_device(self.device)
        dtype: torch.dtype = getattr(torch, self.dtype)
        slow = slow_products(dtype) if device.type == "cpu" and dtype.itemsize == 2 else None
        if slow is not None:
            warnings.warn(slow, stacklevel=2)
        config = copy.deepcopy(self._config)  # loading writes the dtype into it
        _fuse_activation(config)
        tokenizer = self.tokenizer()
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
        return LanguageModel(model.to(device), tokenizer, self)

    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """Load the tokenizer alone."""
        from transformers import AutoTokenizer, PreTrainedTokenizerBase

        with self._readable("tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(**self._source.arguments())
        assert isinstance(tokenizer, PreTrainedTokenizerBase)
        return tokenizer

    def fingerprint(self) -> dict[str, str]:
        """What identifies the weights, the tokenizer and the dtype; no path, no device."""
        return fingerprint(self._source, self.dtype)

    def identity(self) -> str:
        """The model in a few words that name the same weights everywhere, in any dtype."""
        known = self.fingerprint()
        named = [known[key] for key in ("name", "revision") if key in known]
        return "@".join(named) or f"with weights {known['weights'][:12]}"

    def resolve(self, site: str) -> str:
        """The full name of a site, such as `blocks.3.mlp.pre` for `blocks.middle.mlp.pre`.

        Raises:
            InputError: If the model has no such site; names the nearest and lists them all.
        """
        return self.sites.resolve(site)

    def width(self, site: str) -> int:
        """The width of the vectors at a site.

        Raises:
            InputError: If the model has no such site.
        """
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
        except Exception as error:  # a configuration of others leads transformers anywhere
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise InputError(
                f"the {what} of {self.name!r} cannot be loaded: {reason}; "
                "give a causal language model as Hugging Face saves it"
            ) from error


def _fuse_activation(config: Any) -> None:
    """Compute the tanh form of GELU in one pass: the same function, in a quarter of the time."""
    if getattr(config, "activation_function", None) == "gelu_new":
        config.activation_function = "gelu_pytorch_tanh"


def find_device(device: str) -> torch.device:
    """The torch device of a name, tried out; `auto` is CUDA where there is one.

    Raises:
        InputError: If there is no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"device {device!r} cannot be used here: {reason}; try auto") from error
