"""The one exception for input that palinka cannot work with."""

from palinka.printable import printable

# What is longer helps nobody: both ends are shown.
_LONGEST = 20_000


class InputError(ValueError):
    """What the user gave cannot be used.

    The message is one line that names what was given, what was expected and what to do. What
    was given may have been written by anyone, so whatever is not printable in it is escaped.
    The command line prints it without a traceback and exits with status 2.
    """

    def __init__(self, message: str) -> None:
        if len(message) > _LONGEST:
            message = f"{message[: _LONGEST // 2]} … {message[-_LONGEST // 2 :]}"
        super().__init__(printable(message))
