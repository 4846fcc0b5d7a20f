"""The one exception for input that palinka cannot work with."""


class InputError(ValueError):
    """What the user gave cannot be used.

    The message is one line that names what was given, what was expected and what to do.
    The command line prints it without a traceback and exits with status 2.
    """
