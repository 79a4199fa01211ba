"""One MLflow run: found again on resume, written in batches; raises what MLflow raises."""

import io
import json
import logging
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import PIL.Image

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
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_UV_AUTO_DETECT": "false",  # a model holds no file of the folder that the command ran in
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
    is_score: bool = False
    """Says how good the run's model is, and not how the run went."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetUse:
    """A dataset of shards that a run reads or writes; its content names it, wherever it lies."""

    url: str
    digest: str
    num_shards: int
    num_rows: int
    context: str
    """What it is to the run: training, evaluation, or output."""


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
        self._uri = description.uri
        self._model_id: str | None = None
        self._monitor: Any = None
        self.client = import_mlflow().MlflowClient(tracking_uri=description.uri)
        self.run_id = run_id or self._attach(description)

    def log_metrics(self, values: Sequence[MetricValue]) -> None:
        """Sends values, a thousand in one request."""
        from mlflow.entities import Metric

        metrics = [
            Metric(
                re.sub(r"[^\w\-. /]", "_", value.name),
                value.value,
                value.timestamp_ms,
                value.step,
                model_id=self._model_id if value.is_score else None,
            )
            for value in values
            if value.step > self._logged_step
        ]
        for start in range(0, len(metrics), METRICS_IN_BATCH):
            self.client.log_batch(self.run_id, metrics=metrics[start : start + METRICS_IN_BATCH])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Sets or replaces tags."""
        for name, value in tags.items():
            self.client.set_tag(self.run_id, name, without_secrets(value)[:LONGEST_TAG])

    def log_bytes(self, name: str, data: bytes) -> None:
        """Stores an artifact under a relative path."""
        path = PurePosixPath(name)
        folder = str(path.parent) if path.parent.name else None
        with tempfile.TemporaryDirectory(prefix="gwm-") as temporary:
            file = Path(temporary) / path.name
            file.write_bytes(data)
            self.client.log_artifact(self.run_id, str(file), folder)

    def log_picture(self, name: str, encoded: bytes, step: int) -> None:
        """Stores a picture among those of other steps; the run's page shows them by step."""
        with PIL.Image.open(io.BytesIO(encoded)) as picture:
            self.client.log_image(self.run_id, picture, key=name, step=step)

    def log_dataset(self, use: DatasetUse) -> None:
        """Names a dataset of shards as one that this run reads or writes."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        url = without_secrets(use.url)
        dataset = Dataset(
            name=PurePosixPath(url).name,
            digest=use.digest,
            source_type=url.rpartition("://")[0] or "local",
            source=json.dumps({"uri": url}),
            profile=json.dumps({"num_shards": use.num_shards, "num_rows": use.num_rows}),
        )
        context = InputTag("mlflow.data.context", use.context)
        self.client.log_inputs(self.run_id, datasets=[DatasetInput(dataset, tags=[context])])

    def use_model(self, model_id: str) -> None:
        """Names a logged model as one that this run uses; scores from now on are the model's too."""
        from mlflow.entities import LoggedModelInput

        self._model_id = model_id
        self.client.log_inputs(self.run_id, models=[LoggedModelInput(model_id)])

    def watch_machine(self) -> None:
        """Logs every ten seconds, until the run ends, how busy this machine is, as metrics `system/…`."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._monitor = SystemMetricsMonitor(self.run_id, resume_logging=True, tracking_uri=self._uri)
        self._monitor.start()

    def end(self, status: str) -> None:
        """Marks the run FINISHED, FAILED or KILLED."""
        if self._monitor is not None:
            self._monitor.finish()
        self.client.set_terminated(self.run_id, status)

    def _attach(self, description: RunDescription) -> str:
        experiment_id = self._experiment(description)
        run = self._find(experiment_id, description)
        if run is None:
            name = f"{description.command} {PurePosixPath(description.output).name}"
            run = self.client.create_run(experiment_id, tags=_tags(description), run_name=name)
        else:
            self.client.update_run(run.info.run_id, status="RUNNING")
            self._logged_step = int(run.data.metrics.get("step", -1))
        # Parameters never change in MLflow; a resumed run keeps the first ones.
        known = run.data.params
        self._log_params(
            run.info.run_id, {key: value for key, value in description.params.items() if key not in known}
        )
        return str(run.info.run_id)

    def _experiment(self, description: RunDescription) -> str:
        found = self.client.get_experiment_by_name(description.experiment)
        if found is None:
            try:
                return str(
                    self.client.create_experiment(
                        description.experiment, artifact_location=description.artifacts
                    )
                )
            except Exception:
                # Another command created it at the same moment.
                found = self.client.get_experiment_by_name(description.experiment)
                if found is None:
                    raise
        return str(found.experiment_id)

    def _find(self, experiment_id: str, description: RunDescription) -> Any:
        wanted = _tags(description)
        runs = self.client.search_runs(
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
            self.client.log_batch(run_id, params=params[start : start + PARAMS_IN_BATCH])
        if any(len(value) > LONGEST_PARAM for value in values.values()):
            self.client.log_text(run_id, json.dumps(values, indent=1, sort_keys=True), "params.json")


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
