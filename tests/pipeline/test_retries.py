"""Storage through a proxy that breaks requests, in front of a real S3 server."""

import errno
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.fs
import pytest
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from pipeline import retries, storage
from pipeline.errors import GwmError
from pipeline.inputs import Source
from pipeline.patient_s3 import PatientS3
from pipeline.video import decode_frames, probe
from tests.fault_proxy import FaultProxy, Faults, fault_proxy

ONE_FAULT_A_TIME = {
    "slow_down": Faults(slow_down=0.3),
    "reset": Faults(reset=0.3),
    "lost_answer": Faults(lost_answer=0.3),
    "cut_short": Faults(cut_short=0.3),
}
PAYLOAD = os.urandom(7 * 2**20 + 1)  # more than a range of reading, more than a part of an upload


Through = Callable[[Faults], Any]


@pytest.fixture
def through(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Through]:
    """Puts a proxy with these faults between the S3 clients of this process and the server."""

    @contextmanager
    def put_between(faults: Faults) -> Iterator[FaultProxy]:
        with fault_proxy(s3_server, faults) as proxy, monkeypatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
            PatientS3.clear_instance_cache()
            yield proxy

    monkeypatch.setattr(retries, "LONGEST_DELAY_S", 0.5)
    yield put_between
    PatientS3.clear_instance_cache()


def everything(place: str, folder: Path) -> dict[str, Any]:
    """What every operation of storage says below `place`."""
    url = storage.join(place, "a")
    storage.write_bytes(url, b"first")
    storage.write_bytes(url, b"again")
    storage.write_bytes(storage.join(place, "large"), PAYLOAD)
    filesystem, path = storage.arrow_filesystem(storage.join(place, "by arrow"))
    with filesystem.open_output_stream(path) as stream:  # as Ray Train uploads a checkpoint
        stream.write(PAYLOAD)
    with storage.open_write(storage.join(place, "by pieces")) as file:
        file.write(PAYLOAD[:100])
        file.write(PAYLOAD[100:])
    created = [storage.create_bytes(storage.join(place, "once"), text) for text in (b"mine", b"yours")]
    with storage.open_read(storage.join(place, "large")) as file:
        file.seek(6 * 2**20)
        tail = file.read()
    with storage.local_copy(storage.join(place, "large")) as copy:
        copied = copy.read_bytes()
    storage.delete(url)
    fetched = storage.fetch_folder(place, folder)
    return {
        "created": created,
        "once": storage.read_bytes(storage.join(place, "once")),
        "tail": tail,
        "copied": copied,
        "large": storage.read_bytes(storage.join(place, "large")),
        "deleted": not storage.exists(url),
        "sizes": {storage.relative(name, place): size for name, size in storage.list_file_sizes(place)},
        "listed": [storage.relative(name, place) for name in storage.list_folder(place)],
        "folder": storage.is_folder(place),
        "by arrow": filesystem.open_input_file(path).read(),
        "type": filesystem.get_file_info(path).type == pyarrow.fs.FileType.File,
        "fetched": {file.name: file.read_bytes() for file in fetched.iterdir()},
    }


EXPECTED = {
    "created": [True, False],
    "once": b"mine",
    "tail": PAYLOAD[6 * 2**20 :],
    "copied": PAYLOAD,
    "large": PAYLOAD,
    "deleted": True,
    "sizes": {"by arrow": len(PAYLOAD), "by pieces": len(PAYLOAD), "large": len(PAYLOAD), "once": 4},
    "listed": ["by arrow", "by pieces", "large", "once"],
    "folder": True,
    "by arrow": PAYLOAD,
    "type": True,
    "fetched": {"by arrow": PAYLOAD, "by pieces": PAYLOAD, "large": PAYLOAD, "once": b"mine"},
}


@pytest.mark.parametrize("kind", ONE_FAULT_A_TIME)
def test_every_operation_survives_every_fault(
    kind: str, through: Through, make_bucket: Any, tmp_path: Path
) -> None:
    place = f"{make_bucket().url}/data"
    with through(ONE_FAULT_A_TIME[kind]) as proxy:
        assert everything(place, tmp_path / "fetched") == EXPECTED
    assert proxy.counts[kind] >= 5, proxy.counts


def test_an_outage_is_waited_for_and_said(
    through: Through, s3: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(retries, "SAY_AFTER_S", 0.5)
    with through(Faults(outage_after=5, outage_s=3.0)) as proxy:
        for number in range(8):
            storage.write_bytes(f"{s3.url}/{number}", b"x")
        assert len(list(storage.list_files(s3.url))) == 8
    assert proxy.counts["outage"] == 1
    said = [line for line in capsys.readouterr().err.splitlines() if " is out " in line]
    assert len(said) == 1
    assert proxy.endpoint in said[0]


def test_of_many_writers_one_creates_though_answers_are_lost(through: Through, s3: Any) -> None:
    with through(Faults(lost_answer=0.4)) as proxy:
        for number in range(5):
            url = f"{s3.url}/once-{number}"
            with ThreadPoolExecutor(4) as threads:
                wins = list(threads.map(lambda i, url=url: storage.create_bytes(url, b"%d" % i), range(4)))
            assert wins.count(True) == 1
            assert storage.read_bytes(url) == b"%d" % wins.index(True)
    assert proxy.counts["lost_answer"] >= 5


@pytest.mark.parametrize("condition", ["If-None-Match", ""])
def test_both_answers_to_a_conditional_put_are_understood(condition: str, through: Through, s3: Any) -> None:
    with through(Faults(condition=condition)) as proxy:
        assert storage.create_bytes(f"{s3.url}/once", b"first")
        assert not storage.create_bytes(f"{s3.url}/once", b"second")
        assert storage.read_bytes(f"{s3.url}/once") == b"first"
    assert proxy.counts["412"] == 1


@pytest.mark.parametrize(
    ("refusal", "said"),
    [((403, "AccessDenied"), "Access denied to"), ((404, "NoSuchBucket"), "There is no bucket for")],
)
def test_a_permanent_fault_is_one_sentence_at_once(
    refusal: tuple[int, str], said: str, through: Through, s3: Any
) -> None:
    with through(Faults(refuse=lambda method, _: refusal if method == "PUT" else None)) as proxy:
        for write in (storage.write_bytes, storage.create_bytes):
            with pytest.raises(GwmError, match=f"{said} {s3.url}/x"):
                write(f"{s3.url}/x", b"data")
        assert not storage.exists(f"{s3.url}/x")
    assert proxy.counts[refusal[1]] == 2


def test_an_open_file_says_what_became_of_its_server(through: Through, s3: Any) -> None:
    storage.write_bytes(f"{s3.url}/large", PAYLOAD * 2)
    refused: list[bool] = []
    faults = Faults(refuse=lambda method, _: (403, "AccessDenied") if refused and method == "GET" else None)
    with through(faults), storage.open_read(f"{s3.url}/large") as file:
        assert file.read(10) == PAYLOAD[:10]
        refused.append(True)
        file.seek(12 * 2**20)
        with pytest.raises(GwmError, match=f"Access denied to {s3.url}/large"):
            file.read(10)


class FlakyFile(AbstractBufferedFile):
    """Every second read fails: in turn with an error and with too few bytes."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        self.fs.reads += 1
        if self.fs.refuses_reads_from is not None and self.fs.reads >= self.fs.refuses_reads_from:
            raise PermissionError("no longer")
        if self.fs.reads % 4 == 1:
            raise ConnectionResetError(errno.ECONNRESET, "reset")
        data = self.fs.content[start:end]
        return data[: len(data) // 2] if self.fs.reads % 4 == 3 else data


class Flaky(AbstractFileSystem):
    """A kind of storage with no retries of its own: one file under every name."""

    protocol = "flaky"
    content = PAYLOAD
    reads = 0
    refuses_reads_from: int | None = None

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        self.reads += 1
        if self.reads % 2:
            raise TimeoutError
        return {"name": path, "size": len(self.content), "type": "file"}

    def _open(self, path: str, mode: str = "rb", **_: Any) -> FlakyFile:
        return FlakyFile(self, path, mode, block_size=2**13, size=len(self.content))


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> Flaky:
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    Flaky.clear_instance_cache()
    monkeypatch.setattr(retries, "FIRST_DELAY_S", 0.01)
    filesystem, _ = storage.open_filesystem("flaky://x/a")
    assert isinstance(filesystem, Flaky)
    return filesystem


def test_any_kind_of_storage_is_read_patiently(flaky: Flaky) -> None:
    assert storage.size_bytes("flaky://x/a") == len(PAYLOAD)
    assert storage.exists("flaky://x/a")
    with storage.open_read("flaky://x/a") as file:
        assert file.read() == PAYLOAD
        file.seek(100)
        assert file.read(50) == PAYLOAD[100:150]


def test_a_video_whose_storage_refuses_is_not_a_broken_video(flaky: Flaky, make_video: Any) -> None:
    flaky.content = make_video(num_frames=60, height_px=240, width_px=320, options={"crf": "1"}).read_bytes()
    index = probe(Source(url="flaky://x/video.mp4", name="video.mp4", kind="video"))
    assert len(index.pts) == 60
    assert flaky.reads > 20
    flaky.refuses_reads_from = flaky.reads + 10
    shape = {"height_px": 240, "width_px": 320, "timed": True}
    with pytest.raises(GwmError, match=r"Access denied to flaky://x/video\.mp4"):
        decode_frames("flaky://x/video.mp4", index.pts.tolist(), seek_pts=None, **shape)


def test_patience_ends(through: Through, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "GIVE_UP_AFTER_S", 1.0)
    with through(Faults(slow_down=1.0)) as proxy, pytest.raises(GwmError, match="overloaded or out of order"):
        storage.read_bytes(f"{s3.url}/x")
    assert proxy.requests == proxy.counts["slow_down"] < 50


def test_a_server_that_never_answered_is_given_up_soon_but_not_by_a_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    error = ConnectionResetError(errno.ECONNRESET, "reset")
    monkeypatch.setattr(retries, "FIRST_CONTACT_S", 0.0)
    with pytest.raises(ConnectionResetError):
        retries.Patience("http://127.0.0.1:1").delay_s(error)
    monkeypatch.setenv("RAY_RAYLET_PID", "1")
    assert retries.Patience("http://127.0.0.1:1").delay_s(error) >= 0
    monkeypatch.delenv("RAY_RAYLET_PID")
    patience = retries.Patience("http://127.0.0.1:2")
    patience.answered()
    assert patience.delay_s(error) >= 0


def test_waits_are_random_and_their_bound_doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds: list[tuple[float, float]] = []
    monkeypatch.setattr(retries.random, "uniform", lambda low, high: bounds.append((low, high)) or 0.0)
    patience = retries.Patience("http://127.0.0.1:3")
    patience.answered()
    for _ in range(8):
        patience.delay_s(ConnectionResetError())
    assert bounds == [(0, bound) for bound in (0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0)]


@pytest.mark.parametrize(
    "error",
    [FileNotFoundError(), PermissionError(), OSError(errno.ENOSPC, "full"), ValueError(), KeyError("x")],
)
def test_what_will_not_change_is_not_tried_again(error: Exception) -> None:
    assert not retries.is_transient(error)
    tries: list[int] = []

    def fail() -> None:
        tries.append(1)
        raise error

    with pytest.raises(type(error)):
        retries.retried("server", fail)
    assert tries == [1]
