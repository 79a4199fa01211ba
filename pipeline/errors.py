"""Errors that a user can act on: one clear sentence, no traceback."""


class GwmError(Exception):
    """A sentence that says what is wrong and what to do; the command line prints it and exits with 1."""


class UnitError(Exception):
    """This unit cannot be done (a broken video, an unreadable image): it goes to quarantine and the job goes on."""
