"""One MLflow run: found again on resume, written in batches; raises what MLflow raises."""

import json
import logging
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.storage_errors import without_secrets

LONGEST_PARAM = 6000
LONGEST_TAG = 5000
METRICS_IN_BATCH = 1000
PARAMS_IN_BATCH = 100

# A request is short and hardly repeated: the sender thread repeats, and counts what is lost. Nothing but the
# run's own data leaves the machine.
CLIENT_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDescription:
    """What a run is called, and by which tags it is found again."""

    uri: str
    artifacts: str | None
    """Where artifacts go; None leaves it to the server."""
    experiment: str
    command: str
    output: str
    fingerprint: str
    version: str
    params: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricValue:
    """One value of one metric at one moment."""

    name: str
    value: float
    step: int
    timestamp_ms: int


def import_mlflow() -> Any:
    """The module, set up; the import takes seconds, so it happens only in commands that track."""
    for name, value in CLIENT_SETTINGS.items():
        os.environ.setdefault(name, value)
    import mlflow

    for logger in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    return mlflow


class MlflowRun:
    """An open run; `run_id` attaches to a known one, otherwise it is found by its tags or created.

    A run that has a metric `step` was logged up to there: a resumed training repeats some steps, and MLflow keeps
    every value that it is given.
    """

    def __init__(self, description: RunDescription, run_id: str | None = None) -> None:
        self._logged_step = -1
        self._client = import_mlflow().MlflowClient(tracking_uri=description.uri)
        self.run_id = run_id or self._attach(description)

    def log_metrics(self, values: Sequence[MetricValue]) -> None:
        """Sends values, a thousand in one request."""
        from mlflow.entities import Metric

        metrics = [
            Metric(re.sub(r"[^\w\-. /]", "_", value.name), value.value, value.timestamp_ms, value.step)
            for value in values
            if value.step > self._logged_step
        ]
        for start in range(0, len(metrics), METRICS_IN_BATCH):
            self._client.log_batch(self.run_id, metrics=metrics[start : start + METRICS_IN_BATCH])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Sets or replaces tags."""
        for name, value in tags.items():
            self._client.set_tag(self.run_id, name, without_secrets(value)[:LONGEST_TAG])

    def log_bytes(self, name: str, data: bytes) -> None:
        """Stores an artifact under a relative path."""
        path = PurePosixPath(name)
        folder = str(path.parent) if path.parent.name else None
        with tempfile.TemporaryDirectory(prefix="gwm-") as temporary:
            file = Path(temporary) / path.name
            file.write_bytes(data)
            self._client.log_artifact(self.run_id, str(file), folder)

    def end(self, status: str) -> None:
        """Marks the run FINISHED, FAILED or KILLED."""
        self._client.set_terminated(self.run_id, status)

    def _attach(self, description: RunDescription) -> str:
        experiment_id = self._experiment(description)
        run = self._find(experiment_id, description)
        if run is None:
            name = f"{description.command} {PurePosixPath(description.output).name}"
            run = self._client.create_run(experiment_id, tags=_tags(description), run_name=name)
        else:
            self._client.update_run(run.info.run_id, status="RUNNING")
            self._logged_step = int(run.data.metrics.get("step", -1))
        # Parameters never change in MLflow; a resumed run keeps the first ones.
        known = run.data.params
        self._log_params(
            run.info.run_id, {key: value for key, value in description.params.items() if key not in known}
        )
        return str(run.info.run_id)

    def _experiment(self, description: RunDescription) -> str:
        found = self._client.get_experiment_by_name(description.experiment)
        if found is None:
            try:
                return str(
                    self._client.create_experiment(
                        description.experiment, artifact_location=description.artifacts
                    )
                )
            except Exception:
                # Another command created it at the same moment.
                found = self._client.get_experiment_by_name(description.experiment)
                if found is None:
                    raise
        return str(found.experiment_id)

    def _find(self, experiment_id: str, description: RunDescription) -> Any:
        wanted = _tags(description)
        runs = self._client.search_runs(
            [experiment_id],
            filter_string=f"tags.`gwm.fingerprint` = '{description.fingerprint}'",
            order_by=["attributes.start_time DESC"],
            max_results=100,
        )
        keys = ("gwm.output", "gwm.command")
        return next((run for run in runs if all(run.data.tags.get(key) == wanted[key] for key in keys)), None)

    def _log_params(self, run_id: str, values: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        params = [Param(key, value[:LONGEST_PARAM]) for key, value in values.items()]
        for start in range(0, len(params), PARAMS_IN_BATCH):
            self._client.log_batch(run_id, params=params[start : start + PARAMS_IN_BATCH])
        if any(len(value) > LONGEST_PARAM for value in values.values()):
            self._client.log_text(run_id, json.dumps(values, indent=1, sort_keys=True), "params.json")


def is_refusal(error: BaseException) -> bool:
    """Whether the server refused a request, so that repeating it is useless."""
    status = getattr(error, "get_http_status_code", None)
    return callable(status) and 400 <= int(status()) < 500 and int(status()) != 429


def _tags(description: RunDescription) -> dict[str, str]:
    return {
        "gwm.fingerprint": description.fingerprint,
        "gwm.output": description.output[:LONGEST_TAG],
        "gwm.command": description.command,
        "gwm.version": description.version,
    }
