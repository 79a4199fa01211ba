"""A command's progress where others can see it: progress.json beside its results, and Ray's metrics."""

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from threading import Thread
from types import TracebackType
from typing import Literal

from pipeline import storage
from pipeline.job_metrics import JobMetrics
from pipeline.progress import Field, Progress
from pipeline.summary import write_json
from pipeline.unit_totals import UnitTotals

PROGRESS_FILE = "progress.json"
SECONDS_BETWEEN_FILES = 10.0

State = Literal["running", "finished"]
"""A run that failed or was killed stays `running` and falls silent: what ended it may be the storage itself."""


def units_in_all(input_units: int, num_inputs: int, inputs_in_all: int) -> int:
    """About how many units all inputs have: as many each as those have that were planned so far."""
    return round(input_units * inputs_in_all / max(1, num_inputs))


class JobProgress(Progress):
    """Progress that is also written into the command's output every few seconds, for `gwm status`.

    Where the command has `totals`, they are what the metrics count. `inputs` lists what its units are made of: counted
    in the background, they say about how many units there are in all.
    """

    def __init__(
        self,
        command: str,
        output: str,
        *,
        unit: str,
        total: int | None = None,
        totals: UnitTotals | None = None,
        inputs: Callable[[], Iterable[object]] | None = None,
    ) -> None:
        super().__init__(total, unit)
        self._command = command
        self._url = storage.join(output, PROGRESS_FILE)
        self._totals = totals
        self._inputs = inputs
        self._num_inputs: int | None = None
        self._metrics = JobMetrics(command)

    def __enter__(self) -> "JobProgress":
        super().__enter__()
        if self._inputs is not None:
            Thread(target=self._count_inputs, args=[self._inputs], daemon=True).start()
        self._metrics.show(progress_total=self._total)
        self._write("running")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if kind is None:
            self._write("finished")

    def reach(self, done: int, **fields: Field) -> None:
        """Sets the number of units done, as a resumed training does."""
        if self._totals is not None and self._num_inputs is not None:
            self._total = max(
                done, units_in_all(self._totals.input_units, self._totals.num_inputs, self._num_inputs)
            )
        super().reach(done, **fields)
        loss = fields.get("loss")
        self._metrics.show(
            progress=done, progress_total=self._total, loss=loss if isinstance(loss, float) else None
        )
        if self._totals is not None:
            self._metrics.count(self._totals)
        if time.monotonic() - self._written >= SECONDS_BETWEEN_FILES:
            self._write("running")

    def _count_inputs(self, inputs: Callable[[], Iterable[object]]) -> None:
        """Where the listing fails here, the stages that do the work say so."""
        with suppress(Exception):
            self._num_inputs = sum(1 for _ in inputs())

    def _write(self, state: State) -> None:
        self._written = time.monotonic()
        values = {
            "command": self._command,
            "state": state,
            "unit": self._unit,
            "done": self._done,
            "total": self._total,
            "seconds": round(self._written - self._began, 3),
            "updated": round(time.time(), 3),
            **self._pace(),
        }
        totals = {} if self._totals is None else self._totals.progress()
        write_json(self._url, values | totals | {"shown": self._fields})
