"""Effect of directions at a site on the logits, by the direct path.

The direct path leads through the residual stream past all later blocks. A direction at `resid`,
`hidden.N`, `attn.out` or `mlp.out` is one of the residual stream; one at `mlp.post` is what the
MLP's second projection makes of it, and one at `mlp.pre` likewise, without the nonlinearity.
The final norm is taken as linear: it centers (where it is a LayerNorm) and weights each dimension,
and its division by the residual's own size, which is another at each token, is left out. So effects
of one model can be compared with each other, and have no unit.

Source:
    nostalgebraist (2020), interpreting GPT: the logit lens; Elhage et al. (2021), A mathematical
    framework for transformer circuits, for the direct path.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from palinka.errors import InputError
from palinka.language_models.model import LanguageModel
from palinka.language_models.sites import FAMILIES

# Maximum number of logits in memory at once.
CHUNK_LOGITS = 1 << 24

_IN_BLOCK = re.compile(r"blocks\.([0-9]+)\.(resid|attn\.out|mlp\.out|mlp\.post|mlp\.pre)")
_HIDDEN = re.compile(r"hidden\.([0-9]+)")


class TokenEffects(NamedTuple):
    """The tokens whose logits directions change most; all `(directions, n)`, on the CPU."""

    raised: Tensor
    """Token ids, the most raised first."""
    raised_by: Tensor
    """Change of their logits."""
    lowered: Tensor
    """Token ids, the most lowered first."""
    lowered_by: Tensor
    """Change of their logits, negative."""


@torch.no_grad()
def token_effects(model: LanguageModel, site: str, directions: Tensor, n: int = 10) -> TokenEffects:
    """Find the tokens that each direction at a site raises and lowers most.

    Args:
        model: The language model.
        site: The site of the directions.
        directions: `(directions, width)`, in the units of raw activations.
        n: Number of tokens.

    Raises:
        InputError: If the model has no such site, or it has no direct path to the logits.
    """
    to_logits = direct_path(model, site)
    found = []
    for chunk in torch.split(directions, max(1, CHUNK_LOGITS // model.model.config.vocab_size)):
        logits = to_logits(chunk.to(model.device, model.dtype)).float()
        raised, lowered = logits.topk(n, dim=1), logits.topk(n, dim=1, largest=False)
        found.append((raised.indices, raised.values, lowered.indices, lowered.values))
    return TokenEffects(*(torch.cat(parts).cpu() for parts in zip(*found, strict=True)))


def direct_path(model: LanguageModel, site: str) -> Callable[[Tensor], Tensor]:
    """The linear map from directions at a site, `(…, width)`, to logits, `(…, vocabulary)`.

    Raises:
        InputError: If the model has no such site, or it has no direct path to the logits.
    """
    name = model.resolve(site)
    family = FAMILIES.get(model.model.config.model_type)
    in_block, hidden = _IN_BLOCK.fullmatch(name), _HIDDEN.fullmatch(name)
    if family is None or not (in_block or hidden):
        raise InputError(
            f"{name} has no direct path to the logits; choose a resid, attn.out, mlp.out, mlp.post,"
            " mlp.pre or hidden site of a known family"
        )
    unembedding: Any = model.model.get_output_embeddings()
    if hidden and int(hidden[1]) == model.n_layers:  # what the final norm returns
        return _linear_part(unembedding)
    steps = [_norm(model.model.get_submodule(family.final_norm)), _linear_part(unembedding)]
    if in_block and in_block[2] in ("mlp.post", "mlp.pre"):
        if in_block[2] == "mlp.pre" and family.mlp_first.endswith("gate_proj"):
            raise InputError(
                f"{name} has no direct path to the logits: it is a gate that multiplies another"
                " projection; choose mlp.post"
            )
        second = f"{family.blocks}.{in_block[1]}.{family.mlp_second}"
        steps.insert(0, _linear_part(model.model.get_submodule(second)))

    def path(directions: Tensor) -> Tensor:
        for step in steps:
            directions = step(directions)
        return directions

    return path


def _linear_part(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """An affine module without its bias."""

    def apply(x: Tensor) -> Tensor:
        result: Tensor = module(x) - module(torch.zeros_like(x[:1]))
        return result

    return apply


def _norm(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """A norm without its bias, and without the division by the size of its input."""
    weight = module.weight
    assert isinstance(weight, Tensor)

    def apply(x: Tensor) -> Tensor:
        if isinstance(module, nn.LayerNorm):
            x = x - x.mean(dim=-1, keepdim=True)
        return x * weight

    return apply
