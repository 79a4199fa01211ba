import math
import pickle
import re
import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config import PrepareConfig, TrackingConfig
from pipeline.pictures import encode_jpeg
from pipeline.tracking import Tracker

FINGERPRINT = "0123abcd"


def start(
    output: str,
    uri: str | None = None,
    *,
    videos: str = "in",
    fingerprint: str = FINGERPRINT,
    system_metrics: bool = False,
) -> Tracker:
    config = PrepareConfig(videos=videos, output=output)
    return Tracker.start(
        TrackingConfig(uri=uri, system_metrics=system_metrics),
        command="prepare",
        output=output,
        run_config=config,
        fingerprint=fingerprint,
    )


def runs(uri: str) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("gwm")
    return list(client.search_runs([experiment.experiment_id]))


@pytest.fixture(autouse=True)
def _no_address(tracked: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")  # other work may keep this machine busy


def test_a_local_run_is_kept_beside_its_output_and_found_again(tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    first = start(output)
    first.log_metrics({"loss": 2.0, "odd (name)": 1.0, "nan": math.nan}, step=0)
    first.log_bytes("pictures/a.txt", b"hello")
    assert first.finish("KILLED") == 0
    second = start(output)
    second.log_metrics({"loss": 1.0}, step=1)
    second.set_tags({"note": 7})
    assert second.finish("FINISHED") == 0
    assert start(output, fingerprint="other").finish("FINISHED") == 0

    found = runs(f"sqlite:///{output}/mlflow.db")
    assert len(found) == 2
    (run,) = [run for run in found if run.data.tags["gwm.fingerprint"] == FINGERPRINT]
    assert run.info.status == "FINISHED"
    assert run.data.metrics["loss"] == 1.0
    assert run.data.metrics["odd _name_"] == 1.0
    assert math.isnan(run.data.metrics["nan"])
    assert run.data.params["estimate_flow.gaps"] == "[1, -1]"
    assert run.data.tags["note"] == "7"
    assert run.data.tags["gwm.output"] == output
    assert [path.read_text() for path in (tmp_path / "out" / "mlflow_artifacts").rglob("a.txt")] == ["hello"]


def test_an_output_in_a_bucket_without_an_address_is_not_tracked(capsys: pytest.CaptureFixture[str]) -> None:
    tracker = start("s3://bucket/out")
    tracker.log_metrics({"loss": 1.0})
    assert tracker.finish("FINISHED") == 0
    assert capsys.readouterr().err.startswith("gwm: not tracked: ")


def test_an_unknown_kind_of_address_is_not_tracked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = start(str(tmp_path), "foo://user:secret@host")
    tracker.log_metrics({"loss": 1.0})
    assert tracker.finish("FINISHED") > 0
    text = capsys.readouterr().err
    assert "gwm: not tracked: foo://host does not answer" in text
    assert "secret" not in text


def test_the_word_none_tracks_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = start(str(tmp_path / "out"), "none")
    tracker.log_metrics({"loss": 1.0})
    assert tracker.finish("FINISHED") == 0
    assert capsys.readouterr().err == ""
    assert not (tmp_path / "out").exists()


def test_a_server_takes_many_values_long_parameters_and_no_secrets(
    mlflow_server: str, tmp_path: Path
) -> None:
    output = str(tmp_path / "out")
    tracker = start(output, mlflow_server, videos="s3://user:secret@bucket/x?token=secret" + "y" * 7000)
    for step in range(1200):
        tracker.log_metrics({"loss": 1.0 / (step + 1)}, step=step)
    copy: Tracker = pickle.loads(pickle.dumps(tracker))
    copy.log_metrics({"from_worker": 3.0})
    assert copy.flush() == 0
    tracker.log_bytes("a.bin", b"\x00\x01")
    assert tracker.finish("FINISHED") == 0
    (run,) = [run for run in runs(mlflow_server) if run.data.tags["gwm.output"] == output]
    assert run.data.metrics["loss"] == pytest.approx(1.0 / 1200)
    assert run.data.metrics["from_worker"] == 3.0
    assert run.data.params["videos"].startswith("s3://bucket/x")
    assert "secret" not in str(run.to_dictionary())
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=mlflow_server)
    assert len(client.get_metric_history(run.info.run_id, "loss")) == 1200
    assert "a.bin" in [artifact.path for artifact in client.list_artifacts(run.info.run_id)]


def test_a_parameter_longer_than_mlflow_allows_is_cut_and_kept_whole_beside(tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    assert start(output, videos="v" * 9000).finish("FINISHED") == 0
    (run,) = runs(f"sqlite:///{output}/mlflow.db")
    assert run.data.params["videos"] == "v" * 6000
    (file,) = (tmp_path / "out").rglob("params.json")
    assert "v" * 9000 in file.read_text()


def test_pictures_are_kept_by_step_and_the_machine_is_watched(
    mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    client, output = MlflowClient(tracking_uri=mlflow_server), str(tmp_path / "out")
    tracker = start(output, mlflow_server, system_metrics=True)
    picture = encode_jpeg(np.full((8, 16, 3), 200, np.uint8))
    for step in (10, 20):
        tracker.log_picture("regions", picture, step)
    assert tracker.flush() == 0
    (run,) = [run for run in runs(mlflow_server) if run.data.tags["gwm.output"] == output]
    while "system/cpu_utilization_percentage" not in run.data.metrics:  # sent after a moment
        run = client.get_run(run.info.run_id)
    assert tracker.finish("FINISHED") == 0
    images = [file.path for file in client.list_artifacts(run.info.run_id, "images")]
    shown = [re.findall(r"regions\Wstep\W(\d+)", path) for path in images if path.endswith(".png")]
    assert sorted(shown) == [["10"], ["20"]]


class Door:
    """A way to a server on another port, which can be shut for good."""

    def __init__(self, address: str) -> None:
        host, _, port = address.removeprefix("http://").partition(":")
        self._inside = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = [self._listener]
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def shut(self) -> None:
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                outer, _ = self._listener.accept()
                inner = socket.create_connection(self._inside)
                self._open += [outer, inner]
                for source, target in ((outer, inner), (inner, outer)):
                    threading.Thread(target=self._pass_on, args=(source, target), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


def test_an_outage_in_the_middle_loses_entries_not_the_job(
    mlflow_server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    door = Door(mlflow_server)
    output = str(tmp_path / "out")
    tracker = start(output, door.address)
    tracker.log_metrics({"loss": 3.0}, step=0)
    assert tracker.flush() == 0
    door.shut()
    for step in range(1, 51):
        tracker.log_metrics({"loss": 1.0}, step=step)
    assert tracker.finish("FINISHED") == 51  # fifty values and the run's end
    assert tracker.finish("FINISHED") == 51
    (run,) = [run for run in runs(mlflow_server) if run.data.tags["gwm.output"] == output]
    assert run.data.metrics == {"loss": 3.0}
    assert run.info.status == "RUNNING"
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"gwm: 51 entries did not reach MLflow at {door.address}; the job was not affected."


def test_no_server_at_all_never_stops_the_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = start(str(tmp_path), "http://user:secret@127.0.0.1:1")
    tracker.log_metrics({"a": 1.0, "b": 2.0})
    copy: Tracker = pickle.loads(pickle.dumps(tracker))
    copy.log_metrics({"c": 1.0})
    assert copy.finish("FINISHED") == 0
    assert tracker.finish("FINISHED") == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "gwm: not tracked: http://127.0.0.1:1 does not answer as an MLflow server."
    assert all(line.startswith("gwm: ") and "secret" not in line for line in lines)
