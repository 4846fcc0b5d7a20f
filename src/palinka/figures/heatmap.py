"""What a text heatmap shows: a number for each token, as a color."""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.colors import to_hex
from numpy.typing import ArrayLike, NDArray

from palinka.errors import InputError

# Squares let the strongest tokens of a latent stand out; units are shown as they are.
LATENT_EXPONENT = 2.0
UNIT_EXPONENT = 1.0
POSITIVE = "Reds"
NEGATIVE = "Blues"


@dataclass(frozen=True)
class Heatmap:
    """One series over the tokens of a text.

    Attributes:
        values: A number for each token, `(tokens,)`.
        caption: What the numbers are.
        colors: The name of a matplotlib color map whose low end is light.
        exponent: The power that scaled values are raised to.
    """

    values: ArrayLike
    caption: str = ""
    colors: str = POSITIVE
    exponent: float = LATENT_EXPONENT

    def numbers(self, tokens: int) -> NDArray[np.float64]:
        """The values, checked against the number of tokens.

        Raises:
            InputError: If there are more or fewer values, or if some are NaN or infinite.
        """
        name = f"heatmap {self.caption!r}"
        values = np.asarray(self.values, dtype=np.float64)
        if values.shape != (tokens,):
            raise InputError(
                f"{name} has values of the shape {values.shape} for {tokens} tokens; expected "
                "one value for each token"
            )
        if not np.isfinite(values).all():
            raise InputError(f"{name} holds NaN or infinite values; leave those tokens out")
        return values

    def cells(self, tokens: int) -> list[tuple[str, str]]:
        """Background and text color of every token, as `#rrggbb`."""
        color_map = mpl.colormaps[self.colors]
        shades = np.asarray(color_map(scaled(self.numbers(tokens), self.exponent)))[:, :3]
        return [(to_hex(tuple(shade)), readable_on(shade)) for shade in shades]


def scaled(values: NDArray[np.float64], exponent: float) -> NDArray[np.float64]:
    """Scale values over the text to 0 … 1 and raise them to a power.

    Args:
        values: `(tokens,)`.
        exponent: The power, positive.

    Returns:
        `((values - min) / (max - min)) ** exponent`; zeros where all values are equal.
    """
    low, high = values.min(), values.max()
    if high == low:
        return np.zeros(len(values))
    return np.asarray(((values - low) / (high - low)) ** exponent)


def readable_on(color: Sequence[float] | NDArray[np.float64]) -> str:
    """Black or white, whichever has more contrast on a color.

    Args:
        color: Red, green and blue, each 0 to 1.

    Returns:
        `#rrggbb`.

    Source:
        Relative luminance and contrast ratio of the Web Content Accessibility Guidelines 2.1.
    """
    channels = np.asarray(color)
    linear = np.where(channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ [0.2126, 0.7152, 0.0722])
    # Contrast with black is (L + 0.05) / 0.05, with white 1.05 / (L + 0.05).
    return "#000000" if (luminance + 0.05) ** 2 > 0.05 * 1.05 else "#ffffff"
