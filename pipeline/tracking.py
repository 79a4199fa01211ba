"""MLflow, at best effort: a queue and one thread, so that an outage neither stops nor slows a job."""

import os
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from pipeline import storage
from pipeline.config import TrackingConfig
from pipeline.load_config import flatten
from pipeline.manifest import ShardEntry, content_digest
from pipeline.mlflow_models import FOLDER, SegmenterFiles, find_logged_model, log_segmenter
from pipeline.mlflow_run import (
    METRICS_IN_BATCH,
    DatasetUse,
    MetricValue,
    MlflowRun,
    RunDescription,
    import_mlflow,
    is_refusal,
)
from pipeline.progress import say
from pipeline.registered_model import copy_segmenter
from pipeline.storage_errors import without_secrets
from pipeline.summary import version

Status = Literal["FINISHED", "FAILED", "KILLED"]

LONGEST_QUEUE = 10_000
ATTEMPTS = 3
SECONDS_BEFORE_RETRY = 1.0
SECONDS_BETWEEN_BATCHES = 1.0
FINISH_TIMEOUT_S = 30.0
MODEL_TIMEOUT_S = 600.0
"""A segmenter is some hundred megabytes, and is worth waiting for."""


@dataclass(frozen=True, slots=True)
class _Artifact:
    name: str
    data: bytes


@dataclass(frozen=True, slots=True)
class _Tags:
    values: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Picture:
    name: str
    data: bytes
    step: int


@dataclass(frozen=True, slots=True)
class _Model:
    """A segmenter that this run uses, or with `url`, one that it trained."""

    sha256: str
    url: str | None = None
    step: int = 0


@dataclass(frozen=True, slots=True)
class _Flush:
    reached: threading.Event
    status: Status | None = None


_Entry = MetricValue | DatasetUse | _Artifact | _Tags | _Picture | _Model | _Flush


class Tracker:
    """One run of one command.

    What cannot be delivered after a few attempts is dropped and counted. A copy that was pickled into another
    process logs to the same run through its own thread.
    """

    def __init__(self, description: RunDescription | None, run_id: str | None = None) -> None:
        self._description = description
        self._run_id = run_id
        self._queue: queue.Queue[_Entry] = queue.Queue(LONGEST_QUEUE)
        self._thread: threading.Thread | None = None
        self._attached = threading.Event()
        self._run: MlflowRun | None = None
        self._dropped = 0
        self._is_out = False
        self._registered_model: str | None = None
        self._watches_machine = False

    @staticmethod
    def start(
        config: TrackingConfig, *, command: str, output: str, run_config: object, fingerprint: str
    ) -> "Tracker":
        """A tracker on the run with this fingerprint and output, new or resumed.

        The run is opened in the background. Without an address, runs with a local output are kept in
        `<output>/mlflow.db`; with an output in a bucket nothing is tracked, and one sentence says so. With `none`
        for an address nothing is tracked, and MLflow is not even imported.
        """
        output = without_secrets(storage.absolute(output))
        uri = config.uri or os.environ.get("MLFLOW_TRACKING_URI")
        artifacts = None
        if uri == "none":
            return Tracker(None)
        if not uri:
            if not storage.is_local(output):
                say("gwm: not tracked: output is not on this machine; tracking.uri= names an MLflow server.")
                return Tracker(None)
            os.makedirs(output, exist_ok=True)  # noqa: PTH103
            uri, artifacts = f"sqlite:///{output}/mlflow.db", f"file://{output}/mlflow_artifacts"
        tracker = Tracker(
            RunDescription(
                uri=uri,
                artifacts=artifacts,
                experiment=config.experiment,
                command=command,
                output=output,
                fingerprint=fingerprint,
                version=version(),
                params={key: without_secrets(str(value)) for key, value in flatten(run_config).items()},
            )
        )
        try:
            import_mlflow()  # here, because two threads must not import at the same time
        except Exception as error:
            say(f"gwm: not tracked: MLflow cannot be imported ({type(error).__name__}: {error}).")
            return Tracker(None)
        tracker._registered_model, tracker._watches_machine = config.registered_model, config.system_metrics
        tracker._begin()
        return tracker

    def log_metrics(
        self, metrics: Mapping[str, float], step: int | None = None, *, are_scores: bool = False
    ) -> None:
        """Records values at a step; scores are also the model's that the run uses."""
        now_ms = int(time.time() * 1000)
        for name, value in metrics.items():
            self._put(
                MetricValue(
                    name=name, value=float(value), step=step or 0, timestamp_ms=now_ms, is_score=are_scores
                )
            )

    def log_bytes(self, name: str, data: bytes) -> None:
        """Stores a small file, such as a picture, under a relative path."""
        self._put(_Artifact(name, data))

    def log_picture(self, name: str, encoded: bytes, step: int) -> None:
        """Stores a picture of what the run makes at a step."""
        self._put(_Picture(name, encoded, step))

    def log_dataset(self, url: str, shards: Collection[ShardEntry], *, context: str) -> None:
        """Names a dataset of shards that the run reads or writes: its content links the runs that share it."""
        if self._description is None:
            return
        rows = sum(shard.num_rows for shard in shards)
        content = {"digest": content_digest(shards), "num_shards": len(shards), "num_rows": rows}
        self._put(DatasetUse(url=storage.absolute(url), context=context, **content))  # type: ignore[arg-type]

    def use_model(self, sha256: str) -> None:
        """Names the segmenter with this content as one that the run uses, if it was logged."""
        self._put(_Model(sha256))

    def log_segmenter(self, url: str, sha256: str, step: int) -> None:
        """Stores the trained segmenter as a model that MLflow serves, and registers it by option; waits for it."""
        before = self._dropped
        self._put(_Model(sha256, url, step))
        if self.flush(MODEL_TIMEOUT_S) > before:
            say("gwm: the segmenter was not stored in MLflow; it is in the output as ever.")

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Sets or replaces tags of the run."""
        self._put(_Tags({name: str(value) for name, value in tags.items()}))

    def flush(self, timeout_s: float = FINISH_TIMEOUT_S) -> int:
        """Waits until all entries so far are delivered or dropped; returns how many were dropped."""
        self._wait(_Flush(threading.Event()), timeout_s)
        return self._dropped

    def finish(self, status: Status) -> int:
        """Ends the run and returns how many entries were dropped; waits no longer than half a minute."""
        if self._description is None or self._thread is None:
            return self._dropped
        if not self._wait(_Flush(threading.Event(), status), FINISH_TIMEOUT_S):
            self._dropped += self._queue.qsize()
        if self._dropped:
            server = without_secrets(self._description.uri)
            say(f"gwm: {self._dropped} entries did not reach MLflow at {server}; the job was not affected.")
        self._thread = None
        self._description = None
        return self._dropped

    def __reduce__(self) -> tuple[type["Tracker"], tuple[RunDescription | None, str | None]]:
        if self._description is not None and self._run_id is None:
            self._attached.wait(FINISH_TIMEOUT_S)
        return Tracker, (self._description if self._run_id else None, self._run_id)

    def _begin(self) -> None:
        self._thread = threading.Thread(target=self._deliver, name="gwm-tracking", daemon=True)
        self._thread.start()

    def _put(self, entry: _Entry) -> None:
        if self._description is None:
            return
        if self._thread is None:
            self._begin()
        try:
            self._queue.put_nowait(entry)
        except queue.Full:
            self._dropped += 1

    def _wait(self, flush: _Flush, timeout_s: float) -> bool:
        """Whether the thread got as far as this entry in time."""
        if self._thread is None:
            return True
        try:
            self._queue.put(flush, timeout=timeout_s)
        except queue.Full:
            return False
        return flush.reached.wait(timeout_s)

    def _deliver(self) -> None:
        """The thread: opens the run, then sends batches until the run ends."""
        description = self._description
        if description is None:
            return
        if not self._attempt(partial(self._open, description)):
            say(f"gwm: not tracked: {without_secrets(description.uri)} does not answer as an MLflow server.")
        self._attached.set()
        while True:
            batch = self._collect()
            self._send(batch)
            flushes = [entry for entry in batch if isinstance(entry, _Flush)]
            for flush in flushes:
                flush.reached.set()
            if any(flush.status for flush in flushes):
                return

    def _open(self, description: RunDescription) -> None:
        self._run = MlflowRun(description, self._run_id)
        self._run_id = self._run.run_id
        if self._watches_machine:
            self._run.watch_machine()

    def _collect(self) -> list[_Entry]:
        """The waiting entries; metrics gather for a second, up to one request."""
        batch = [self._queue.get()]
        deadline = time.monotonic() + SECONDS_BETWEEN_BATCHES
        while len(batch) < METRICS_IN_BATCH and isinstance(batch[-1], MetricValue):
            try:
                batch.append(self._queue.get(timeout=max(0.0, deadline - time.monotonic())))
            except queue.Empty:
                break
        return batch

    def _send(self, batch: list[_Entry]) -> None:
        run = self._run
        metrics = [entry for entry in batch if isinstance(entry, MetricValue)]
        others = [entry for entry in batch if not isinstance(entry, MetricValue)]
        if run is None:
            self._dropped += len(batch) - sum(isinstance(entry, _Flush) for entry in others)
            return
        if metrics and not self._attempt(partial(run.log_metrics, metrics)):
            self._dropped += len(metrics)
        for entry in others:
            if not self._attempt(partial(self._send_other, run, entry)):
                self._dropped += 1

    def _send_other(self, run: MlflowRun, entry: _Entry) -> None:
        match entry:
            case _Artifact():
                run.log_bytes(entry.name, entry.data)
            case _Picture():
                run.log_picture(entry.name, entry.data, entry.step)
            case _Tags():
                run.set_tags(entry.values)
            case DatasetUse():
                run.log_dataset(entry)
            case _Model():
                self._send_model(run, entry)
            case _Flush(status=status) if status:
                run.end(status)

    def _send_model(self, run: MlflowRun, model: _Model) -> None:
        if model.url is None:
            model_id = find_logged_model(run, model.sha256)
            if model_id is not None:
                run.use_model(model_id)
            return
        with tempfile.TemporaryDirectory(prefix="gwm-") as temporary:
            folder = copy_segmenter(model.url, f"{temporary}/{FOLDER}")
            files = SegmenterFiles(
                folder=Path(folder),
                sha256=model.sha256,
                registered_model=self._registered_model,
                step=model.step,
            )
            log_segmenter(run, files)

    def _attempt(self, request: Callable[[], None]) -> bool:
        """Whether a request succeeded, in a few attempts; in only one while the server is out."""
        for attempt in range(1 if self._is_out else ATTEMPTS):
            if attempt:
                time.sleep(SECONDS_BEFORE_RETRY * attempt)
            try:
                request()
            except Exception as error:
                if is_refusal(error):
                    return False
            else:
                self._is_out = False
                return True
        self._is_out = True
        return False
