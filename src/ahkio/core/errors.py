"""The one exception that a user is meant to read."""


class UserError(ValueError):
    """Something the user can mend. The message is one clear sentence: what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with code 2.
    """
