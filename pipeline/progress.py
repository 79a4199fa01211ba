"""How far a command has come: a bar on a terminal, otherwise one line of JSON every few seconds."""

import json
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

from pipeline.errors import printable
from pipeline.storage_errors import without_secrets

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

SECONDS_BETWEEN_LINES = 5.0

Field = str | int | float | bool | None


def say(sentence: str) -> None:
    """Prints one line to stderr, above a bar if there is one; what a URL holds of secrets is left out."""
    sys.stderr.write(f"{printable(without_secrets(sentence))}\n")
    sys.stderr.flush()


class Progress:
    """A context manager that shows units done, their rate, and the latest named values on stderr."""

    def __init__(self, total: int | None = None, unit: str = "clips") -> None:
        self._total = total
        self._unit = unit
        self._done = 0
        self._fields: dict[str, Field] = {}
        self._began = time.monotonic()
        self._last_line = self._began
        self._printed = -1
        self._bar: RichProgress | None = None

    def __enter__(self) -> "Progress":
        self._began = self._last_line = time.monotonic()
        self._bar = _bar_on_terminal()
        if self._bar is not None:
            self._task = self._bar.add_task(self._unit, total=self._total)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._done != self._printed:
            self._print_line()

    def advance(self, count: int = 1, **fields: Field) -> None:
        """Counts units as done and shows the named values beside them."""
        self.reach(self._done + count, **fields)

    def reach(self, done: int, **fields: Field) -> None:
        """Sets the number of units done, as a resumed training does."""
        self._done = done
        self._fields |= fields
        if self._bar is not None:
            shown = "  ".join(f"{name} {_short(value)}" for name, value in self._fields.items())
            self._bar.update(self._task, completed=done, description=f"{self._unit}  {shown}".rstrip())
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._print_line()

    def _print_line(self) -> None:
        seconds = time.monotonic() - self._began
        line = {"unit": self._unit, "done": self._done, "total": self._total, "seconds": round(seconds, 1)}
        say(json.dumps(line | self._fields))
        self._last_line = time.monotonic()
        self._printed = self._done


def _bar_on_terminal() -> "RichProgress | None":
    """A bar where stderr is a terminal. Imported here: whoever only says a sentence does not wait for rich."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    console = Console(stderr=True)
    if not console.is_terminal:
        return None
    return RichProgress(
        SpinnerColumn(),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )


def _short(value: Field) -> str:
    return f"{value:.4g}" if isinstance(value, float) else printable(str(value))
