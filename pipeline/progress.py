"""What a command says: results on stdout, talk on stderr, and how far it has come.

Progress is a bar on a terminal, otherwise (in a file, a pipe, a dumb terminal) one line of JSON every few seconds.
"""

import json
import os
import sys
import time
from collections import deque
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from pipeline.errors import printable
from pipeline.storage_errors import without_secrets

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

SECONDS_BETWEEN_LINES = 5.0
SECONDS_OF_RATE = 300.0
"""A rate is that of the last few minutes: what earlier runs had done passes faster, and is forgotten soon."""

Field = str | int | float | bool | None


def say(sentence: str) -> None:
    """Prints one line to stderr, above a bar if there is one; what a URL holds of secrets is left out."""
    _write(sys.stderr, f"{printable(without_secrets(sentence))}\n")


def print_result(text: str) -> None:
    """Writes a result to stdout, as it is."""
    _write(sys.stdout, text)


class Rate:
    """Units a second over the last few minutes."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def see(self, now_s: float, done: int) -> None:
        """Takes note of how many units are done at a time, and forgets what was long before.

        What passes within a second of the first look was done by an earlier run.
        """
        if len(self._seen) == 1 and now_s < self._seen[0][0] + 1.0:
            self._seen.clear()
        self._seen.append((now_s, done))
        while len(self._seen) > 2 and self._seen[0][0] < now_s - SECONDS_OF_RATE:
            self._seen.popleft()

    def per_s(self) -> float | None:
        """The rate; none before two looks at different times."""
        (began_s, first), (now_s, last) = (self._seen[0], self._seen[-1]) if self._seen else ((0, 0), (0, 0))
        return (last - first) / (now_s - began_s) if now_s > began_s else None

    def left_s(self, total: int | None) -> float | None:
        """Seconds until `total` are done at this rate; none where nobody can say."""
        rate = self.per_s()
        return max(0, total - self._seen[-1][1]) / rate if rate and total is not None else None


class Progress:
    """A context manager that shows units done, rate, time left, and the latest named values on stderr."""

    def __init__(self, total: int | None = None, unit: str = "clips") -> None:
        self._total = total
        self._unit = unit
        self._done = 0
        self._fields: dict[str, Field] = {}
        self._began = time.monotonic()
        self._last_line = self._began
        self._printed = -1
        self._rate = Rate()
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
        self._rate.see(time.monotonic(), done)
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=self._total, description=self._description())
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._print_line()

    def _pace(self) -> dict[str, Field]:
        """The rate and the seconds left, rounded for people."""
        rate, left = self._rate.per_s(), self._rate.left_s(self._total)
        return {
            "per_s": None if rate is None else round(rate, 3),
            "left_s": None if left is None else round(left, 1),
        }

    def _description(self) -> str:
        pace = self._pace()
        left = pace["left_s"]
        words = [
            self._unit,
            *([f"{_short(pace['per_s'])}/s"] if pace["per_s"] else []),
            *([f"{timedelta(seconds=round(left))} left"] if isinstance(left, float) else []),
            *(f"{name} {_short(value)}" for name, value in self._fields.items()),
        ]
        return "  ".join(words)

    def _print_line(self) -> None:
        seconds = time.monotonic() - self._began
        line = {"unit": self._unit, "done": self._done, "total": self._total, "seconds": round(seconds, 1)}
        say(json.dumps(line | self._pace() | self._fields))
        self._last_line = time.monotonic()
        self._printed = self._done


def _bar_on_terminal() -> "RichProgress | None":
    """A bar where stderr is a terminal that can move its cursor, which FORCE_COLOR makes of no pipe.

    Imported here: whoever only says a sentence does not wait for rich.
    """
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        return None
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    return RichProgress(
        SpinnerColumn(),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )


def _short(value: Field) -> str:
    return f"{value:.4g}" if isinstance(value, float) else printable(str(value))


def _write(stream: TextIO, text: str) -> None:
    """Writes at once. A reader that has seen enough (`| head`) ends neither the work nor its exit code."""
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
