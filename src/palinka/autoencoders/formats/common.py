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

    With `layer_norm`, each activation is layer-normed before it is encoded, and the reconstruction
    brought back to its mean and deviation. Both weights are `(latents, width)`, the decoder's bias
    `(width,)`, a `batch_threshold` a scalar, and all others `(latents,)`.
    """

    kind: Kind
    tensors: Mapping[str, Tensor]
    k: int = 0
    subtracts_bias: bool = True
    layer_norm: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Number of latents, and width of the activations."""
        latents, width = self.tensors["encoder.weight"].shape
        return latents, width

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
    """Rename the tensors of a file to those of a `StateTable`, in float32.

    The file may also have what is `ignored`.
    """
    missing, left_over = keys.keys() - found.keys(), found.keys() - keys.keys() - set(ignored)
    for name in [*sorted(missing), *sorted(left_over)]:
        what = "lacks the" if name in missing else "has an unexpected"
        raise InputError(f"{path} {what} weight {name!r}: is it of another architecture?")
    tensors: dict[str, Tensor] = {}
    for theirs, ours in keys.items():
        tensor, name = found[theirs], ours.removesuffix(".T")
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise InputError(f"{path}: {theirs!r} is not a tensor of floating-point numbers")
        tensors[name] = (tensor if name == ours else tensor.T).detach().float()
    size = tensors["encoder.weight"].shape
    shapes = {"encoder.weight": size, "decoder_weight": size, "decoder_bias": size[1:]}
    shapes["batch_threshold"] = size[:0]
    for theirs, ours in keys.items():
        held = f"{path} holds {theirs!r} of shape {tuple(found[theirs].shape)}"
        if ours.startswith("encoder.weight") and (len(size) != 2 or 0 in size):
            raise InputError(f"{held}, not a matrix")
        name = ours.removesuffix(".T")
        expected = shapes.get(name, size[:1])
        if tensors[name].shape != expected:
            fits = tuple(expected if name == ours else expected[::-1])
            raise InputError(f"{held}; expected {fits}, as the encoder's weight has it")
    return tensors


def rename_tensors(tensors: Mapping[str, Tensor], keys: Keys) -> dict[str, Tensor]:
    """Rename the tensors of a `StateTable` to those of a file, in float32."""
    return {
        theirs: (tensors[ours[:-2]].T if ours.endswith(".T") else tensors[ours]).float()
        for theirs, ours in keys.items()
    }


def read_state_dict(path: Path) -> dict[str, Any]:
    """Read tensors and plain values that `torch.save` wrote, without unpickling other objects."""
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # the unpickler raises anything on a damaged file
        reason = f"holds more than tensors, or is torn: {first_line(error)}"
        raise InputError(f"{path} {reason}; save a state dict with torch.save") from error
    if not isinstance(stored, dict) or not all(isinstance(name, str) for name in stored):
        raise InputError(f"{path} holds no named tensors: give an autoencoder's state dict")
    return stored


T = TypeVar("T")


def setting(config: Mapping[str, Any], key: str, kind: type[T], path: Path, default: T) -> T:
    """Value of a configuration, or its default; an `InputError` if it is of another type."""
    value = config.get(key)
    if expected := None if value is None else type_mismatch(value, kind):
        raise InputError(f"{path}: {key} is {value!r}; expected {expected}")
    found: T = default if value is None else value
    return found


def read_k(config: Mapping[str, Any], latents: int, path: Path, default: int = 0) -> int:
    """Value of `k` in a configuration; an `InputError` unless in 1 … `latents`."""
    k = setting(config, "k", int, path, default)
    if not 1 <= k <= latents:
        raise InputError(f"{path}: k is {k}; expected 1 to {latents}, the number of latents")
    return k


def check_dimensions(config: Mapping[str, Any], path: Path, **dimensions: int) -> None:
    """Reject a configuration without the dimensions of the weights."""
    for key, expected in dimensions.items():
        if setting(config, key, int, path, expected) != expected:
            fault = f"{path} has {key} {config[key]}, but the weights beside it have {expected}"
            raise InputError(f"{fault}: use the files of one autoencoder")


def mapping_in(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Object within a configuration; empty where there is none."""
    value = config.get(key)
    return value if isinstance(value, dict) else {}


_HOOKS = {
    "resid": "hook_resid_post",
    # What is added to the stream; without a norm in between, that is the module's output.
    "attn.out": "hook_attn_out", "mlp.out": "hook_mlp_out",
    "attn.write": "hook_attn_out", "mlp.write": "hook_mlp_out",
    "mlp.pre": "mlp.hook_pre", "mlp.post": "mlp.hook_post",
    "resid_mid": "hook_resid_mid", "attn.z": "attn.hook_z",
}  # fmt: skip
_PARTS = {hook: part for part, hook in _HOOKS.items()}
_IN_LAYER = re.compile(r"blocks\.(\d+)\.(.+)")
_HIDDEN = re.compile(r"hidden\.(\d+)")

# Outputs of the modules of a layer in GPT-2, GPT-Neo, GPT-NeoX, Llama, Mistral and Qwen. `act_fn`
# of the gated families is not yet multiplied with the other half.
_MODULES = {
    "resid": [""],
    "attn.out": [
        "attn", "attn.c_proj", "attn.attention.out_proj", "attention", "attention.dense",
        "self_attn", "self_attn.o_proj",
    ],
    "mlp.out": ["mlp", "mlp.c_proj", "mlp.dense_4h_to_h", "mlp.down_proj"],
    "mlp.pre": ["mlp.c_fc", "mlp.dense_h_to_4h", "mlp.gate_proj"],
    "mlp.post": ["mlp.act"],
}  # fmt: skip
_PART_OF = {module: part for part, modules in _MODULES.items() for module in modules}
_LAYER_MODULE = re.compile(r"(?:h|layers)\.(\d+)(?:\.(.+))?")
_LABEL = re.compile(r"(resid_post|mlp_out|attention_out)_layer_(\d+)")
_LABELS = {"resid_post": "resid", "mlp_out": "mlp.out", "attention_out": "attn.out"}


def hook_of(site: str, layers: int | None = None) -> str | None:
    """TransformerLens' name for a site such as `blocks.6.mlp.pre`, where it has one.

    It has none for the output of the final norm, and whether `hidden.6` is that depends on the
    number of layers.
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
    if inside and inside[2] == "hook_resid_pre":
        return f"blocks.{int(inside[1]) - 1}.resid" if int(inside[1]) else "hidden.0"
    part = _PARTS.get(inside[2]) if inside else None
    return f"blocks.{inside[1]}.{part}" if inside and part else None


def site_of_module(module: str) -> str | None:
    """Site of a module's output, such as `h.6.mlp.act`, or of a label, `resid_post_layer_8`."""
    if labelled := _LABEL.fullmatch(module):
        return f"blocks.{labelled[2]}.{_LABELS[labelled[1]]}"
    inside = _LAYER_MODULE.fullmatch(within_base_model(module))
    part = _PART_OF.get(inside[2] or "") if inside else None
    return f"blocks.{inside[1]}.{part}" if inside and part else None


def within_base_model(module: str) -> str:
    """Path of a module within the model without its head, such as `h.6.mlp.act`."""
    return re.sub(r"^(transformer|gpt_neox|model)\.", "", module)
