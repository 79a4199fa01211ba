"""A unit that failed travels on as a row, so that the write stage can put it into quarantine."""

import json
import traceback

from pipeline.records import Row


def failure_of(stage: str, error: Exception) -> str:
    """Return the JSON {stage, reason, traceback} that a failed row carries under `failure`."""
    reason = str(error) or type(error).__name__
    lines = traceback.format_exception(error)
    return json.dumps({"stage": stage, "reason": reason, "traceback": "".join(lines)})


def failed_row(row: Row, stage: str, error: Exception) -> Row:
    """Return the row without its frames, carrying the failure."""
    return {
        "unit": row["unit"],
        "source": row["source"],
        "status": "failed",
        "failure": failure_of(stage, error),
    }
