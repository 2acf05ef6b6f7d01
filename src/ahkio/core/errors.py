"""The exceptions that are sentences: what a user can mend, and what happened to the processes of a run."""


class UserError(ValueError):
    """Something the user can mend. The message is one clear sentence: what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


class Lost(Exception):  # noqa: N818  what happened, not a kind of mistake
    """The processes of a run lost each other; the sentence says which and where. Another attempt may go well."""
