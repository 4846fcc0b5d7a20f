"""Directions of activations, and the vectors of tokens that they are found in."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from palinka.errors import InputError
from palinka.interventions.logistic import logistic_path
from palinka.interventions.pairs import Pairs
from palinka.interventions.study import Study
from palinka.language_models import LanguageModel, Tokens
from palinka.language_models.edits import EncodesAndDecodes, as_function
from palinka.language_models.sites import input_rows

Array = NDArray[np.float64]
Texts = Sequence[Sequence[int]]
WINDOW = 64  # tokens of a text that are read together


def directions_at(
    study: Study, site: str, contrast: str, probe: bool, latents: Sequence[int],
    selection: Mapping[str, str] | None,
) -> tuple[dict[str, Array], tuple[Array, Array] | None]:  # fmt: skip
    """Directions at a site by name, `(width,)`, and the means of texts that some are made of.

    They are `diff_mean`, the difference of the two conditions of `contrast`, a file of stimuli;
    with `probe` the weights of a logistic regression between them; what `latents` write; and a
    finding that is selected.
    """
    found, means = dict[str, Array](), None
    if probe and not contrast:
        raise InputError("probe: a probe is between two conditions; give contrast, a stimuli file")
    if contrast:
        assert study.texts is not None
        means = a, b = contrast_means(study.model, site, study.texts(contrast), study.prompts)
        found["diff_mean"] = b.mean(axis=0) - a.mean(axis=0)
        if probe:
            found["probe"] = logistic_weights(a, b)
    if latents:
        written = decoder_rows(study.of_latents(site), latents, study.model.width(site))
        found |= {f"latent_{i}": row for i, row in zip(latents, written, strict=True)}
    if selection:
        found[selection.get("by", "pattern_a")] = finding(study, site, **selection)
    return found, means


def finding(study: Study, site: str, analysis: str = "", by: str = "pattern_a") -> Array:
    """A finding of an earlier analysis, one value per unit; `filter_a` reads its `pattern_a`."""
    assert study.findings is not None
    arrays, width = study.findings(site, analysis), study.model.width(site)
    if (filters := by.replace("filter_", "filters_")) != by and filters in arrays:
        return np.asarray(arrays["components"] @ arrays[filters][:, 0])
    if by not in arrays or arrays[by].shape != (width,):
        raise InputError(f"{analysis} has no {by!r} of the {width} units of {site}")
    return np.asarray(arrays[by], np.float64)


def logistic_weights(a: Array, b: Array) -> Array:
    """Weights `(width,)` of a logistic regression that tells rows of `b` from those of `a`.

    With an L2 penalty of 1/2, of activations in units of their root mean square.
    """
    x = np.concatenate([a, b])
    x = x - x.mean(axis=0)
    x /= np.sqrt(np.square(x).mean())
    # The weights lie in the span of the rows, of which there may be far fewer than columns.
    left, sizes, axes = np.linalg.svd(x, full_matrices=False)
    rows = np.column_stack([left * sizes, np.ones(len(x))])
    fit = logistic_path(rows, np.arange(len(x)) >= len(a), [1.0], np.zeros(rows.shape[1]))
    return np.asarray(next(fit)[:-1] @ axes)


def windows_of(study: Study, path: str, tokens: int) -> list[Sequence[int]]:
    """Parts of texts of a stimuli file, from its conditions by turns, with a number of tokens."""
    assert study.texts is not None
    cut = [
        [text[at : at + WINDOW] for text in texts for at in range(0, len(text) - 1, WINDOW)]
        for texts in study.texts(path).values()
    ]
    by_turns = [window for turn in zip_longest(*cut, fillvalue=()) for window in turn if window]
    before = np.cumsum([0, *map(len, by_turns)])[:-1]
    return [window for window, n in zip(by_turns, before, strict=True) if n < tokens]


def token_vectors(lm: LanguageModel, site: str, texts: Texts) -> list[Array]:
    """Vectors of the tokens of each text, `(tokens, width)`, without the first of several.

    The norm of a first token's is an outlier.
    """
    tokens = Tokens.of(texts)
    found = lm.read(tokens, site)[site].double().cpu().numpy()
    return [x[min(1, n - 1) : n] for x, n in zip(found, tokens.lengths.tolist(), strict=True)]


def median_norm(vectors: Array) -> float:
    """Unit of strengths, of vectors `(vectors, width)`; of an even number, the lower of two."""
    return float(np.quantile(np.linalg.norm(vectors, axis=1), 0.5, method="lower"))


def contrast_means(
    lm: LanguageModel, site: str, texts: Mapping[str, Texts], held_out: Pairs | None = None
) -> tuple[Array, Array]:
    """Mean vector of each text of two conditions, `(texts, width)` of either."""
    if len(texts) != 2:
        given = f"{len(texts)} are given: {', '.join(texts)}"
        raise InputError(f"a contrast has two conditions; {given}")
    prompts = {*map(tuple, [*held_out.clean, *held_out.corrupted] if held_out else [])}
    if any(tuple(text) in prompts for of in texts.values() for text in of):
        raise InputError("a text of contrast is also a prompt; hold it out: give other texts")
    a, b = (
        np.stack([x.mean(axis=0) for x in token_vectors(lm, site, of)]) for of in texts.values()
    )
    if np.allclose(a.mean(axis=0), b.mean(axis=0), rtol=0.0, atol=1e-6 * np.abs(a).max()):
        fault = f"both conditions of contrast have the same mean activation at {site}"
        raise InputError(f"{fault}; give other texts or another site")
    return a, b


@torch.no_grad()
def decoder_rows(dictionary: EncodesAndDecodes, latents: Sequence[int], width: int) -> Array:
    """Vectors that latents write per unit, `(latents, width)`, without the decoder's bias."""
    like = next(dictionary.parameters()) if isinstance(dictionary, nn.Module) else torch.zeros(1)
    zeros = torch.zeros_like(dictionary.encode(like.new_zeros(len(latents) + 1, width)))
    if unknown := [latent for latent in latents if not 0 <= latent < zeros.shape[1]]:
        raise InputError(f"latents {unknown} do not exist; expected 0 to {zeros.shape[1] - 1}")
    zeros[range(len(latents)), list(latents)] = 1.0
    written = dictionary.decode(zeros)
    return np.asarray((written[:-1] - written[-1]).double().cpu())


@torch.enable_grad()
def latents_and_slope(
    dictionary: EncodesAndDecodes, x: Tensor, functional: Tensor
) -> tuple[Tensor, Tensor]:
    """Latents of activations, and a functional of each of these as one of its latents."""
    kept: list[Tensor] = []

    def keep(latents: Tensor) -> Tensor:
        kept.append(latents.detach().requires_grad_())
        return kept[0]

    decoded = as_function(dictionary, keep)(x)
    (slope,) = torch.autograd.grad(decoded, kept[0], functional.to(decoded))
    return kept[0].detach(), slope


def output_rows(lm: LanguageModel, site: str) -> Tensor | None:
    """Outputs of units inside a block, `(units, width)`; None in the residual stream."""
    name = site.replace("mlp.pre", "mlp.post")
    if not name.endswith(("mlp.post", "attn.z")):
        return None
    return input_rows(lm.model.get_submodule(lm.spec.sites.tap(name).module)).detach().double()
