import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.errors import GwmError
from pipeline.patient_s3 import PatientS3
from pipeline.storage_errors import explain, without_secrets


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.server)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder on the disk, and a prefix in a bucket."""
    if request.param == "local":
        return str(tmp_path / "data")
    return f"{request.getfixturevalue('s3').url}/data"


@pytest.fixture
def fresh_clients() -> Iterator[None]:
    """S3 clients made from the environment as this test sets it."""
    PatientS3.clear_instance_cache()
    yield
    PatientS3.clear_instance_cache()


def test_a_file_is_written_read_measured_and_deleted(place: str) -> None:
    url = storage.join(place, "a b", "ü#1%20.bin")
    storage.write_bytes(url, b"first")
    storage.write_bytes(url, b"hello")
    assert storage.read_bytes(url) == b"hello"
    assert storage.size_bytes(url) == 5
    assert storage.exists(url)
    assert storage.exists(place)
    assert storage.is_folder(place)
    assert not storage.is_folder(url)
    with storage.open_read(url) as file:
        file.seek(2)
        assert file.read(2) == b"ll"
    storage.delete(url)
    storage.delete(url)
    assert not storage.exists(url)


def test_symbolic_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    """As in the cache of a model hub; one that leads nowhere stays in the list, so that somebody hears of it."""
    inside, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    for folder in (inside, elsewhere):
        folder.mkdir()
        (folder / "plain.jpg").write_bytes(b"12345")
    (inside / "file.jpg").symlink_to(elsewhere / "plain.jpg")
    (inside / "folder").symlink_to(elsewhere)
    (inside / "gone.jpg").symlink_to(tmp_path / "nothing.jpg")
    (elsewhere / "back").symlink_to(inside)
    found = {
        Path(url).relative_to(inside).as_posix(): size for url, size in storage.list_file_sizes(str(inside))
    }
    assert found == {"file.jpg": 5, "folder/plain.jpg": 5, "gone.jpg": 0, "plain.jpg": 5}
    names = [Path(url).name for url in storage.list_folder(str(inside))]
    assert names == ["file.jpg", "gone.jpg", "plain.jpg"]


def test_a_file_written_in_pieces_is_seen_whole_or_not_at_all(place: str) -> None:
    url = storage.join(place, "pieces")
    with storage.open_write(url) as file:
        file.write(b"one ")
        assert not storage.exists(url)
        file.write(b"two")

    def fail_amid(file: BinaryIO) -> None:
        file.write(b"half of ano")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), storage.open_write(url) as file:
        fail_amid(file)
    assert storage.read_bytes(url) == b"one two"
    assert list(storage.list_files(place)) == [storage.absolute(url)]
    assert list(storage.list_temporary_files(place, older_than_s=-1.0)) == []


@pytest.mark.server
def test_a_browser_is_told_that_an_object_is_a_film(s3_bucket_url: str) -> None:
    url = storage.join(s3_bucket_url, "a film.mp4")
    with storage.open_write(url) as file:
        file.write(b"film")
    filesystem, path = storage.open_filesystem(url)
    assert filesystem.info(path)["ContentType"] == "video/mp4"


def test_of_many_writers_one_creates(place: str) -> None:
    url = storage.join(place, "once")

    def create(number: int) -> int | None:
        return number if storage.create_bytes(url, str(number).encode()) else None

    with ThreadPoolExecutor(16) as threads:
        winners = [number for number in threads.map(create, range(16)) if number is not None]
    assert len(winners) == 1
    assert storage.read_bytes(url) == str(winners[0]).encode()
    assert not storage.create_bytes(url, b"late")


def test_listing_is_recursive_and_complete(place: str) -> None:
    names = ["b/2", "b/1", "a", "b.txt", "b-1", "c/d/e", "c/d.e"]
    for name in names:
        storage.write_bytes(storage.join(place, name), name.encode())
    expected = sorted(names)
    found = [storage.relative(url, place) for url in storage.list_files(place)]
    # SeaweedFS sorts a folder's entries by name, AWS whole keys; our walk over a disk does as AWS.
    assert (found if storage.is_local(place) else sorted(found)) == expected
    sizes = {storage.relative(url, place): size for url, size in storage.list_file_sizes(place)}
    assert sizes == {name: len(name) for name in expected}
    assert [storage.relative(url, place) for url in storage.list_folder(place)] == ["a", "b-1", "b.txt"]
    assert list(storage.list_files(storage.join(place, "none"))) == []


@pytest.mark.server
def test_listing_goes_past_the_first_page_and_past_folder_marks(s3_bucket_url: str) -> None:
    filesystem, path = storage.open_filesystem(f"{s3_bucket_url}/many")
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda i: storage.write_bytes(f"{s3_bucket_url}/many/{i:05d}", b""), range(1005)))
    bucket, _, key = path.partition("/")
    filesystem.call_s3("put_object", Bucket=bucket, Key=f"{key}/folder/", Body=b"")
    urls = list(storage.list_files(f"{s3_bucket_url}/many"))
    assert urls == [f"{s3_bucket_url}/many/{i:05d}" for i in range(1005)]


@pytest.fixture
def s3_bucket_url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue("s3").url)


def test_a_prefix_does_not_match_its_neighbours(place: str) -> None:
    storage.write_bytes(storage.join(place, "a", "x"), b"")
    storage.write_bytes(storage.join(place, "ab", "y"), b"")
    assert [storage.relative(url, place) for url in storage.list_files(storage.join(place, "a"))] == ["a/x"]


def test_local_copies(place: str, tmp_path: Path) -> None:
    for name in ("model/a.bin", "model/sub/b.bin"):
        storage.write_bytes(storage.join(place, name), name.encode())
    with storage.local_copy(storage.join(place, "model", "a.bin")) as path:
        assert path.read_bytes() == b"model/a.bin"
    assert path.exists() == storage.is_local(place)
    folder = storage.fetch_folder(storage.join(place, "model"), tmp_path / "fetched")
    files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.bin")}
    assert files == {"a.bin": b"model/a.bin", "sub/b.bin": b"model/sub/b.bin"}
    with pytest.raises(GwmError, match="There is no"):
        storage.fetch_folder(storage.join(place, "none"), tmp_path / "nothing")


def test_arrow_sees_the_same_files(place: str) -> None:
    url = storage.join(place, "table.parquet")
    storage.write_bytes(url, b"")
    filesystem, path = storage.arrow_filesystem(url)
    pq.write_table(pa.table({"a": [1, 2]}), path, filesystem=filesystem)
    assert pq.read_table(pa.BufferReader(storage.read_bytes(url))).num_rows == 2


def test_a_missing_file_is_named(place: str) -> None:
    url = storage.join(place, "no.bin")
    with pytest.raises(GwmError, match=r"There is no .*no\.bin\."):
        storage.read_bytes(url)


def test_a_failing_write_leaves_the_old_file_and_no_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = str(tmp_path / "shards" / "x.parquet")
    storage.write_bytes(url, b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(GwmError, match="the disk is full"):
        storage.write_bytes(url, b"new")
    with pytest.raises(GwmError, match="the disk is full"):
        storage.create_bytes(str(tmp_path / "shards" / "y"), b"new")
    assert storage.read_bytes(url) == b"old"
    assert [path.name for path in (tmp_path / "shards").iterdir()] == ["x.parquet"]


def test_a_disk_without_room_keeps_the_old_file(tmp_path: Path) -> None:
    """The kernel stops the writer at a limit, in the middle of a file."""
    url = str(tmp_path / "shards" / "x.parquet")
    storage.write_bytes(url, b"old")
    write = (
        "import resource, signal, sys\n"
        "from pipeline.cli import _guarded\n"
        "from pipeline import storage\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "sys.exit(_guarded(lambda: storage.write_bytes(sys.argv[1], bytes(5000)), False))"
    )
    done = subprocess.run([sys.executable, "-c", write, url], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"gwm: Cannot write {url}: the file is larger than this disk or a limit allows.\n"
    assert [(path.name, path.read_bytes()) for path in (tmp_path / "shards").iterdir()] == [
        ("x.parquet", b"old")
    ]


def test_a_key_cannot_leave_the_folder_it_is_copied_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "list_files", lambda url: iter([f"{url}/a/../../../outside"]))
    with pytest.raises(GwmError, match="would leave the folder"):
        storage.fetch_folder("s3://bucket/model", tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_under_a_download_is_named(s3_bucket_url: str, tmp_path: Path) -> None:
    storage.write_bytes(f"{s3_bucket_url}/model/a.bin", bytes(5000))
    fetch = (
        "import pathlib, resource, signal, sys\n"
        "from pipeline.cli import _guarded\n"
        "from pipeline import storage\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "sys.exit(_guarded(lambda: storage.fetch_folder(sys.argv[1], pathlib.Path(sys.argv[2])), False))"
    )
    command = [sys.executable, "-c", fetch, f"{s3_bucket_url}/model", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    told = f"gwm: Cannot write {tmp_path}/a.bin: the file is larger than this disk or a limit allows.\n"
    assert done.stderr == told


def test_a_file_half_written_by_a_killed_run_is_not_listed(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "x"), b"")
    (tmp_path / f"{storage.TEMPORARY_PREFIX}abc").write_bytes(b"half")
    assert list(storage.list_files(str(tmp_path))) == [str(tmp_path / "x")]


def test_a_file_in_the_way_of_a_folder_is_an_error_not_an_existing_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(GwmError, match="a part of the path is a file"):
        storage.create_bytes(str(tmp_path / "file" / "x"), b"")


def test_relative_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("a/b/") == str(tmp_path / "a" / "b")
    assert storage.absolute("s3://bucket/a/") == "s3://bucket/a"
    assert storage.relative(str(tmp_path / "a" / "b"), "a") == "b"
    with pytest.raises(ValueError, match="not below"):
        storage.relative("/elsewhere/b", "a")


def test_unknown_kinds_of_url_get_a_sentence() -> None:
    with pytest.raises(GwmError, match="unknown kind of URL 'abc://'"):
        storage.read_bytes("abc://bucket/x")


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"AWS_ACCESS_KEY_ID": "nobody"}, "does not know the access key"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "The secret key used for .* is wrong"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "Cannot reach the storage server"),
        ({"AWS_ENDPOINT_URL": "nonsense"}, "AWS_ENDPOINT_URL is not a valid address"),
        ({"AWS_ACCESS_KEY_ID": ""}, "No credentials for"),
    ],
)
@pytest.mark.usefixtures("fresh_clients")
def test_storage_that_does_not_let_us_in(
    s3_bucket_url: str, environment: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    for name, value in environment.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
        if not value:
            monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    PatientS3.clear_instance_cache()
    with pytest.raises(GwmError, match=said) as raised:
        storage.write_bytes(f"{s3_bucket_url}/x", b"")
    assert "wrong-secret" not in str(raised.value)
    assert f"{s3_bucket_url}/x" in str(raised.value)


@pytest.mark.server
@pytest.mark.usefixtures("s3_bucket_url")
def test_a_missing_bucket_is_named() -> None:
    for attempt in (
        lambda: storage.write_bytes("s3://no-such-bucket-here/x", b""),
        lambda: storage.create_bytes("s3://no-such-bucket-here/x", b""),
        lambda: list(storage.list_files("s3://no-such-bucket-here/x")),
        lambda: storage.read_bytes("s3://no-such-bucket-here/x"),
    ):
        with pytest.raises(GwmError, match="There is no bucket for s3://no-such-bucket-here/x"):
            attempt()


def test_sentences_hold_no_secrets() -> None:
    url = "s3://key:secret@bucket/a?token=secret"
    assert without_secrets(url) == "s3://bucket/a"
    assert explain(PermissionError(), url) == "Access denied to s3://bucket/a."
    assert explain(RuntimeError("other"), url) is None
