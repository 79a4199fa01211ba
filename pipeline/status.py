"""gwm status: how far outputs are, and the jobs of a cluster."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline import storage
from pipeline.dataset import Dataset
from pipeline.errors import GwmError, printable
from pipeline.inputs import find_videos
from pipeline.job_progress import PROGRESS_FILE, SECONDS_BETWEEN_FILES, units_in_all
from pipeline.progress import print_result
from pipeline.stages.plan_chunks import inputs_of
from pipeline.storage_errors import without_secrets

SILENT_AFTER_S = 6 * SECONDS_BETWEEN_FILES
"""A running command writes more often, unless one unit takes longer."""

Line = dict[str, Any]


def show_jobs(address: str | None) -> None:
    """Shows the jobs that `gwm submit` started on a cluster, oldest first."""
    from pipeline.jobs import explained, gwm_jobs, job_client, runtime_s

    client = job_client(address)
    with explained(str(address)):
        jobs = gwm_jobs(client)
    lines = []
    for job in jobs:
        said = job.metadata or {}
        started = datetime.fromtimestamp((job.start_time or 0) / 1000, UTC)
        lines.append(
            {
                "id": job.submission_id,
                "command": said.get("command", ""),
                "status": job.status.value.lower(),
                "exit_code": job.driver_exit_code,
                "output": said.get("output", ""),
                "started": started.isoformat(timespec="seconds"),
                "runtime_s": round(runtime_s(job), 1),
            }
        )
    _show("jobs", lines)


def show_outputs(urls: Sequence[str]) -> None:
    """Shows how far each output is: units by outcome, the rate of the latest run, and the time that is left."""
    _show("outputs", [output_status(url) for url in urls])


def output_status(url: str) -> Line:
    """How far one output is; GwmError where no command has begun to write it."""
    url = storage.absolute(url)
    place = storage.join(url, PROGRESS_FILE)
    if not storage.exists(place):
        raise GwmError(f"{without_secrets(url)} has no {PROGRESS_FILE}: no command has begun there.")
    try:
        progress = json.loads(storage.read_bytes(place))
        line = {"output": without_secrets(url), "command": progress["command"], "state": _state(progress)}
        return line | _counts(url, progress)
    except (ValueError, KeyError, TypeError) as error:
        raise GwmError(f"{without_secrets(place)} is damaged.") from error


def _counts(url: str, progress: Mapping[str, Any]) -> Line:
    done, total = progress["done"], progress["total"]
    new, quarantined = done, 0
    if "units_done" in progress:
        new, quarantined = progress["units_done"], progress["units_quarantined"]
        total = done if progress["state"] == "finished" else _units_in_all(url, progress)
    seconds = progress["seconds"]
    rate = new / seconds if seconds > 0 else 0.0
    left = None if total is None or rate == 0 else max(0, total - done) / rate
    return {
        "unit": progress["unit"],
        "done": done - quarantined,
        "quarantined": quarantined,
        "total": total,
        "per_s": round(rate, 3),
        "left_s": 0.0 if progress["state"] == "finished" else left and round(left, 1),
    }


def _units_in_all(url: str, progress: Mapping[str, Any]) -> int | None:
    """About how many units the inputs have: as many each as those have that were planned so far."""
    if not progress["inputs"]:
        return None
    config = Dataset(url=url).description()["config"]
    try:
        if progress["command"] == "prepare":
            inputs = sum(1 for _ in find_videos(config["videos"]))
        else:
            inputs = sum(1 for _ in inputs_of(config["images"], int(config["chunk_images"])))
    except GwmError:
        return None
    return max(int(progress["done"]), units_in_all(progress["input_units"], progress["inputs"], inputs))


def _state(progress: Mapping[str, Any]) -> str:
    silence_s = time.time() - progress["updated"]
    if progress["state"] == "running" and silence_s > SILENT_AFTER_S:
        return f"silent for {silence_s:.0f} s"
    return str(progress["state"])


def _show(title: str, lines: Sequence[Line]) -> None:
    """A table on a terminal, otherwise one line of JSON for each."""
    if not sys.stdout.isatty():
        for line in lines:
            print_result(json.dumps(line) + "\n")
        return
    table = Table(*(lines[0] if lines else ["none"]), title=title, title_justify="left")
    for line in lines:
        table.add_row(*("" if value is None else escape(printable(str(value))) for value in line.values()))
    Console().print(table)
