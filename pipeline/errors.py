"""Errors that a user can act on: one clear sentence, no traceback."""


class GwmError(Exception):
    """A sentence that says what is wrong and what to do; the command line prints it and exits with 1."""


class UnitError(Exception):
    """This unit cannot be done (a broken video, an unreadable image): it goes to quarantine and the job goes on."""

    attempts: int = 1
    """How often the unit was tried."""


def printable(text: str) -> str:
    r"""The text on one line: a name with a newline, an escape sequence or reversed writing forges no output.

    Such characters are written as `\n`, `\x1b`, `\u202e`.
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )
