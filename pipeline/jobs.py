"""Ray jobs of this project on a cluster: how they are named, found, followed, and what their end means.

A job's name is a pure function of what it computes and where it writes, and attempts are counted: NAME-1, NAME-2.
Ray takes each name once, so that of two submissions at once only one starts a job.
"""

import asyncio
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from gwm_model.errors import first_line
from pipeline.errors import GwmError
from pipeline.progress import print_result, say
from pipeline.storage_errors import without_secrets

PREFIX = "gwm-"
INTERRUPTED = 130
SECONDS_BEFORE_RECONNECT = 2.0
MAX_BREAKS = 3
"""Of the connection, after which an ended job's log is as it is."""


def job_client(address: str | None) -> JobSubmissionClient:
    """The job server of a cluster, at the address of its dashboard; GwmError where there is none."""
    if address is None or not address.startswith(("http://", "https://")):
        given = "is missing" if address is None else f"cannot be {address}"
        raise GwmError(
            f"--address {given}: it is the cluster's dashboard, for example http://127.0.0.1:8265."
        )
    # Ray lets this variable, and RAY_ADDRESS, win over the argument.
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    for handler in logging.getLogger("ray").handlers:
        handler.setLevel(logging.WARNING)  # it names every upload otherwise
    with explained(address):
        return JobSubmissionClient(address)


@contextmanager
def explained(address: str) -> Iterator[None]:
    """Turns what the job server's client raises into a sentence."""
    shown = without_secrets(address)
    try:
        yield
    except AuthenticationError as error:
        raise GwmError(
            f"The cluster at {shown} wants its token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or "
            "RAY_AUTH_TOKEN_PATH."
        ) from error
    except (ConnectionError, requests.RequestException) as error:
        raise GwmError(f"No Ray job server answers at {shown}.") from error
    except RuntimeError as error:
        raise GwmError(f"The Ray job server at {shown} refused: {first_line(error)}.") from error


def gwm_jobs(client: JobSubmissionClient) -> list[JobDetails]:
    """All jobs that `gwm submit` started on a cluster, oldest first."""
    jobs = [job for job in client.list_jobs() if (job.submission_id or "").startswith(PREFIX)]
    return sorted(jobs, key=lambda job: job.start_time or 0)


def attempts(client: JobSubmissionClient, name: str) -> dict[int, JobDetails]:
    """The jobs NAME-1, NAME-2, ... by number."""
    found = {}
    for job in gwm_jobs(client):
        base, _, number = (job.submission_id or "").rpartition("-")
        if base == name and number.isdigit():
            found[int(number)] = job
    return found


def follow(client: JobSubmissionClient, job_id: str) -> int:
    """Shows a job's log on stdout until it ends; returns the exit code of its command."""
    asyncio.run(_show_log(client, job_id))
    return exit_code(client.get_job_info(job_id))


def exit_code(job: JobDetails) -> int:
    """The exit code of an ended job's command: its own, 130 where the job was stopped, 1 where it never ran."""
    if job.status == JobStatus.STOPPED:
        say(f"gwm: {job.submission_id} was stopped; the same command goes on where it was.")
        return INTERRUPTED
    if job.driver_exit_code is None or job.driver_exit_code < 0:
        reason = (job.message or "no reason is known").strip().splitlines()[0].rstrip(".")
        say(f"gwm: {job.submission_id} did not come to an end of its own: {reason}.")
        return 1
    return int(job.driver_exit_code)


def runtime_s(job: JobDetails) -> float:
    """How long a job runs, or ran."""
    end_ms = job.end_time or time.time() * 1000
    return max(0.0, (end_ms - (job.start_time or end_ms)) / 1000)


async def _show_log(client: JobSubmissionClient, job_id: str) -> None:
    """Ray sends the log from its beginning; where the connection breaks, the part already shown is left out."""
    shown = failures = 0
    while True:
        position, is_whole = 0, True
        try:
            async for text in client.tail_job_logs(job_id):
                print_result(text[max(0, shown - position) :])
                position += len(text)
                shown = max(shown, position)
        except (RuntimeError, aiohttp.ClientError):
            is_whole = False
            failures += 1
        # Where the cluster is gone, this raises; where only the log's machine is, there is no more of it.
        is_over = client.get_job_status(job_id).is_terminal()
        if is_over and (is_whole or failures > MAX_BREAKS):
            return
        await asyncio.sleep(SECONDS_BEFORE_RECONNECT)
