"""The latents' own pages, as data: so many latents in a file."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from palinka.atlas.encoding import packed, short
from palinka.atlas.facts import LatentFacts
from palinka.atlas.windows import Windows
from palinka.figures.display_tokens import display_tokens

# Latents in a file: a few hundred kilobytes, read in a few milliseconds.
CHUNK = 64
# In place of a token beyond the context: the largest number of the kind.
KINDS = ("uint16", "uint32")


class Chunks:
    """Writes the record of each latent.

    Args:
        facts: What is known of the latents.
    """

    def __init__(self, facts: LatentFacts) -> None:
        self._facts = facts
        # Tokens that hold a part of a character only, which shows what it is among its neighbors.
        self._parts = {token for token, text in facts.vocabulary.items() if not _is_whole(text)}
        # Tokens are written as their places in the list of those that are there.
        self._ids = np.array(sorted(facts.vocabulary))
        self._kind = next(k for k in KINDS if len(self._ids) < np.iinfo(k).max)

    def __iter__(self) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """The number of each file and the records in it."""
        count = len(self._facts.words)
        for number, start in enumerate(range(0, count, CHUNK)):
            yield number, [self._record(i) for i in range(start, min(start + CHUNK, count))]

    def _record(self, latent: int) -> dict[str, Any]:
        facts = self._facts
        report = facts.report
        counts = facts.histogram.counts[latent]
        used = int(np.flatnonzero(counts).max(initial=-1)) + 1
        pairs = [(report.raised, report.raised_by), (report.lowered, report.lowered_by)]
        raised, lowered = (
            [] if ids is None or by is None else _effects(self._places(ids[latent]), by[latent])
            for ids, by in pairs
        )
        return {
            "histogram": {
                "width": float(facts.histogram.width[latent]),
                "counts": counts[:used].tolist(),
            },
            "top": self._windows(facts.top, latent),
            "bands": self._windows(facts.bands, latent),
            "sampled": int(facts.sampled[latent]),
            "words": [
                [word.text, word.places, short(word.activation)] for word in facts.words[latent]
            ],
            "raised": raised,
            "lowered": lowered,
            "nearest": _effects(report.nearest[latent], report.nearest_cosine[latent]),
        }

    def _windows(self, windows: Windows, latent: int) -> dict[str, Any]:
        """All windows of a latent; the columns in which there is one say where each belongs."""
        columns = np.flatnonzero(windows.places[latent] >= 0)
        tokens = windows.tokens[latent, columns]
        values = windows.activations[latent, columns]
        return {
            "columns": columns.tolist(),
            "document": windows.documents[latent, columns].tolist(),
            "position": windows.positions[latent, columns].tolist(),
            "tokens": packed(self._places(tokens), self._kind),
            "activations": [
                [part for at in np.flatnonzero(row) for part in (int(at), short(row[at]))]
                for row in values
            ],
            "shown": [self._shown(row.tolist()) for row in tokens],
        }

    def _places(self, tokens: NDArray[Any]) -> NDArray[np.int64]:
        """Where tokens stand in the vocabulary's list; the kind's largest number for none."""
        return np.where(tokens < 0, np.iinfo(self._kind).max, np.searchsorted(self._ids, tokens))

    def _shown(self, tokens: list[int]) -> dict[int, str]:
        """What a window shows instead of the tokens by themselves, by place."""
        if self._parts.isdisjoint(tokens):
            return {}
        places = [place for place, token in enumerate(tokens) if token >= 0]
        vocabulary = self._facts.vocabulary
        texts = display_tokens([vocabulary[tokens[place]] for place in places])
        return {p: t for p, t in zip(places, texts, strict=True) if tokens[p] in self._parts}


def _effects(ids: NDArray[np.int64], by: NDArray[np.float32]) -> list[list[Any]]:
    return [[int(i), short(value)] for i, value in zip(ids, by, strict=True)]


def _is_whole(token: bytes) -> bool:
    try:
        token.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
