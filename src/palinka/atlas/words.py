"""At which words a latent is active, judged by a random sample of the places where it is."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from palinka.atlas.text import Text, word_numbers
from palinka.atlas.windows import Windows
from palinka.figures.display_tokens import display_tokens

# Parts of a longer word, such as a URL, tell nothing more.
_LONGEST = 40


class Word(NamedTuple):
    """A word of a latent's sample.

    Attributes:
        text: The word as it is shown.
        places: At how many places of the sample it stands.
        activation: The mean activation at them.
    """

    text: str
    places: int
    activation: float


def firing_words(
    text: Text, sample: Windows, vocabulary: Mapping[int, bytes], most: int = 8
) -> list[list[Word]]:
    """The words that hold the most of each latent's activation, in its sample.

    Args:
        text: The text of the windows.
        sample: Places drawn at random among those where each latent is active.
        vocabulary: The bytes of every token of the text.
        most: How many words at most.

    Returns:
        A list for each latent; the word with the largest sum of activations comes first.
    """
    numbers = word_numbers(text, vocabulary)
    count = int(numbers[-1]) + 1
    starts = np.searchsorted(numbers, np.arange(count))
    stops = np.append(starts[1:], len(numbers))
    shown: dict[int, str] = {}

    def show(number: int) -> str:
        if number not in shown:
            ids = text.tokens[starts[number] : stops[number]].tolist()
            shown[number] = _shown([vocabulary[token] for token in ids])
        return shown[number]

    peak = sample.peak
    found = []
    for latent, places in enumerate(sample.places):
        there = places >= 0
        sums: dict[str, list[float]] = {}
        for number, value in zip(numbers[places[there]], peak[latent, there], strict=True):
            sums.setdefault(show(int(number)), []).append(float(value))
        ranked = sorted(sums.items(), key=lambda item: (-sum(item[1]), item[0]))
        found.append([Word(word, len(v), float(np.mean(v))) for word, v in ranked[:most]])
    return found


def _shown(tokens: list[bytes]) -> str:
    word = "".join(display_tokens(tokens)).strip(" ␣") or "␣"
    return word if len(word) <= _LONGEST else f"{word[: _LONGEST - 1]}…"
