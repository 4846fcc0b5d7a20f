"""Absorption and splitting of first letters by dictionaries."""

import re
from string import ascii_lowercase

import numpy as np
import torch
from numpy.typing import NDArray

from palinka.analyses.result import Mask
from palinka.analyses.stats.absorption import absorption as absorbed
from palinka.analyses.stats.absorption import balanced_probe, f1_score, main_latents
from palinka.evaluation.representations import RANDOM, encoders_of, random_dictionaries, read_tokens
from palinka.evaluation.tasks import Task
from palinka.evaluation.values import Array, Dictionary, Group, Measurement, Subject, value_of
from palinka.language_models.edits import latents_of
from palinka.language_models.token_text import bos_id, token_ids, token_texts

MIN_LETTERS, MIN_F1 = 10, 0.6
MIN_TEST_WORDS = 5
# Tokens before each word; the first token of a context is unlike all others.
BEFORE = "The word"
PENALTY = 0.01
AT_RANDOM = "_random_direction"
WORD = re.compile(" [a-z]{2,}", re.IGNORECASE)


@torch.no_grad()
def absorption(subject: Subject, words: int = 4000, seed: int = 0) -> Group:
    """Measure how far latents split and absorb first letters, beside random ones.

    A word's first letter is what a linear probe reads at the word's token; four fifths of the
    `words`, the first single tokens of the vocabulary, train the probes, and the metrics are of the
    others, if 10 letters are read with an F1 above 0.6. `absorption_fraction` and `absorption_full`
    are means over true positives of a letter, then over letters, and `split_features` is the number
    of main latents less one. A random dictionary absorbs too, and so do latents if the probe is
    replaced by a random direction.
    """
    ids, letters = _words(subject, words)
    labels = letters[:, None] == np.array([*ascii_lowercase])
    random = np.random.default_rng(seed)
    train = random.permutation(len(ids)) >= len(ids) // 5
    before = [bos_id(subject.model.tokenizer)] * subject.bos
    before += token_ids(subject.model.tokenizer, [BEFORE])[0]
    dictionaries = [*subject.dictionaries, *random_dictionaries(subject, seed)]
    places = np.stack([np.arange(len(ids)), np.full(len(ids), len(before))], axis=1)
    contexts = [np.array([*before, one]) for one in ids]
    task = Task("letters", labels.any(axis=1), np.arange(len(ids)), (), contexts, places)
    (read,) = read_tokens(subject, [task], encoders_of(dictionaries))
    x = read.dense.astype(np.float64)
    kept, probes, hits, scores = [], [], [], []
    for at in np.flatnonzero(labels[~train].sum(axis=0) >= MIN_TEST_WORDS):
        w = balanced_probe(x[train], labels[train, at], PENALTY)
        positive = x[~train] @ w[:-1] + w[-1] > 0
        score = f1_score(positive, labels[~train, at])
        if score > MIN_F1:
            kept.append(at)
            probes.append(w[:-1])
            hits.append(positive & labels[~train, at])
            scores.append(score)
    if len(kept) < MIN_LETTERS:
        given = f"{len(kept)} of 26 letters can be read here (F1 > .6)"
        return Group(notes=[f"absorption not measured: {given}"])
    directions = {"": np.array(probes)}
    directions[AT_RANDOM] = random.standard_normal(directions[""].shape)
    arrays = {
        f"{metric}/{d.name}": values
        for d in dictionaries
        for metric, values in _of_letters(
            d, x, read.latents[d.name], train, labels[:, kept], hits, directions
        ).items()
    }
    found = [_measurement(*item) for item in arrays.items()]
    own = {d.name for d in subject.dictionaries}
    mine = [one for one in found if one.of in own and not one.metric.endswith(AT_RANDOM)]
    values = [value_of([one], one.of) for one in found if one not in mine]
    bands = {one.metric: (one.low, one.high) for one in values if one.of == RANDOM}
    names = "".join(ascii_lowercase[at] for at in kept)
    note = f"absorption: {len(kept)} letters ({names}), F1 of their probes {min(scores):.2f} to"
    return Group(mine, values, arrays, notes=[f"{note} {max(scores):.2f}"], bands=bands)


def _words(subject: Subject, most: int) -> tuple[NDArray[np.int64], NDArray[np.str_]]:
    """Ids of tokens that are a word of their own, each word once, and their first letters."""
    tokenizer, found = subject.model.tokenizer, dict[str, int]()
    for at, text in enumerate(token_texts(tokenizer, range(len(tokenizer)), "replace")):
        if WORD.fullmatch(text):
            found.setdefault(text[1:].lower(), at)
    words = [*found][:most]
    return np.array([found[word] for word in words]), np.array([word[0] for word in words])


def _of_letters(
    dictionary: Dictionary, x: Array, latents: NDArray[np.float32], train: Mask, labels: Mask,
    hits: list[Mask], directions: dict[str, Array],
) -> dict[str, Array]:  # fmt: skip
    """Metrics of one dictionary, `(letters,)` each; those by direction end in its name."""
    test, module = latents[~train], dictionary.autoencoder
    # The order of weights depends on the scale of latents, which is that of rows of norm 1.
    unit = latents * np.linalg.norm(dictionary.decoder, axis=1)
    main = main_latents(unit[train], labels[train], unit[~train], labels[~train])
    none = torch.zeros_like(latents_of(module, torch.from_numpy(x[:1]).float()))
    origin = module.decode(none).double().cpu().numpy()
    scaling = getattr(module, "scaling", None)
    decoder = dictionary.decoder / (float(scaling.scale) if scaling else 1.0)
    found = {"split_features": np.array([len(own) - 1.0 for own in main])}
    for suffix, lines in directions.items():
        by_word = [
            absorbed(x[~train][rows] - origin, test[rows], decoder, line, own)
            for rows, line, own in zip(hits, lines, main, strict=True)
        ]
        found[f"absorption_fraction{suffix}"] = np.array([one.fraction.mean() for one in by_word])
        found[f"absorption_full{suffix}"] = np.array([one.full.mean() for one in by_word])
    return found


def _measurement(key: str, values: Array) -> Measurement:
    metric, _, name = key.partition("/")
    n, mean = len(values), float(values.mean())
    influence = (values - mean) / np.sqrt(n * (n - 1))
    what = (influence, "letters", n, n - 1)
    return Measurement(metric, name, mean, *what, method="t over letters")
