"""A unit that failed travels on as a row, so that the write stage can put it into quarantine."""

import json
import traceback

from pipeline.errors import UnitError, printable
from pipeline.records import Row


def failure_of(stage: str, error: Exception) -> str:
    """Return the JSON {stage, reason, traceback, attempts} that a failed row carries under `failure`.

    The reason is one line; of a library's error it is the first.
    """
    reason = str(error) if isinstance(error, UnitError) else str(error).strip().partition("\n")[0]
    lines = traceback.format_exception(error)
    failure = {
        "stage": stage,
        "reason": printable(reason or type(error).__name__),
        "traceback": "".join(lines),
        "attempts": getattr(error, "attempts", 1),
    }
    return json.dumps(failure)


def failed_row(row: Row, stage: str, error: Exception) -> Row:
    """Return the row without its frames, carrying the failure."""
    return {
        "unit": row["unit"],
        "source": row["source"],
        "status": "failed",
        "failure": failure_of(stage, error),
    }
