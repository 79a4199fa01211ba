"""What an error says, as part of a sentence."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message without the full stop, or the error's type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
