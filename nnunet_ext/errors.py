"""The error whose message is meant for the person at the keyboard."""


def one_line(text: object) -> str:
    r"""`text` with line breaks and all else that does not print as \n, \x1b, \udcff: names of files may hold them."""
    words = str(text)
    if words.isprintable():
        return words
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)


class UserError(Exception):
    """Something the user can mend.

    The message is one line that names the file or value, what was expected and what to do. The command line
    prints it without a traceback and exits with status 1; library callers catch it like any exception.
    """

    def __init__(self, message: object = ""):
        super().__init__(one_line(message))


class UsageError(UserError):
    """An option whose value cannot work, whatever the files hold: the command line exits with status 2."""


class TrainingError(UserError, SystemExit):
    """A `UserError` raised inside nnU-Net's own commands, which catch nothing.

    Being a `SystemExit`, it ends `nnUNetv2_train` with its one line on stderr and status 1 instead of a traceback.
    """

    def __init__(self, message: str):
        super().__init__(message)
        self.code = f"nnunet_ext: {self}"


def reason_of(error: BaseException) -> str:
    """An exception as one line: a `UserError`'s words, anything else with its type before them."""
    text = " ".join(str(error).split())
    return one_line(text if isinstance(error, UserError) else f"{type(error).__name__}: {text}".removesuffix(": "))
