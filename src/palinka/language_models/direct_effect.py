"""Effect of directions at a site on the logits, by the direct path.

The direct path leads through the residual stream past all later blocks. A direction at `resid`,
`resid_mid`, `hidden.N`, `attn.write` or `mlp.write` is one of the residual stream; `attn.out` and
`mlp.out` are written to it, in some families through a norm. One at `attn.z`, `mlp.post` or
`mlp.pre` is what the following projection makes of it, without the nonlinearity. Norms are taken as
linear: they center (if a LayerNorm) and weight each dimension, without their division by the size
of the vector at each token. So effects can be compared within a model, and have no unit.
Logits matter up to a constant alone: effects are taken about their mean over the vocabulary, after
the final norm's weights, so that a shift of all tokens raises none of them.

Source:
    nostalgebraist (2020), interpreting GPT: the logit lens; Elhage et al. (2021), A mathematical
    framework for transformer circuits, for the direct path.
"""

import re
from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from palinka.errors import InputError
from palinka.language_models.model import LanguageModel

CHUNK_LOGITS = 1 << 24  # maximum number in memory at once
_WITH_PATH = re.compile(
    r"embed|hidden\.\d+|blocks\.\d+\.(resid|resid_mid|(attn|mlp)\.(z|post|pre|out|write))"
)


class TokenEffects(NamedTuple):
    """Ids of the tokens whose logits change most, most first, and changes: `(directions, n)`."""

    raised: Tensor
    raised_by: Tensor
    lowered: Tensor
    lowered_by: Tensor


@torch.no_grad()
def token_effects(model: LanguageModel, site: str, directions: Tensor, n: int = 10) -> TokenEffects:
    """Find the `n` tokens that each direction at a site raises and lowers most.

    Directions, `(directions, width)`, are in the units of raw activations.
    """
    to_logits = direct_path(model, site)
    found = []
    for chunk in torch.split(directions, max(1, CHUNK_LOGITS // model.model.config.vocab_size)):
        logits = to_logits(chunk.to(model.device, model.model.dtype))
        raised, lowered = logits.topk(n, dim=1), logits.topk(n, dim=1, largest=False)
        found.append((raised.indices, raised.values, lowered.indices, lowered.values))
    return TokenEffects(*(torch.cat(parts).cpu() for parts in zip(*found, strict=True)))


def direct_path(model: LanguageModel, site: str) -> Callable[[Tensor], Tensor]:
    """The linear map from directions at a site, `(…, width)`, to logits, `(…, vocabulary)`.

    The logits are in float32, about their mean over the vocabulary.
    """
    sites = model.spec.sites
    name = sites.resolve(site)
    if (match := _WITH_PATH.fullmatch(name)) is None:
        raise InputError(f"{name} has no direct path to the logits; choose a resid or mlp site")
    final = f"hidden.{sites.layers}"  # what the final norm returns
    modules = [] if name == final else [sites.tap(final).module]
    if match[2]:
        part = name.removesuffix(match[3])  # such as blocks.3.mlp.
        out, write = sites.tap(f"{part}out").module, sites.tap(f"{part}write").module
        if match[3] != "write" and write != out:  # a norm
            modules.insert(0, write)
        if match[3] == "pre" and sites.tap(name).module.endswith(("gate_proj", "gate_up_proj")):
            raise InputError(f"{name} is a gate, without a path of its own; choose mlp.post")
        if match[3] not in ("out", "write"):
            modules.insert(0, sites.tap(part + ("z" if match[2] == "attn" else "post")).module)
    steps = [*map(model.model.get_submodule, modules), model.unembedding]

    def to_logits(directions: Tensor) -> Tensor:
        logits = reduce(_linear_part, steps, directions).float()
        return logits - logits.mean(dim=-1, keepdim=True)

    return to_logits


def _linear_part(x: Tensor, module: Any) -> Tensor:
    """Apply an affine module without its bias, or a norm without its division by the size."""
    if module.weight.ndim > 1:
        applied: Tensor = module(x) - module(torch.zeros_like(x[:1]))
    else:
        centered = x - x.mean(dim=-1, keepdim=True) if isinstance(module, nn.LayerNorm) else x
        applied = norm_weight(module) * centered
    return applied


def norm_weight(norm: nn.Module) -> Tensor:
    """The factor of each dimension after a norm; Gemma's stores it less 1."""
    weight = norm.get_parameter("weight")
    return 1 + weight if type(norm).__name__.startswith("Gemma") else weight
