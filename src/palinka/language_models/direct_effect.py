"""Effect of directions at a site on the logits, by the direct path.

The direct path leads through the residual stream past all later blocks. A direction at `resid`,
`hidden.N`, `attn.out` or `mlp.out` is one of the residual stream; one at `mlp.post` or `mlp.pre` is
what the MLP's second projection makes of it, without the nonlinearity. The final norm is taken as
linear: it centers (where it is a LayerNorm) and weights each dimension, without its division by the
size of the residual at each token. So effects can be compared within a model, and have no unit.
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
_WITH_PATH = re.compile(r"hidden\.\d+|blocks\.(\d+)\.(resid|attn\.out|mlp\.out|mlp\.post|mlp\.pre)")


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
    match = _WITH_PATH.fullmatch(name)
    if match is None:
        raise InputError(f"{name} has no direct path to the logits; choose a resid or mlp site")
    final = f"hidden.{sites.layers}"  # what the final norm returns
    modules = [] if name == final else [sites.tap(final).module]
    if match[2] in ("mlp.post", "mlp.pre"):
        if sites.tap(name).module.endswith("gate_proj"):
            raise InputError(f"{name} is a gate, without a path of its own; choose mlp.post")
        modules.insert(0, sites.tap(f"blocks.{match[1]}.mlp.post").module)
    unembedding: Any = model.model.get_output_embeddings
    steps = [*map(model.model.get_submodule, modules), unembedding()]

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
        applied = module.weight * centered
    return applied
