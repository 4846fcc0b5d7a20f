"""What is checked of every kind of stimuli."""

from collections.abc import Mapping, Sequence

from palinka.errors import InputError

MINIMUM_ITEMS = 3
_SHOWN = 8


def check_counts(conditions: Mapping[str, Sequence[str]], key: str, item: str) -> None:
    """See to it that there are conditions, each with items enough for a statistic.

    Args:
        conditions: Items by the name of their condition.
        key: What the file calls the conditions.
        item: What an item is called.

    Raises:
        InputError: If there is no condition, or one has fewer than three items.
    """
    if not conditions:
        raise InputError(f"{key}: empty; name at least one, with its {item}s")
    for name, items in conditions.items():
        if len(items) < MINIMUM_ITEMS:
            raise InputError(
                f"{key}.{name}: {len(items)} {item}{'s' * (len(items) != 1)}; a condition needs "
                f"at least {MINIMUM_ITEMS}"
            )


def check_words(conditions: Mapping[str, Sequence[str]], key: str) -> None:
    """See to it that there are conditions, with enough words in each.

    Raises:
        InputError: As `check_counts` and `check_trimmed` do.
    """
    check_counts(conditions, key, "word")
    for name, words in conditions.items():
        check_trimmed(words, f"{key}.{name}")


def check_trimmed(texts: Sequence[str], key: str) -> None:
    """See to it that texts are not blank and have no white space around them.

    Raises:
        InputError: Naming the first that is not so.
    """
    for index, text in enumerate(texts):
        if not text or text != text.strip():
            raise InputError(f"{key}[{index}]: {text!r}; give text without white space around it")


def listed(problems: Sequence[str]) -> str:
    """All problems in one line, or the first of them and how many more there are."""
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return "; ".join(problems[:_SHOWN]) + more
