"""Helpers of all formats."""

import json
import math
import pickle
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, contiguous_format

from palinka.errors import InputError, open_ordinary

_LONGEST = 300


@dataclass(frozen=True)
class Origin:
    """What is known of an autoencoder beside its weights; nothing has to be.

    Attributes:
        language_model: The model's name.
        identity: What names the same weights of the model everywhere, as checkpoints of a fit
            hold it.
        site: The site, by palinka's name for it.
        module: The module of the Hugging Face model whose output is the site.
        hook: The site, by the name of another library.
        corpus: The text that it was trained on, in a few words.
        context_length: Tokens per context.
        bos: Whether every context began with a special token.
        tokens: How many tokens it was trained on.
        metrics: Measured on held-out text, by name.
        license: An identifier such as `mit`, as the hub knows them.
    """

    language_model: str | None = None
    identity: str | None = None
    site: str | None = None
    module: str | None = None
    hook: str | None = None
    corpus: str | None = None
    context_length: int | None = None
    bos: bool | None = None
    tokens: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    license: str = "unknown"

    def described(self) -> dict[str, str | int | bool]:
        """What is known of the model, the site and the text, by name."""
        facts = {
            "site": self.site,
            "language_model": self.identity,
            "language_model_name": self.language_model,
            "hook": self.hook,
            "module": self.module,
            "corpus": self.corpus,
            "context_length": self.context_length,
            "bos": self.bos,
        }
        return {name: value for name, value in facts.items() if value is not None}


def origin_of(described: Mapping[str, Any]) -> Origin:
    """What `Origin.described` has described, as far as it is what it should be."""
    context, bos = described.get("context_length"), described.get("bos")
    return Origin(
        language_model=text_of(described, "language_model_name"),
        identity=text_of(described, "language_model"),
        site=text_of(described, "site"),
        module=text_of(described, "module"),
        hook=text_of(described, "hook"),
        corpus=text_of(described, "corpus"),
        context_length=context if type(context) is int else None,
        bos=bos if isinstance(bos, bool) else None,
    )


def text_of(config: Mapping[str, Any], key: str) -> str | None:
    """A few words of a configuration; None where there is none, or a whole book."""
    value = config.get(key)
    return value if isinstance(value, str) and 0 < len(value) <= _LONGEST else None


def object_of(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """An object within a configuration; empty where there is none."""
    value = config.get(key)
    return value if isinstance(value, dict) else {}


@dataclass(frozen=True)
class ReLU:
    """Every positive value is a latent."""


@dataclass(frozen=True)
class TopK:
    """The k largest positive values of a row are latents."""

    k: int


@dataclass(frozen=True)
class Threshold:
    """Values above the latent's own threshold are latents; those are `(latents,)`."""

    threshold: Tensor


@dataclass(frozen=True)
class BatchTopK:
    """Values above one threshold `()` are latents, k of a row on average."""

    k: int
    threshold: Tensor


@dataclass(frozen=True)
class Gate:
    """Where the encoder's value is positive, `exp(log_magnitude)` of it without its bias counts.

    That is scaled latent by latent; `magnitude_bias` is added to it, and a ReLU taken. Both are
    `(latents,)`.
    """

    magnitude_bias: Tensor
    log_magnitude: Tensor


Activation = ReLU | TopK | Threshold | BatchTopK | Gate


@dataclass(frozen=True)
class Plain:
    """An autoencoder as its weights alone describe it.

    `encoder (x - decoder_bias) + encoder_bias` is what the activation is given; without
    `subtracts`, `x` itself is encoded. The reconstruction of latents `z` is
    `z decoder + decoder_bias`.

    Attributes:
        encoder: `(latents, width)`.
        encoder_bias: `(latents,)`; that of the gate where there is one.
        decoder: `(latents, width)`.
        decoder_bias: `(width,)`.
        activation: What makes latents of the encoder's values.
        subtracts: Whether the decoder's bias is subtracted before encoding.
        normalizes: Whether each activation is layer-normed before it is encoded, and the
            reconstruction brought back to its mean and deviation.
    """

    encoder: Tensor
    encoder_bias: Tensor
    decoder: Tensor
    decoder_bias: Tensor
    activation: Activation
    subtracts: bool = True
    normalizes: bool = False

    @property
    def width(self) -> int:
        """The width of the activations."""
        return self.encoder.shape[1]

    @property
    def latents(self) -> int:
        """The number of latents."""
        return self.encoder.shape[0]

    def subtracting(self) -> "Plain":
        """The same function, written with the decoder's bias subtracted before encoding."""
        if self.subtracts:
            return self
        shift = self.encoder.double() @ self.decoder_bias.double()
        activation = self.activation
        if isinstance(activation, Gate):
            moved = activation.magnitude_bias + activation.log_magnitude.double().exp() * shift
            activation = replace(activation, magnitude_bias=moved.float())
        bias = (self.encoder_bias + shift).float()
        return replace(self, encoder_bias=bias, activation=activation, subtracts=True)


_SHOWN = {bool: "true or false", int: "a whole number", str: "text", dict: "an object"}

T = TypeVar("T")


def read_state_dict(path: Path) -> dict[str, Any]:
    """What torch has saved in a `.pt` file: tensors and plain values, never other objects.

    Raises:
        InputError: If it cannot be read so, or is no dictionary.
    """
    with open_ordinary(path) as file:
        if not is_zipfile(file):
            raise InputError(
                f"{path} is no complete file of torch.save in its format of today: save it again"
            )
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path} holds more than tensors, or is torn: {reason}") from error
    except Exception as error:  # a hostile pickle leads the unpickler anywhere
        raise InputError(f"{path} is damaged: {type(error).__name__}") from error
    if not isinstance(stored, dict) or not all(isinstance(name, str) for name in stored):
        raise InputError(f"{path} holds no named tensors: give an autoencoder's state dict")
    return stored


class Weights:
    """Named tensors of a file, taken out one by one with the shape that they must have.

    Args:
        found: What was in the file.
        path: The file, for messages.
    """

    def __init__(self, found: Mapping[str, Any], path: Path) -> None:
        self.found = found
        self.path = path
        self._taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self.found

    def matrix(self, name: str) -> Tensor:
        """A matrix of any size.

        Raises:
            InputError: If it is not there, or is none.
        """
        tensor = self._numbers(name)
        if tensor.ndim != 2 or 0 in tensor.shape:
            raise InputError(
                f"{self.path} holds {name!r} of shape {tuple(tensor.shape)}; expected a matrix"
            )
        return tensor

    def take(self, name: str, *shape: int) -> Tensor:
        """A tensor of a certain shape.

        Raises:
            InputError: If it is not there, or has another.
        """
        tensor = self._numbers(name)
        if tensor.shape != shape:
            raise InputError(
                f"{self.path} holds {name!r} of shape {tuple(tensor.shape)}, but the other weights"
                f" ask for {shape}: is it of another autoencoder?"
            )
        return tensor

    def skip(self, *names: str) -> None:
        """Take no offense at these, where they are there."""
        self._taken.update(names)

    def check_all_taken(self) -> None:
        """Make sure that nothing is left.

        Raises:
            InputError: If a weight has been left over, which the reconstruction might need.
        """
        for name in sorted(self.found.keys() - self._taken):
            raise InputError(
                f"{self.path} has a weight {name!r} too many: is it of another architecture?"
            )

    def _numbers(self, name: str) -> Tensor:
        self._taken.add(name)
        tensor = self.found.get(name)
        if tensor is None:
            raise InputError(
                f"{self.path} lacks the weight {name!r}: is it of another architecture?"
            )
        fits = isinstance(tensor, Tensor) and tensor.layout == torch.strided
        if not fits or tensor.is_complex() or tensor.device.type != "cpu":
            raise InputError(f"{self.path} holds {name!r} that is no tensor of numbers")
        # A view may claim to be far larger than what is stored of it.
        if math.prod(tensor.shape) * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise InputError(f"{self.path} holds {name!r} with fewer numbers than its shape says")
        try:
            numbers: Tensor = tensor.detach().float()
        except (RuntimeError, TypeError) as error:
            raise InputError(
                f"{self.path} holds {name!r} in {tensor.dtype}, which cannot be read"
            ) from error
        return numbers


def setting(config: Mapping[str, Any], key: str, kind: type[T], path: Path, default: T) -> T:
    """A value of a configuration; the default where it is left out.

    Raises:
        InputError: If it is of another kind.
    """
    value = config.get(key)
    if value is None:
        return default
    if type(value) is not kind:
        raise InputError(f"{path}: {key} is {value!r}; expected {_SHOWN[kind]}")
    return value


def check_k(k: int, latents: int, path: Path) -> int:
    """Return k, the number of latents that a row keeps.

    Raises:
        InputError: If there are not so many.
    """
    if not 1 <= k <= latents:
        raise InputError(f"{path}: k is {k}; expected 1 to {latents}, the number of latents")
    return k


def check_dimensions(config: Mapping[str, Any], path: Path, **dimensions: int) -> None:
    """Make sure that a configuration means the weights beside it.

    Args:
        config: The configuration.
        path: Its file.
        **dimensions: What the weights say of keys that it may have.

    Raises:
        InputError: If they differ.
    """
    for key, weights_say in dimensions.items():
        if setting(config, key, int, path, weights_say) != weights_say:
            raise InputError(
                f"{path} says {key} {config[key]}, but the weights beside it have {weights_say}:"
                " use the files of one autoencoder"
            )


_HOOKS = {
    "resid": "hook_resid_post",
    "attn.out": "hook_attn_out",
    "mlp.pre": "mlp.hook_pre",
    "mlp.post": "mlp.hook_post",
    "mlp.out": "hook_mlp_out",
}
_PARTS = {hook: part for part, hook in _HOOKS.items()}
_IN_BLOCK = re.compile(r"blocks\.(\d{1,4})\.(.+)")
_HIDDEN = re.compile(r"hidden\.(\d{1,4})")

# What modules of a block return, in GPT-2, GPT-Neo, GPT-NeoX, Llama, Mistral and Qwen.
_MODULES = {
    None: "resid",
    "attn": "attn.out",
    "attn.c_proj": "attn.out",
    "attn.attention.out_proj": "attn.out",
    "attention": "attn.out",
    "attention.dense": "attn.out",
    "self_attn": "attn.out",
    "self_attn.o_proj": "attn.out",
    "mlp": "mlp.out",
    "mlp.c_proj": "mlp.out",
    "mlp.dense_4h_to_h": "mlp.out",
    "mlp.down_proj": "mlp.out",
    "mlp.c_fc": "mlp.pre",
    "mlp.dense_h_to_4h": "mlp.pre",
    "mlp.gate_proj": "mlp.pre",
    # The gated families call theirs `act_fn`: what it returns is no site of its own.
    "mlp.act": "mlp.post",
}
_PREFIXES = ("transformer.", "gpt_neox.", "model.")
_BLOCK_MODULE = re.compile(r"(?:h|layers)\.(\d{1,4})(?:\.(.+))?")
_NAMED_BY_LAYER = re.compile(r"(resid_post|mlp_out|attention_out)_layer_(\d{1,4})")
_LAYER_PARTS = {"resid_post": "resid", "mlp_out": "mlp.out", "attention_out": "attn.out"}


def hook_of(site: str, layers: int | None = None) -> str | None:
    """TransformerLens' name for a site, where it has one.

    Args:
        site: Such as `blocks.6.mlp.pre`.
        layers: How many blocks the model has: what comes after the last one's final norm has no
            name there, and whether `hidden.6` is that depends on it.
    """
    inside, hidden = _IN_BLOCK.fullmatch(site), _HIDDEN.fullmatch(site)
    if inside and inside[2] in _HOOKS:
        return f"blocks.{inside[1]}.{_HOOKS[inside[2]]}"
    if hidden and (int(hidden[1]) == 0 or (layers is not None and int(hidden[1]) < layers)):
        return f"blocks.{hidden[1]}.hook_resid_pre"
    return None


def site_of_hook(hook: str) -> str | None:
    """Our name for a hook of TransformerLens, where there is one."""
    inside = _IN_BLOCK.fullmatch(hook)
    if inside is None:
        return None
    if inside[2] == "hook_resid_pre":
        block = int(inside[1])
        return f"blocks.{block - 1}.resid" if block else "hidden.0"
    part = _PARTS.get(inside[2])
    return None if part is None else f"blocks.{inside[1]}.{part}"


def site_of_module(module: str) -> str | None:
    """Our name for what a module of a Hugging Face model returns, where there is one.

    Args:
        module: Its path, such as `h.6.mlp.act`; it may begin with the name of the base model.
    """
    for prefix in _PREFIXES:
        if module.startswith(prefix):
            module = module.removeprefix(prefix)
            break
    inside = _BLOCK_MODULE.fullmatch(module)
    part = _MODULES.get(inside[2]) if inside else None
    return None if inside is None or part is None else f"blocks.{inside[1]}.{part}"


def site_of_label(label: str) -> str | None:
    """Our name for a label such as `resid_post_layer_8`, or for a module's path."""
    labelled = _NAMED_BY_LAYER.fullmatch(label)
    if labelled:
        return f"blocks.{labelled[2]}.{_LAYER_PARTS[labelled[1]]}"
    return site_of_module(label)


def within_base_model(module: str) -> str:
    """A module's path as the model without its head has it, such as `h.6.mlp.act`."""
    for prefix in _PREFIXES:
        if module.startswith(prefix):
            return module.removeprefix(prefix)
    return module


def write_config(path: Path, config: Mapping[str, Any]) -> None:
    """Write a JSON file.

    Raises:
        InputError: If it cannot be written.
    """
    write_text(path, json.dumps(config, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8.

    Raises:
        InputError: If it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise _refusal(path, partial, error) from error


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file; what shares memory is written twice.

    Raises:
        InputError: If it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    separate = {
        name: tensor.detach().cpu().clone(memory_format=contiguous_format)
        for name, tensor in tensors.items()
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(separate, partial, metadata={"format": "pt"})
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        raise _refusal(path, partial, error) from error


def _refusal(path: Path, partial: Path, error: Exception) -> InputError:
    with suppress(OSError):
        partial.unlink()
    return InputError(f"cannot save into {path.parent}: {error}; choose a writable folder")
