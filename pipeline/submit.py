"""gwm submit: a command as a Ray job, with the code that is here and the values that it would have here."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from ray.job_submission import JobSubmissionClient

import gwm_model
import pipeline
from pipeline import storage
from pipeline.config import EvaluateConfig, PrepareConfig, SegmentConfig, TrainConfig
from pipeline.errors import GwmError
from pipeline.jobs import PREFIX, attempts, explained, follow, job_client
from pipeline.load_config import digest, fingerprint, load_config
from pipeline.progress import print_result, say
from pipeline.registered_model import is_registered
from pipeline.storage_errors import without_secrets
from pipeline.summary import version

COMMANDS: dict[str, type[Any]] = {
    "prepare": PrepareConfig,
    "train": TrainConfig,
    "segment": SegmentConfig,
    "evaluate": EvaluateConfig,
}
PLACES = ("videos", "flow", "images", "model", "initial_model", "masks", "data", "output")
"""Values that name files; each command has some of them."""
DRIVER_BYTES = 2**30
"""Memory reserved for a job's own process, wherever the cluster has it: jobs beyond the head's memory run elsewhere.

It reserves no CPU, for it mostly waits: the pools of workers count on all of them.
"""
SECONDS_TO_STOP = 30
"""Ray's own 3 are too few for a command that stops in order."""


def submit(
    command: str,
    path: str | None,
    words: Sequence[str],
    *,
    address: str | None,
    env: Sequence[str] = (),
    wait: bool = False,
) -> int:
    """Starts a command's job, or finds the one that does the same already; returns its exit code with `wait`, or 0.

    `env` names variables of this process that the job gets too.
    """
    if command not in COMMANDS:
        raise GwmError(f"'{command}' cannot be submitted: choose {', '.join(COMMANDS)}.")
    config = load_config(COMMANDS[command], path, words)
    _refuse_relative_places(config)
    variables = _variables(env)
    client = job_client(address)
    with explained(str(address)):
        job_id = _start(client, command, config, variables)
        say(f"gwm: {job_id} at {address}: gwm status shows it, ray job stop {job_id} ends it.")
        if wait:
            return follow(client, job_id)
    print_result(f"{job_id}\n")
    return 0


def job_name(command: str, config: Any) -> str:
    """Equal for submissions that compute the same into the same output."""
    values = {"output": storage.absolute(config.output), "fingerprint": fingerprint(config)}
    return f"{PREFIX}{command}-{digest(values)[:12]}"


def _start(client: JobSubmissionClient, command: str, config: Any, variables: dict[str, str]) -> str:
    """The submission id of the job that runs, or of a new one where none does."""
    name = job_name(command, config)
    earlier = attempts(client, name)
    last = max(earlier, default=0)
    if earlier and not earlier[last].status.is_terminal():
        say("gwm: submitted already.")
        return f"{name}-{last}"
    job_id = f"{name}-{last + 1}"
    try:
        _send(client, job_id, command, config, variables)
    except RuntimeError as error:
        if "already exists" not in str(error):  # somebody else was quicker with the same
            raise
    return job_id


def _send(
    client: JobSubmissionClient, job_id: str, command: str, config: Any, variables: dict[str, str]
) -> None:
    """Uploads the two packages and one file of values, and starts the command on them."""
    with tempfile.TemporaryDirectory(prefix="gwm-submit-") as folder:
        values = OmegaConf.to_yaml(OmegaConf.structured(config))
        Path(folder, f"{command}.yaml").write_text(values)
        client.submit_job(
            submission_id=job_id,
            entrypoint=f"exec python -m pipeline {command} --config {command}.yaml",
            entrypoint_memory=DRIVER_BYTES,
            runtime_env={
                "working_dir": folder,
                "py_modules": [str(Path(package.__path__[0])) for package in (gwm_model, pipeline)],
                "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(SECONDS_TO_STOP)} | variables,
            },
            metadata={
                "command": command,
                "output": without_secrets(config.output),
                "version": version(),
            },
        )


def _refuse_relative_places(config: Any) -> None:
    for name in PLACES:
        value = getattr(config, name, None)
        if is_registered(value):
            continue
        if value and storage.is_local(value) and not Path(value.removeprefix("file://")).is_absolute():
            raise GwmError(
                f"{name}={value} is a path on this machine: a cluster needs a URL, or an absolute path that all of "
                "its machines share."
            )


def _variables(names: Sequence[str]) -> dict[str, str]:
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise GwmError(f"--env {missing[0]}: there is no such variable in the environment.")
    if names:
        say(f"gwm: whoever may use the cluster can read the values of {', '.join(names)} there.")
    return {name: os.environ[name] for name in names}
