"""The one exception for what a user can mend."""


class InputError(ValueError):
    """Bad input: one line that says what is wrong, in which file, row or flag, and what to do.

    The scripts print it and exit with code 2, without a traceback.
    """
