"""The error whose message is meant for the person at the keyboard."""


class UserError(Exception):
    """Something the user can mend.

    The message is one line that names the file or value, what was expected and what to do. The command line
    prints it without a traceback and exits with status 1; library callers catch it like any exception.
    """
