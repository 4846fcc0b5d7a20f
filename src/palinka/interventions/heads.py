"""Sums of attention that the scores of heads are made of."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from palinka.errors import InputError
from palinka.interventions.study import Measured, Study
from palinka.language_models.attention import visit_attention
from palinka.language_models.model import LanguageModel, Tokens
from palinka.language_models.token_text import token_texts

Arrays = dict[str, NDArray[np.float64]]
# Maximum number of elements of the patterns of one block.
PATTERN_ELEMENTS = 1 << 24
# Attention below it does not count as a step of induction in `induction_text`.
MIN_ATTENTION = 0.01


def heads(
    study: Study, *, length: int = 50, sequences: int = 32, seed: int = 0
) -> Iterator[Measured]:
    """Sum the attention of every head over the texts of the stimuli, and over random tokens.

    Args:
        study: The model and the texts.
        length: Number of random tokens before they are repeated.
        sequences: Number of sequences of random tokens.
        seed: Seed of the random tokens.
    """
    tokens = Tokens.of(study.tokens)
    found = head_sums(study.model, tokens, length=length, sequences=sequences, seed=seed)
    patterns = study.model.attention(Tokens.of(study.tokens[:1])).items()
    every = {(i, h): x.cpu().numpy() for i, (heads,) in patterns for h, x in enumerate(heads)}
    context = {"patterns": every, "tokens": token_texts(study.model.tokenizer, study.tokens[0])}
    yield Measured("", {**found, "clusters": study.clusters or None}, context)


def head_sums(
    lm: LanguageModel, tokens: Tokens, *, length: int = 50, sequences: int = 32, seed: int = 0
) -> dict[str, Arrays]:
    """Sum the attention of every head over texts, and over random tokens that are repeated.

    By name of a score, which `analyses.head_scores` defines, `sums` over the queries,
    `(layers, heads, texts)`, `counts` of the queries, `(texts,)`, and `reference`, the sums without
    what a score is about: of a head that attends to all tokens alike, `(texts,)`, or of each head
    in random tokens that others follow. Random tokens are uniform over those that are not special.
    """
    if tokens.lengths.min() < 2:
        raise InputError("a text has 1 token; scores of heads need at least 2: leave it out")
    if 2 * length > lm.context_length:
        limit = f"a context has at most {lm.context_length} tokens"
        raise InputError(f"{length} random tokens, twice: {limit}; set a shorter length")
    batches = []
    size = PATTERN_ELEMENTS // (lm.model.config.num_attention_heads * tokens.ids.shape[1] ** 2)
    for start in range(0, len(tokens.ids), max(1, size)):
        batch = slice(start, start + max(1, size))
        part = (batch, slice(int(tokens.lengths[batch].max())))
        ids, mask = tokens.ids[part].to(lm.device), tokens.mask[part].to(lm.device)
        reduce = _TextSums(ids, mask)
        alike = {n: sums[:, 0].cpu().numpy() for n, sums in reduce(reduce.uniform()).items()}
        batches.append((_by_layer(lm, Tokens(ids, mask), reduce), alike))
    sums, reference = (
        {name: np.concatenate([each[name] for each in of], axis=-1) for name in of[0]}
        for of in zip(*batches, strict=True)
    )
    earlier = (tokens.ids[:, :, None] == tokens.ids[:, None]).tril(-1).any(-1) & (tokens.mask == 1)
    every = tokens.lengths.double().cpu().numpy()
    short = {"previous_token", "sink", "entropy_normalized"}
    counts = {name: every - (name in short) for name in sums}
    counts["induction_text"] = earlier.sum(1).double().cpu().numpy()
    random = np.random.default_rng(seed)
    every_id = np.arange(min(len(lm.tokenizer), lm.model.config.vocab_size))
    known = np.setdiff1d(every_id, lm.tokenizer.all_special_ids)
    first, other = random.choice(known, (2, sequences, length))
    for kind, second in ((sums, first), (reference, other)):
        drawn = Tokens.of(np.concatenate([first, second], axis=1).tolist())
        kind |= _by_layer(lm, drawn, _repeated_sums)
    counts |= dict.fromkeys(("duplicate_token", "induction"), np.full(sequences, float(length)))
    return {"sums": sums, "counts": counts, "reference": reference}


def _by_layer(
    lm: LanguageModel, tokens: Tokens, reduce: Callable[[Tensor], Mapping[str, Tensor]]
) -> Arrays:
    """Sums of patterns, `(texts, heads)` by name, of every block: `(layers, heads, texts)`."""
    found: dict[str, list[Tensor]] = defaultdict(list)

    def visit(_batch: slice, _layer: int, pattern: Tensor) -> None:
        for name, sums in reduce(pattern).items():
            found[name].append(sums.cpu().double())

    visit_attention(lm, tokens, visit, batch_size=len(tokens.ids))
    return {name: torch.stack(sums).mT.numpy() for name, sums in found.items()}


def _repeated_sums(pattern: Tensor) -> dict[str, Tensor]:
    """Sums over the second half: attention to the same place in the first, and to the next."""
    half = pattern.shape[-1] // 2
    same = pattern.diagonal(-half, -2, -1).sum(-1)
    # The first entry of this diagonal is of the last query of the first half.
    following = pattern.diagonal(1 - half, -2, -1)[..., 1:].sum(-1)
    return {"duplicate_token": same, "induction": following}


class _TextSums:
    """Sums over all queries of each text of a batch, `(texts, heads)` by name."""

    def __init__(self, ids: Tensor, mask: Tensor) -> None:
        self.mask, places = mask, torch.arange(ids.shape[1], device=ids.device)
        same = (ids[:, :, None] == ids[:, None]) & (mask[:, :, None] == 1)
        self.text, self.query, self.earlier = same.tril(-1).nonzero(as_tuple=True)
        self.distance = (places[:, None] - places).clamp(min=0)
        self.per_log = 1.0 / torch.log1p(places.double())
        self.per_log[0] = 0.0

    def uniform(self) -> Tensor:
        """The pattern of a head that attends to all tokens alike, `(texts, 1, queries, keys)`."""
        tokens = self.mask.shape[1]
        alike = torch.ones(tokens, tokens, device=self.mask.device, dtype=torch.float64).tril()
        return (alike / alike.sum(-1, keepdim=True)) * self.mask[:, None, :, None]

    def __call__(self, pattern: Tensor) -> dict[str, Tensor]:
        distance = self.distance.to(pattern).flatten()
        moments = pattern.flatten(-2) @ torch.stack([distance, distance**2], dim=-1)
        entropy = torch.special.entr(pattern).sum(-1)
        previous = pattern.diagonal(-1, -2, -1).sum(-1)
        same = pattern[self.text, :, self.query, self.earlier]
        following = pattern[self.text, :, self.query, self.earlier + 1]
        steps = following.masked_fill(following < MIN_ATTENTION, 0.0)
        zeros = pattern.new_zeros(pattern.shape[:2])
        return {
            "previous_token": previous,
            "self": pattern.diagonal(0, -2, -1).sum(-1),
            "sink": pattern[..., 1:, 0].sum(-1),
            "entropy": entropy.sum(-1),
            "entropy_normalized": entropy @ self.per_log.to(pattern),
            "distance": moments[..., 0],
            "distance_squared": moments[..., 1],
            "induction_text": zeros.index_add(0, self.text, steps),
            "detect_previous": previous,
            "detect_duplicate": zeros.index_add(0, self.text, same),
            "detect_induction": zeros.index_add(0, self.text, following),
        }
