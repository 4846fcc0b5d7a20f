"""Text of others, so written that a terminal shows it and does nothing else."""

import unicodedata


def printable(text: str) -> str:
    r"""Write what a terminal would obey, or what nobody can see, as escapes such as `\x1b`.

    Line breaks, control characters, marks that turn the direction of text and halves of
    characters are escaped; letters, marks and spaces of every script stay.

    Args:
        text: Any text.

    Returns:
        One line.
    """
    if text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable() or unicodedata.category(character) == "Zs"
        else character.encode("unicode_escape").decode()
        for character in text
    )
