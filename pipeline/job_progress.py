"""A command's progress where others can see it: progress.json beside its results, and Ray's metrics."""

import time
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


class JobProgress(Progress):
    """Progress that is also written into the command's output every few seconds, for `gwm status`.

    Where the command has `totals`, they are what the metrics count.
    """

    def __init__(
        self,
        command: str,
        output: str,
        *,
        unit: str,
        total: int | None = None,
        totals: UnitTotals | None = None,
    ) -> None:
        super().__init__(total, unit)
        self._command = command
        self._url = storage.join(output, PROGRESS_FILE)
        self._totals = totals
        self._metrics = JobMetrics(command)

    def __enter__(self) -> "JobProgress":
        super().__enter__()
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
        super().reach(done, **fields)
        loss = fields.get("loss")
        self._metrics.show(progress=done, loss=loss if isinstance(loss, float) else None)
        if self._totals is not None:
            self._metrics.count(self._totals)
        if time.monotonic() - self._written >= SECONDS_BETWEEN_FILES:
            self._write("running")

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
        }
        totals = {} if self._totals is None else self._totals.progress()
        write_json(self._url, values | totals | {"shown": self._fields})
