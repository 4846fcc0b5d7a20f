"""Logits of states inside the model, and the parts of a logit that directions add up to."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from palinka.errors import InputError
from palinka.interventions.study import Study
from palinka.language_models import LanguageModel, Tokens
from palinka.language_models.direct_effect import norm_weight

BATCH_TEXTS = 16
Ids = Sequence[Sequence[int]]


class Targets(NamedTuple):
    """Tokens of texts, and the ids that each of them should predict.

    Attributes:
        texts: Token ids of each text.
        positions: Positions of the tokens in each text.
        answers: Ids of the rightly predicted tokens of each, one or more; logits are averaged.
        wrong: Ids of wrong ones to compare with; None for the mean over the vocabulary.
        clusters: Unit of inference of each token, `(tokens,)`.
        shown: Numbers of tokens for a figure.
    """

    texts: Ids
    positions: Ids
    answers: Ids
    wrong: Ids | None
    clusters: Sequence[Any]
    shown: Sequence[int]

    @classmethod
    def of(cls, study: Study) -> "Targets":
        """The last tokens of clean prompts, or all but the last one of each text."""
        if pairs := study.pairs:
            last = [[len(ids) - 1] for ids in pairs.clean]
            shown = [pairs.templates.index(name) for name in dict.fromkeys(pairs.templates)]
            return cls(pairs.clean, last, pairs.answers, pairs.wrong, pairs.templates, shown)
        texts = [ids for ids in study.tokens if len(ids) > 1]
        if not texts:
            raise InputError("no text has a next token; give texts of two tokens or more")
        positions = [range(len(ids) - 1) for ids in texts]
        following = [[after] for ids in texts for after in ids[1:]]
        clusters = [number for number, each in enumerate(positions) for _ in each]
        return cls(texts, positions, following, None, clusters, positions[0])

    def read(
        self, model: LanguageModel, sites: Sequence[str]
    ) -> Iterator[tuple[slice, dict[str, Tensor]]]:
        """Read the tokens' activations, `(tokens, width)`, a batch of texts at a time."""
        start = 0
        for first in range(0, len(self.texts), BATCH_TEXTS):
            batch = slice(first, first + BATCH_TEXTS)
            found = model.read(Tokens.of(self.texts[batch]), sites, BATCH_TEXTS)
            at = [(row, p) for row, each in enumerate(self.positions[batch]) for p in each]
            rows, columns = torch.tensor(at, device=model.device).T
            yield (
                slice(start, start + len(at)),
                {site: values[rows, columns] for site, values in found.items()},
            )
            start += len(at)


def final_norm(model: LanguageModel) -> nn.Module:
    """The norm that the last block's output goes through."""
    sites = model.spec.sites
    return model.model.get_submodule(sites.tap(f"hidden.{sites.layers}").module)


def _unembedding(model: LanguageModel) -> Any:
    output: Any = model.model.get_output_embeddings
    return output()


def unembed(model: LanguageModel, states: Tensor, norm: bool = True) -> Tensor:
    """Logits, `(rows, vocabulary)`, of states of the residual stream, `(rows, width)`.

    Through the final norm, the unembedding and the family's softcap; without `norm`, the states
    are ones that are already normed.
    """
    unembedding = _unembedding(model)
    logits: Tensor = unembedding(final_norm(model)(states) if norm else states)
    logits = _at_least_float32(logits)
    cap = getattr(model.model.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


@torch.no_grad()
def frozen_direction(
    model: LanguageModel, final_residual: Tensor, answers: Ids, wrong: Ids | None
) -> tuple[Tensor, Tensor]:
    """The logit difference as a function of what is added to the residual stream.

    The final norm's scale is that of the run, so that the function is linear: summed over parts
    `c` of the final residual, `functional · c`, and `constant`, are the logit difference before
    any softcap.

    Args:
        model: The language model.
        final_residual: Outputs of the last block, `(rows, width)`.
        answers: Token ids of each row, one or more, whose logits are averaged.
        wrong: Those to subtract; None for the mean logit of the vocabulary.

    Returns:
        The functional, `(rows, width)`, and the constant, `(rows,)`, in float32 or float64.
    """
    unembedding = _unembedding(model)
    like = _at_least_float32(final_residual)

    def difference(of_tokens: Tensor) -> Tensor:
        means = []
        for sets in (answers, wrong):
            if sets is None:
                means.append(_at_least_float32(of_tokens).mean(0))
            else:
                ids, weights = padded_sets(sets, like)
                means.append(torch.einsum("rk,rk...->r...", weights, of_tokens[ids].to(like)))
        return means[0] - means[1]

    constant = like.new_zeros(len(like))
    if (bias := getattr(unembedding, "bias", None)) is not None:
        constant = difference(bias)
    directions = difference(unembedding.weight)
    functional, added = through_norm(final_norm(model), final_residual, directions)
    return functional, constant + added


def through_norm(norm: nn.Module, x: Tensor, functional: Tensor) -> tuple[Tensor, Tensor]:
    """A functional of a norm's output as one of its input, with the scale frozen at input `x`.

    Both are `(rows, width)`; beside it the constant that the norm's bias adds, `(rows,)`.
    """
    centers = isinstance(norm, nn.LayerNorm)
    weight, bias = norm_weight(norm).to(functional), getattr(norm, "bias", None)
    bias = torch.zeros_like(weight) if bias is None else bias.to(functional)
    normed, x = norm(x).to(functional) - bias, x.to(functional)
    linear = weight * (x - x.mean(1, keepdim=True) if centers else x)
    # The norm's division, measured: its epsilon has another name in every family.
    scale = normed.norm(dim=1, keepdim=True) / linear.norm(dim=1, keepdim=True)
    pulled = functional * weight * scale
    pulled = pulled - pulled.mean(1, keepdim=True) if centers else pulled
    return pulled, functional @ bias


def padded_sets(sets: Ids, like: Tensor) -> tuple[Tensor, Tensor]:
    """Ids of each set, `(sets, most)`, and the weights of their mean, 0 for padding."""
    rows = [torch.tensor(list(ids), device=like.device) for ids in sets]
    weights = [torch.full(row.shape, 1 / len(row)).to(like) for row in rows]
    return pad_sequence(rows, batch_first=True), pad_sequence(weights, batch_first=True)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
