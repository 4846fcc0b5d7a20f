"""Which tokens a direction at a site raises and lowers, by the direct path to the logits.

The direct path leads through the residual stream past all later blocks. A direction at `resid`,
`hidden.N`, `attn.out` or `mlp.out` is one of the residual stream; one at `mlp.post` is what the
MLP's second projection makes of it, and one at `mlp.pre` likewise, with the nonlinearity left out.
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
from palinka.language_models.sites import FAMILIES, Family

# So many logits are held at once.
PIECE = 1 << 24

_IN_BLOCK = re.compile(r"blocks\.([0-9]+)\.(resid|attn\.out|mlp\.out|mlp\.post|mlp\.pre)")
_HIDDEN = re.compile(r"hidden\.([0-9]+)")


class TokenEffects(NamedTuple):
    """The tokens whose logits directions change most; all `(directions, n)`, on the CPU."""

    raised: Tensor
    """Token ids, from the most raised one on."""
    raised_by: Tensor
    """By how much."""
    lowered: Tensor
    """Token ids, from the most lowered one on."""
    lowered_by: Tensor
    """By how much; negative."""


@torch.no_grad()
def token_effects(model: LanguageModel, site: str, directions: Tensor, n: int = 10) -> TokenEffects:
    """Find the tokens that each direction at a site raises and lowers most.

    Args:
        model: The language model.
        site: Where the directions are.
        directions: `(directions, width)`, in the units of raw activations.
        n: How many tokens.

    Raises:
        InputError: If there is no such site, or no direct path from it to the logits.
    """
    to_logits = direct_path(model, site)
    pieces = []
    for piece in torch.split(directions, max(1, PIECE // int(model.model.config.vocab_size))):
        logits = to_logits(piece.to(model.device, model.dtype)).float()
        raised, lowered = logits.topk(n, dim=1), logits.topk(n, dim=1, largest=False)
        pieces.append((raised.indices, raised.values, lowered.indices, lowered.values))
    return TokenEffects(*(torch.cat(parts).cpu() for parts in zip(*pieces, strict=True)))


def direct_path(model: LanguageModel, site: str) -> Callable[[Tensor], Tensor]:
    """The linear map from directions at a site, `(…, width)`, to logits, `(…, vocabulary)`.

    Raises:
        InputError: If there is no such site, or no direct path from it to the logits.
    """
    name = model.resolve(site)
    family = FAMILIES.get(model.model.config.model_type)
    in_block, hidden = _IN_BLOCK.fullmatch(name), _HIDDEN.fullmatch(name)
    if family is None or not (in_block or hidden):
        raise InputError(
            f"there is no direct path from {name} to the logits; there is one from resid, attn.out,"
            " mlp.out, mlp.post, mlp.pre and hidden sites of known families"
        )
    unembedding: Any = model.model.get_output_embeddings()
    if hidden and int(hidden[1]) == model.n_layers:  # what the final norm returns
        return _linear_part(unembedding)
    steps = [_norm(model.model.get_submodule(family.final_norm)), _linear_part(unembedding)]
    if in_block and in_block[2] in ("mlp.post", "mlp.pre"):
        steps.insert(0, _out_projection(model, family, int(in_block[1]), name))

    def path(directions: Tensor) -> Tensor:
        for step in steps:
            directions = step(directions)
        return directions

    return path


def _out_projection(
    model: LanguageModel, family: Family, block: int, name: str
) -> Callable[[Tensor], Tensor]:
    if name.endswith("mlp.pre") and family.mlp_first.endswith("gate_proj"):
        raise InputError(
            f"there is no direct path from {name}, a gate that multiplies what another projection"
            " gives; choose mlp.post"
        )
    return _linear_part(model.model.get_submodule(f"{family.blocks}.{block}.{family.mlp_second}"))


def _linear_part(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """An affine module without its bias, however it stores its weights."""

    def apply(x: Tensor) -> Tensor:
        result: Tensor = module(x) - module(torch.zeros_like(x[:1]))
        return result

    return apply


def _norm(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """A norm without its bias, and without the division by the size of what it is given."""
    weight = module.weight
    assert isinstance(weight, Tensor)

    def apply(x: Tensor) -> Tensor:
        if isinstance(module, nn.LayerNorm):
            x = x - x.mean(dim=-1, keepdim=True)
        return x * weight

    return apply
