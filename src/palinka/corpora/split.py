"""Which documents are for training, and which for validation."""

import hashlib
from typing import Literal, TypeAlias, get_args

from palinka.errors import InputError

Split: TypeAlias = Literal["train", "validation"]
SPLITS: tuple[str, ...] = get_args(Split)


def documents_per_group(validation_fraction: float) -> int:
    """One document in so many is for validation; 0 if none is.

    Raises:
        InputError: If the fraction is not between 0 and one half.
    """
    if not 0 <= validation_fraction <= 0.5:
        raise InputError(
            f"validation_fraction is {validation_fraction}; expected 0 (no validation) to 0.5"
        )
    return round(1 / validation_fraction) if validation_fraction else 0


def split_of(document: int, validation_fraction: float, seed: int) -> Split:
    """The split that a document belongs to, whatever else is in the corpus.

    Of each consecutive group of `round(1 / validation_fraction)` documents exactly one, drawn
    with the seed, is for validation: stratified, so that a short corpus gets its share too.

    Args:
        document: Index of the document in the corpus.
        validation_fraction: Share of documents for validation; 0 for none.
        seed: Another seed, other documents.

    Raises:
        InputError: If the fraction is not between 0 and one half.
    """
    size = documents_per_group(validation_fraction)
    if size == 0:
        return "train"
    group, place = divmod(document, size)
    # A hash, since random number generators may change with the version of their library.
    digest = hashlib.blake2b(f"{seed}:{group}".encode(), digest_size=8).digest()
    return "validation" if int.from_bytes(digest) % size == place else "train"
