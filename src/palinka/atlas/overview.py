"""What the first page shows: metrics, and a few numbers and words of every latent."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from palinka.atlas.analyses import Found
from palinka.atlas.encoding import packed, short
from palinka.atlas.facts import LatentFacts
from palinka.callbacks.report import ROWS
from palinka.figures.display_tokens import display_tokens

# Words and tokens by which a latent is found.
_WORDS = 8
_TOKENS = 5
_LABEL_WORDS = 4


@dataclass(frozen=True)
class Column:
    """One number for each latent.

    Attributes:
        key: Its name in links and filters.
        label: Its heading.
        about: What it is, in a sentence.
        values: `(latents,)`; NaN where there is none.
        log: Whether it is drawn on a logarithmic axis.
    """

    key: str
    label: str
    about: str
    values: NDArray[np.floating[Any]]
    log: bool = False

    def described(self) -> dict[str, Any]:
        """As the page takes it."""
        return {
            "key": self.key,
            "label": self.label,
            "about": self.about,
            "log": self.log,
            "values": packed(self.values, "float32"),
        }


# What is known of the arrays that analyses write: a heading, a sentence, a logarithmic axis.
_FIELDS = {
    "score": ("score", "mean activation at the category's tokens over that at the others", False),
    "auc": ("AUC", "how well it detects the category's tokens; 0.5 is chance", False),
    "p_value": ("p", "corrected for the number of latents", True),
    "auc_p_value": ("p of AUC", "corrected for the number of latents", True),
    "p": ("p", "two-sided, each latent by itself", True),
    "p_adjusted": ("p adj.", "two-sided, corrected for the number of latents", True),
    "t": ("t", "statistic of the difference of the two conditions", False),
    "effect_size": ("g", "Hedges' g of the difference of the two conditions", False),
    "significant": ("sig.", "1 where the difference holds after correction", False),
}


def columns(facts: LatentFacts, analyses: Sequence[Found]) -> Iterator[Column]:
    """The columns of the table."""
    report = facts.report
    dead = report.density == 0
    yield Column("density", "density %", "share of tokens at which it is active", report.density,
                 log=True)  # fmt: skip
    activation = np.where(dead, np.nan, report.activation)
    yield Column("activation", "mean", "mean activation where it is active", activation, log=True)
    largest = np.where(report.top_activation[:, 0] > 0, report.top_activation[:, 0], np.nan)
    yield Column("max", "max", "largest activation", largest, log=True)
    if report.raised_by is not None and report.lowered_by is not None:
        about = "direct effect on the logit of the token that it {} most; no unit"
        yield Column("raises", "raises by", about.format("raises"), report.raised_by[:, 0])
        yield Column("lowers", "lowers by", about.format("lowers"), report.lowered_by[:, 0])
    if report.nearest_cosine.shape[1]:
        yield Column("nearest", "nearest", "cosine with the nearest other direction",
                     report.nearest_cosine[:, 0])  # fmt: skip
    for found in analyses:
        for name, values in found.columns.items():
            part, _, field = name.rpartition("/")
            label, about, log = _FIELDS.get(field, (field.replace("_", " "), field, False))
            of = " ".join(dict.fromkeys(word for word in (found.name, part) if word))
            yield Column(f"{found.name}/{name}", f"{of} {label}", f"{of}: {about}", values, log)


def labels(facts: LatentFacts) -> list[str]:
    """A few words for each latent."""
    return [" · ".join(word.text for word in words[:_LABEL_WORDS]) for words in facts.words]


def search_texts(facts: LatentFacts) -> list[str]:
    """What each latent is found by, besides its label: further words, and tokens it raises."""
    texts = shown_tokens(facts.vocabulary)
    raised = facts.report.raised
    return [
        " ".join(
            [
                *(word.text for word in words[_LABEL_WORDS:_WORDS]),
                *([] if raised is None else (texts[int(t)].strip() for t in raised[i, :_TOKENS])),
            ]
        )
        for i, words in enumerate(facts.words)
    ]


def shown_tokens(vocabulary: Mapping[int, bytes]) -> dict[int, str]:
    """Every token as it is shown by itself."""
    return {token: display_tokens([text])[0] for token, text in vocabulary.items()}


def metrics(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was measured, with intervals where there are some.

    Args:
        values: Numbers by name, such as `val/fvu` and `val_interval/fvu/low`.
    """
    found = []
    for name, label in ROWS.items():
        if name.startswith("val/") and name in values:
            low, high = (
                values.get(f"val_interval/{name.removeprefix('val/')}/{end}")
                for end in ("low", "high")
            )
            found.append(
                {
                    "label": label,
                    "value": short(float(values[name]), 5),
                    "low": None if low is None else short(float(low), 5),
                    "high": None if high is None else short(float(high), 5),
                }
            )
    return found
