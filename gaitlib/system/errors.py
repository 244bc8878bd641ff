"""The one kind of error that a user can fix."""


class UserError(ValueError):
    """Something a user gave is wrong; the message holds the value and the fix.

    The command line prints it in one line. Every other exception is a bug and keeps its traceback.
    """
