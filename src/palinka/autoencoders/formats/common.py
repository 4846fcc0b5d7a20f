"""State tables, and what the formats share: checks of files, and names of sites."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from palinka.errors import InputError, first_line, type_mismatch

Kind = Literal["relu", "topk", "batch_topk", "jumprelu", "gated"]
Keys = Mapping[str, str]
"""Name in a `StateTable` of each tensor in a file; `.T` marks those that lie transposed."""

# Dimensions of each tensor of a `StateTable`: n latents, d wide.
_SHAPES = {
    "encoder.weight": "nd",
    "encoder.bias": "n",
    "decoder_weight": "nd",
    "decoder_bias": "d",
    "threshold": "n",
    "batch_threshold": "",
    "gate_bias": "n",
    "magnitude_bias": "n",
    "log_magnitude": "n",
}


@dataclass(frozen=True)
class StateTable:
    """Weights and settings that define an autoencoder in any library.

    `encoder.weight (x - decoder_bias) + bias` is the input of the activation function, where
    `bias` is `encoder.bias`, or `gate_bias` of a gated one; `x` itself is encoded unless
    `subtracts_bias`. Latents `z` are reconstructed as `z decoder_weight + decoder_bias`. Latents
    are, of the values above zero,

    - `relu`: all;
    - `topk`: the k largest of a row;
    - `jumprelu`: those above the latent's `threshold`;
    - `batch_topk`: those above one `batch_threshold`, k per row on average;
    - `gated`: where the value is positive,
      `ReLU(exp(log_magnitude) (value - gate_bias) + magnitude_bias)`.

    Attributes:
        kind: The activation function.
        tensors: `encoder.weight` and `decoder_weight`, `(latents, width)`; `decoder_bias`,
            `(width,)`; `batch_threshold`, `()`; all others `(latents,)`.
        k: Number of latents per row, of `topk` and `batch_topk`.
        subtracts_bias: Whether the decoder's bias is subtracted before encoding.
        layer_norm: Whether each activation is layer-normed before it is encoded, and the
            reconstruction brought back to its mean and deviation.
    """

    kind: Kind
    tensors: Mapping[str, Tensor]
    k: int = 0
    subtracts_bias: bool = True
    layer_norm: bool = False

    @property
    def latents(self) -> int:
        """Number of latents."""
        return self.tensors["encoder.weight"].shape[0]

    @property
    def width(self) -> int:
        """Width of the activations."""
        return self.tensors["encoder.weight"].shape[1]

    def with_subtracted_bias(self) -> "StateTable":
        """The same function with the decoder's bias subtracted before encoding."""
        if self.subtracts_bias:
            return self
        weight, bias = self.tensors["encoder.weight"], self.tensors["decoder_bias"]
        tensors = shift_biases(self.tensors, weight.double() @ bias.double())
        return replace(self, tensors=tensors, subtracts_bias=True)


def shift_biases(tensors: Mapping[str, Tensor], shift: Tensor) -> dict[str, Tensor]:
    """Add `shift`, `(latents,)` in float64, to the encoder's output before any nonlinearity."""
    if "gate_bias" not in tensors:
        return {**tensors, "encoder.bias": tensors["encoder.bias"] + shift}
    scaled = tensors["log_magnitude"].double().exp() * shift
    return {
        **tensors,
        "gate_bias": tensors["gate_bias"] + shift,
        "magnitude_bias": tensors["magnitude_bias"] + scaled,
    }


def read_tensors(
    found: Mapping[str, Any], keys: Keys, path: Path, ignored: Iterable[str] = ()
) -> dict[str, Tensor]:
    """Rename the tensors of a file to those of a `StateTable`, and check their shapes.

    Args:
        found: Content of the file.
        keys: The tensors that it must have.
        path: The file, for messages.
        ignored: Names of what it may have beside them.

    Returns:
        Tensors in float32.

    Raises:
        InputError: If one is missing, of another shape, or left over.
    """
    for name in sorted(keys.keys() - found.keys()):
        raise InputError(f"{path} lacks the weight {name!r}: is it of another architecture?")
    for name in sorted(found.keys() - keys.keys() - set(ignored)):
        raise InputError(
            f"{path} has an unexpected weight {name!r}: is it of another architecture?"
        )
    tensors: dict[str, Tensor] = {}
    for theirs, ours in keys.items():
        tensor = found[theirs]
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise InputError(f"{path}: {theirs!r} is not a tensor of floating-point numbers")
        if ours.startswith("encoder.weight") and (tensor.ndim != 2 or 0 in tensor.shape):
            raise InputError(
                f"{path} holds {theirs!r} of shape {tuple(tensor.shape)}; expected a matrix"
            )
        name = ours.removesuffix(".T")
        tensors[name] = (tensor if name == ours else tensor.T).detach().float()
    sizes = dict(zip("nd", tensors["encoder.weight"].shape, strict=True))
    for theirs, ours in keys.items():
        name = ours.removesuffix(".T")
        expected = tuple(sizes[dimension] for dimension in _SHAPES[name])
        if tensors[name].shape != expected:
            expected = expected if name == ours else expected[::-1]
            raise InputError(
                f"{path} holds {theirs!r} of shape {tuple(found[theirs].shape)}; expected"
                f" {expected}, as the encoder's weight has it: is it of another autoencoder?"
            )
    return tensors


def rename_tensors(tensors: Mapping[str, Tensor], keys: Keys) -> dict[str, Tensor]:
    """Rename the tensors of a `StateTable` to those of a file, in float32."""
    return {
        theirs: (tensors[ours[:-2]].T if ours.endswith(".T") else tensors[ours]).float()
        for theirs, ours in keys.items()
    }


def read_state_dict(path: Path) -> dict[str, Any]:
    """Read tensors and plain values that `torch.save` wrote, without unpickling other objects.

    Raises:
        InputError: If the file is damaged, holds other objects, or is not a dictionary.
    """
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # the unpickler raises anything on a damaged file
        raise InputError(
            f"{path} holds more than tensors, or is torn: {first_line(error)}; save a state dict"
            " with torch.save"
        ) from error
    if not isinstance(stored, dict) or not all(isinstance(name, str) for name in stored):
        raise InputError(f"{path} holds no named tensors: give an autoencoder's state dict")
    return stored


T = TypeVar("T")


def setting(config: Mapping[str, Any], key: str, kind: type[T], path: Path, default: T) -> T:
    """Value of a configuration, or its default.

    Raises:
        InputError: If it is of another type.
    """
    value = config.get(key)
    if value is None:
        return default
    if expected := type_mismatch(value, kind):
        raise InputError(f"{path}: {key} is {value!r}; expected {expected}")
    found: T = value
    return found


def read_k(config: Mapping[str, Any], latents: int, path: Path, default: int) -> int:
    """Value of `k` in a configuration, if in 1 … `latents`."""
    k = setting(config, "k", int, path, default)
    if not 1 <= k <= latents:
        raise InputError(f"{path}: k is {k}; expected 1 to {latents}, the number of latents")
    return k


def check_dimensions(config: Mapping[str, Any], path: Path, **dimensions: int) -> None:
    """Raise an `InputError` unless a configuration has the dimensions of the weights."""
    for key, expected in dimensions.items():
        if setting(config, key, int, path, expected) != expected:
            raise InputError(
                f"{path} says {key} {config[key]}, but the weights beside it have {expected}:"
                " use the files of one autoencoder"
            )


def mapping_in(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Object within a configuration; empty where there is none."""
    value = config.get(key)
    return value if isinstance(value, dict) else {}


_HOOKS = {
    "resid": "hook_resid_post",
    "attn.out": "hook_attn_out",
    "mlp.pre": "mlp.hook_pre",
    "mlp.post": "mlp.hook_post",
    "mlp.out": "hook_mlp_out",
}
_PARTS = {hook: part for part, hook in _HOOKS.items()}
_IN_LAYER = re.compile(r"blocks\.(\d+)\.(.+)")
_HIDDEN = re.compile(r"hidden\.(\d+)")

# Outputs of the modules of a layer in GPT-2, GPT-Neo, GPT-NeoX, Llama, Mistral and Qwen.
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
    # `act_fn` of the gated families is not yet multiplied with the other half.
    "mlp.act": "mlp.post",
}
_LAYER_MODULE = re.compile(r"(?:h|layers)\.(\d+)(?:\.(.+))?")
_LABEL = re.compile(r"(resid_post|mlp_out|attention_out)_layer_(\d+)")
_LABELS = {"resid_post": "resid", "mlp_out": "mlp.out", "attention_out": "attn.out"}


def hook_of(site: str, layers: int | None = None) -> str | None:
    """TransformerLens' name for a site, where it has one.

    Args:
        site: Such as `blocks.6.mlp.pre`.
        layers: Number of layers of the model: the output of the last one's final norm has no
            name there, and whether `hidden.6` is that depends on it.
    """
    inside, hidden = _IN_LAYER.fullmatch(site), _HIDDEN.fullmatch(site)
    if inside and inside[2] in _HOOKS:
        return f"blocks.{inside[1]}.{_HOOKS[inside[2]]}"
    if hidden and (int(hidden[1]) == 0 or (layers is not None and int(hidden[1]) < layers)):
        return f"blocks.{hidden[1]}.hook_resid_pre"
    return None


def site_of_hook(hook: str) -> str | None:
    """Site of a TransformerLens hook, where there is one."""
    inside = _IN_LAYER.fullmatch(hook)
    if inside is None:
        return None
    layer = int(inside[1])
    if inside[2] == "hook_resid_pre":
        return f"blocks.{layer - 1}.resid" if layer else "hidden.0"
    part = _PARTS.get(inside[2])
    return part and f"blocks.{layer}.{part}"


def site_of_module(module: str) -> str | None:
    """Site of a Hugging Face module's output, such as `h.6.mlp.act`, where there is one.

    Also of labels such as `resid_post_layer_8`.
    """
    if labelled := _LABEL.fullmatch(module):
        return f"blocks.{labelled[2]}.{_LABELS[labelled[1]]}"
    inside = _LAYER_MODULE.fullmatch(within_base_model(module))
    part = _MODULES.get(inside[2]) if inside else None
    return f"blocks.{inside[1]}.{part}" if inside and part else None


def within_base_model(module: str) -> str:
    """Path of a module within the model without its head, such as `h.6.mlp.act`."""
    return re.sub(r"^(transformer|gpt_neox|model)\.", "", module)
