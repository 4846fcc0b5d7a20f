"""Text of others, so written that a terminal shows it and does nothing else."""

import unicodedata

# Zero-width non-joiner and joiner, which Persian words and families of emoji hold.
_JOINERS = "\u200c\u200d"


def printable(text: str) -> str:
    r"""Write what a terminal would obey, or what nobody can see, as escapes such as `\x1b`.

    Line breaks, control characters, marks that turn the direction of text and halves of
    characters are escaped; letters, accents and spaces of every script stay, and so do joiners
    within a word or an emoji.

    Args:
        text: Any text.

    Returns:
        One line.
    """
    if text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable()
        or unicodedata.category(character) == "Zs"
        or (character in _JOINERS and _within_word(text, place))
        else character.encode("unicode_escape").decode()
        for place, character in enumerate(text)
    )


def _within_word(text: str, place: int) -> bool:
    """Whether letters or signs beyond ASCII stand on both sides."""
    around = text[max(0, place - 1) : place] + text[place + 1 : place + 2]
    return len(around) == 2 and not around[0].isascii() and around[1:].isprintable()
