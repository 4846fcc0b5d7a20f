"""Logits of states inside the model, and the parts of a logit that directions add up to."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from palinka.errors import InputError
from palinka.interventions.metrics import padded_sets
from palinka.interventions.sources import exact
from palinka.interventions.study import Measured, Study
from palinka.language_models import LanguageModel, Tokens
from palinka.language_models.direct_effect import CHUNK_LOGITS, norm_weight
from palinka.language_models.token_text import token_texts

BATCH_TEXTS = 16
MAX_SHOWN = 12  # tokens side by side in a figure
Ids = Sequence[Sequence[int]]


class TargetTokens(NamedTuple):
    """Tokens of texts, and the ids that each of them should predict."""

    texts: Ids  # token ids of each text
    positions: Ids  # positions of the tokens in each text
    answers: Ids  # ids of the rightly predicted tokens of each, one or more; logits are averaged
    wrong: Ids | None  # ids of wrong ones to compare with; None for the mean over the vocabulary
    clusters: Sequence[Any]  # unit of inference of each token, `(tokens,)`
    shown: Sequence[int]  # numbers of tokens for a figure

    @classmethod
    def of(cls, study: Study) -> "TargetTokens":
        """The last tokens of clean prompts, or all but the last one of each text."""
        if pairs := study.pairs:
            last = [[len(ids) - 1] for ids in pairs.clean]
            shown = [pairs.templates.index(name) for name in dict.fromkeys(pairs.templates)]
            return cls(pairs.clean, last, pairs.answers, pairs.wrong, pairs.templates, shown)
        labels = study.clusters or range(len(study.tokens))
        texts = [ids for ids in study.tokens if len(ids) > 1]
        if not texts:
            raise InputError("no text has a next token; give texts of two tokens or more")
        positions = [range(len(ids) - 1) for ids in texts]
        following = [[after] for ids in texts for after in ids[1:]]
        clusters = [x for x, ids in zip(labels, study.tokens, strict=True) for _ in ids[1:]]
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
            stop = start + len(at)
            yield slice(start, stop), {s: values[rows, columns] for s, values in found.items()}
            start = stop


def lens(study: Study, *, norm: bool = True, k: int = 5) -> Iterator[Measured]:
    """Read the prediction of every layer, as if the blocks after it were left out.

    Args:
        study: The model and the texts.
        norm: Apply the final norm at every layer; without, at the last one alone.
        k: Number of most probable tokens to keep of each layer and token.
    """
    model, targets = study.model, TargetTokens.of(study)
    layers = model.spec.sites.layers
    sites = [*(f"hidden.{layer}" for layer in range(layers)), f"blocks.{layers - 1}.resid"]
    vocabulary = model.model.config.vocab_size
    if not 1 <= k <= vocabulary:
        raise InputError(f"k: {k} tokens of a vocabulary of {vocabulary}; give 1 to {vocabulary}")
    rows = max(1, CHUNK_LOGITS // vocabulary)
    parts: list[dict[str, NDArray[Any]]] = []
    for some, found in targets.read(model, sites):
        states = torch.stack([found[site] for site in sites])
        ids, weights = padded_sets(targets.answers[some], states)
        chunks = (torch.split(states, rows, 1), torch.split(ids, rows), torch.split(weights, rows))
        parts += [_predictions(model, *chunk, norm, k) for chunk in zip(*chunks, strict=True)]
    data = {name: np.concatenate([part[name] for part in parts], 1) for name in parts[0]}
    yield Measured("", {**data, "clusters": targets.clusters}, _labels(study, targets, data))


@torch.no_grad()
def _predictions(
    model: LanguageModel, states: Tensor, ids: Tensor, weights: Tensor, norm: bool, k: int
) -> dict[str, NDArray[Any]]:
    """Data of `logit_lens` for some tokens, from their states, `(layers + 1, tokens, width)`."""
    final, rows = unembed(model, states[-1]).log_softmax(-1), []
    model_probabilities = final.exp()
    model_entropy = -torch.linalg.vecdot(model_probabilities, final)
    for layer, state in enumerate(states):
        logits = unembed(model, state, norm or layer == len(states) - 1)
        logs = logits.log_softmax(-1)
        probabilities = logs.exp()
        target = logits.gather(1, ids)
        larger = [(logits > each[:, None]).sum(1, dtype=torch.int32) for each in target.T]
        rows.append((
            (logs.gather(1, ids) * weights).sum(1),
            (torch.stack(larger, 1) * weights).sum(1),
            -torch.linalg.vecdot(probabilities, logs),
            (-torch.linalg.vecdot(model_probabilities, logs) - model_entropy).clamp(min=0.0),
            *probabilities.topk(k)[::-1],
        ))  # fmt: skip
    names = ("target_log_probability", "target_rank", "entropy", "kl_to_final")
    columns = zip((*names, "top_ids", "top_probability"), zip(*rows, strict=True), strict=True)
    stacked = {name: torch.stack(each).cpu().numpy() for name, each in columns}
    return {n: v if n == "top_ids" else v.astype(np.float64) for n, v in stacked.items()}


def _labels(
    study: Study, targets: TargetTokens, data: Mapping[str, NDArray[Any]]
) -> dict[str, Any]:
    """The tokens for a figure as text: those read, the right ones, and the most probable ones."""
    shown = list(targets.shown)[:MAX_SHOWN]
    read = [text[p] for text, at in zip(targets.texts, targets.positions, strict=True) for p in at]
    ids = [read[i] for i in shown], [targets.answers[i][0] for i in shown]
    tokens, right = (token_texts(study.model.tokenizer, each) for each in ids)
    top = [token_texts(study.model.tokenizer, row.tolist()) for row in data["top_ids"][:, shown, 0]]
    return {"shown": shown, "tokens": tokens, "targets": right, "predictions": top}


def final_norm(model: LanguageModel) -> nn.Module:
    """The norm that the last block's output goes through."""
    sites = model.spec.sites
    return model.model.get_submodule(sites.tap(f"hidden.{sites.layers}").module)


def unembed(model: LanguageModel, states: Tensor, norm: bool = True) -> Tensor:
    """Logits, `(rows, vocabulary)`, of states of the residual stream, `(rows, width)`.

    Through the final norm, the unembedding and the family's softcap; without `norm`, the states
    are ones that are already normed.
    """
    logits = exact(model.unembedding(final_norm(model)(states) if norm else states))
    cap = getattr(model.model.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


@torch.no_grad()
def frozen_direction(
    model: LanguageModel, final_residual: Tensor, answers: Ids, wrong: Ids | None
) -> tuple[Tensor, Tensor]:
    """The logit difference as a function of what is added to the residual stream.

    That of `answers`, ids of each row whose logits are averaged, minus that of `wrong`; None for
    the mean over the vocabulary. With the final norm's scale in the run, whose last block returned
    `final_residual`, `(rows, width)`, the function is linear: summed over parts `c` of that,
    `functional · c`, `(rows, width)`, and `constant`, `(rows,)`, both in float32 or float64, are
    the logit difference before any softcap.
    """
    like = exact(final_residual)

    def difference(of_tokens: Tensor) -> Tensor:
        means = []
        for sets in (answers, wrong):
            if sets is None:
                means.append(exact(of_tokens).mean(0))
            else:
                ids, weights = padded_sets(sets, like)
                rows = of_tokens[ids].to(like)
                means.append(torch.einsum("rk,rk...->r...", weights.to(like), rows))
        return means[0] - means[1]

    bias = getattr(model.unembedding, "bias", None)
    constant = like.new_zeros(len(like)) if bias is None else difference(bias)
    directions = difference(model.unembedding.weight)
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
