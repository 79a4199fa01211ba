"""Files and objects behind URLs; the only module that opens a file system.

A URL is a plain path, `file://`, `s3://`, `gs://`, `hf://` or whatever else fsspec knows. S3 credentials,
region and endpoint come from the environment (`AWS_ENDPOINT_URL`, `AWS_PROFILE`, ...), as in every S3 client.
"""

import contextlib
import errno
import os
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from io import BufferedWriter
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import fsspec
import pyarrow.fs
from fsspec.core import split_protocol
from fsspec.spec import AbstractBufferedFile
from fsspec.utils import glob_translate

from pipeline.errors import GwmError
from pipeline.retries import BodyCutShortError, retried
from pipeline.storage_errors import DISK_ERRORS, explain, explained, without_secrets

T = TypeVar("T")

TEMPORARY_PREFIX = ".gwm-"
"""A file being written starts so; listings leave it out."""


def open_filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URL and the path inside it; fsspec keeps one for each process and thread."""
    protocol, rest = split_protocol(url)
    if protocol in ("s3", "s3a") and "@" in rest.partition("/")[0]:
        raise GwmError(
            f"Credentials do not belong into {without_secrets(url)}: "
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE."
        )
    with explained(url):
        try:
            filesystem = _filesystem(protocol or "file")
        except ValueError as error:
            raise GwmError(
                f"Cannot open {without_secrets(url)}: unknown kind of URL '{protocol}://'."
            ) from error
        return filesystem, str(filesystem._strip_protocol(url))


def _filesystem(protocol: str) -> fsspec.AbstractFileSystem:
    if protocol in ("file", "local"):
        return fsspec.filesystem(protocol)
    if protocol in ("s3", "s3a"):
        from pipeline.patient_s3 import OPTIONS, PatientS3  # s3fs takes a second to import

        return PatientS3(**OPTIONS)
    return fsspec.filesystem(protocol, use_listings_cache=False)


def is_local(url: str) -> bool:
    """Whether a URL is a path of this machine."""
    return (split_protocol(url)[0] or "file") in ("file", "local")


def absolute(url: str) -> str:
    """The URL without a trailing slash; a local path becomes absolute: every worker means the same file."""
    if is_local(url):
        return str(open_filesystem(url)[1]).rstrip("/") or "/"
    return url.rstrip("/")


def join(url: str, *parts: str) -> str:
    """A URL below another."""
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts)])


def relative(url: str, root: str) -> str:
    """A URL's path below `root`; ValueError where it is not below."""
    base, path = absolute(root).rstrip("/") + "/", absolute(url)
    if not path.startswith(base):
        raise ValueError(f"{path} is not below {base}")
    return path[len(base) :]


def exists(url: str) -> bool:
    """Whether a file or a non-empty folder is there."""
    filesystem, path = open_filesystem(url)
    with explained(url):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            _patiently(url, lambda: filesystem.info(path))
            return True
        return False


def is_folder(url: str) -> bool:
    """Whether a folder, or a prefix with something below it, is there."""
    filesystem, path = open_filesystem(url)
    with explained(url):
        return bool(_patiently(url, lambda: filesystem.isdir(path)))


def size_bytes(url: str) -> int:
    """A file's size."""
    filesystem, path = open_filesystem(url)
    with explained(url):
        return int(_patiently(url, lambda: filesystem.size(path)))


def list_files(url: str) -> Iterator[str]:
    """Full URLs of all files below a folder or prefix, a page at a time; none where it is missing.

    The order is the server's: sorted, and without returning to a folder that was left.
    """
    for path, _ in list_file_sizes(url):
        yield path


def list_file_sizes(url: str) -> Iterator[tuple[str, int]]:
    """`list_files` with sizes in bytes."""
    filesystem, path = open_filesystem(url)
    protocol = split_protocol(url)[0]
    pages = _s3_objects(filesystem, path) if protocol in ("s3", "s3a") else _walk(url, filesystem, path)
    prefix = "" if is_local(url) else f"{protocol}://"
    with explained(url):
        for name, num_bytes in pages:
            if not name.endswith("/") and not name.rsplit("/", 1)[-1].startswith(TEMPORARY_PREFIX):
                yield prefix + name, num_bytes


def list_temporary_files(url: str, *, older_than_s: float) -> Iterator[str]:
    """Files below a folder of this disk that a writer began that long ago and never finished; none in a bucket."""
    if is_local(url):
        for path in Path(absolute(url)).rglob(f"{TEMPORARY_PREFIX}*"):
            if path.is_file() and time.time() - path.stat().st_mtime > older_than_s:
                yield str(path)


def list_folder(url: str) -> list[str]:
    """Full URLs of the files directly in a folder, sorted."""
    filesystem, path = open_filesystem(url)
    prefix = "" if is_local(url) else f"{split_protocol(url)[0]}://"
    with explained(url):
        entries = _patiently(url, lambda: filesystem.ls(path, detail=True))
    return sorted(
        prefix + entry["name"] for entry in entries if _kind(entry) == "file" and entry["name"] != path
    )


def glob_matcher(pattern: str) -> Callable[[str], object]:
    """Whether a path below some folder matches a pattern with `*`, `?`, `[...]` and `**`."""
    return re.compile(glob_translate(pattern)).fullmatch


def read_bytes(url: str) -> bytes:
    """A whole file."""
    filesystem, path = open_filesystem(url)
    with explained(url):
        return bytes(_patiently(url, lambda: filesystem.cat_file(path)))


def open_read(url: str) -> BinaryIO:
    """A seekable file; an object is read in ranges, each as patiently as a whole file."""
    filesystem, path = open_filesystem(url)
    with explained(url):
        file = _patiently(url, lambda: filesystem.open(path, "rb"))
    if isinstance(file, AbstractBufferedFile):
        file.cache.fetcher = partial(_fetch_range, url, file.cache.fetcher)
    return cast("BinaryIO", file)


def write_bytes(url: str, data: bytes) -> None:
    """Writes a file that readers see whole or not at all: one PUT, or a temporary file, fsync and rename."""
    filesystem, path = open_filesystem(url)
    if is_local(url):
        with open_write(url) as file:
            file.write(data)
        return
    with explained(url):
        _patiently(url, lambda: filesystem.pipe_file(path, data))


@contextlib.contextmanager
def open_write(url: str) -> Iterator[BinaryIO]:
    """A new file, written piece by piece, that readers see at the end or, after an error, not at all.

    What goes to a bucket waits on this disk.
    """
    filesystem, path = open_filesystem(url)
    with explained(url):
        if is_local(url):
            with _temporary_file(path) as file:
                yield file
                _flush(file)
                os.replace(file.name, path)  # noqa: PTH105
            return
        with tempfile.TemporaryDirectory(prefix="gwm-") as folder:
            temporary = (
                Path(folder) / f"file{Path(path).suffix}"
            )  # by which its type is told: a browser plays a film
            with temporary.open("xb") as file:
                yield file
            _patiently(url, lambda: filesystem.put_file(str(temporary), path))


def create_bytes(url: str, data: bytes) -> bool:
    """Writes a file unless it exists; whether it holds these bytes now: of writers that differ, exactly one wins.

    The answer is the content, because a put whose answer was lost finds its own file in the way.
    """
    filesystem, path = open_filesystem(url)
    with explained(url):
        try:
            if is_local(url):
                with _temporary_file(path) as file:
                    file.write(data)
                    _flush(file)
                    os.link(file.name, path)
            else:
                _patiently(url, lambda: filesystem.pipe_file(path, data, mode="create"))
        except FileExistsError:
            return read_bytes(url) == data
        except OSError as error:
            # A server that answers 412 without naming the condition: s3fs says EINVAL for it.
            if error.errno == errno.EINVAL and exists(url):
                return read_bytes(url) == data
            raise
    return True


def delete(url: str) -> None:
    """Removes one file; a missing one is no error."""
    filesystem, path = open_filesystem(url)
    with explained(url), contextlib.suppress(FileNotFoundError):
        _patiently(url, lambda: filesystem.rm_file(path))


@contextlib.contextmanager
def local_copy(url: str) -> Iterator[Path]:
    """A local file with a URL's content: a local path as it is, otherwise a download removed afterwards."""
    _, path = open_filesystem(url)
    if is_local(url):
        with explained(url):
            Path(path).stat()
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="gwm-") as folder:
        target = Path(folder) / path.rsplit("/", 1)[-1]
        _download(url, target)
        yield target


def absolute_weights(weights: str) -> str:
    """The path of weights made absolute, if they are a local file; a word or a URL as it is."""
    is_file = weights not in ("pretrained", "none") and Path(weights).exists()
    return absolute(weights) if is_file else weights


@contextlib.contextmanager
def local_weights(weights: str) -> Iterator[str]:
    """Weights as gwm_model reads them: a name, a path or a web address as it is, an object as a local copy."""
    if is_local(weights) or weights.startswith(("http://", "https://")):
        yield weights
    else:
        with local_copy(weights) as path:
            yield str(path)


def fetch_folder(url: str, to: Path) -> Path:
    """A local folder with the files below a URL: a local folder as it is, otherwise downloaded into `to`."""
    if is_local(url):
        if not is_folder(url):
            raise GwmError(f"There is no folder {url}.")
        return Path(absolute(url))
    found = False
    for file_url in list_files(url):
        found = True
        target = to / relative(file_url, url)
        if ".." in target.parts:
            raise GwmError(f"The name {without_secrets(file_url)} would leave the folder it is copied to.")
        target.parent.mkdir(parents=True, exist_ok=True)
        _download(file_url, target)
    if not found:
        raise GwmError(f"There is nothing at {without_secrets(url)}.")
    return to


def arrow_filesystem(url: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The same file system for Arrow and Ray, and the path inside it."""
    filesystem, path = open_filesystem(url)
    if is_local(url):
        return pyarrow.fs.LocalFileSystem(), path
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem)), path


@contextlib.contextmanager
def _temporary_file(path: str) -> Iterator[BufferedWriter]:
    """A new file in the folder of `path`, removed at the end unless it was renamed."""
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, "not a folder", str(target.parent)) from error
    temporary = target.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            yield file
    finally:
        temporary.unlink(missing_ok=True)


def _flush(file: BinaryIO) -> None:
    """Leaves nothing of a file in memory."""
    file.flush()
    os.fsync(file.fileno())


def _patiently(url: str, operation: Callable[[], T]) -> T:
    """An operation that can be done twice, tried again where that helps; PatientS3 does it request by request."""
    protocol, path = split_protocol(url)
    if is_local(url) or protocol in ("s3", "s3a"):
        return operation()
    return retried(f"{protocol}://{path.partition('/')[0]}", operation)


def _fetch_range(url: str, fetch: Callable[[int, int], bytes], start: int, end: int) -> bytes:
    """What an open file reads next: bytes [start, end), all of them."""

    def whole() -> bytes:
        data = fetch(start, end)
        if len(data) < end - start:
            raise BodyCutShortError(f"{len(data)} bytes of {end - start}")
        return data

    with explained(url):
        return _patiently(url, whole)


def _download(url: str, target: Path) -> None:
    """Copies a remote file onto this disk."""
    filesystem, path = open_filesystem(url)
    with explained(url):
        try:
            _patiently(url, lambda: filesystem.get_file(path, str(target)))
        except OSError as error:
            if error.errno in DISK_ERRORS:
                raise GwmError(explain(error, str(target))) from error
            raise


def _s3_objects(filesystem: fsspec.AbstractFileSystem, path: str) -> Iterator[tuple[str, int]]:
    """Keys below a prefix in the server's order, a page of 1000 at a time."""
    bucket, _, prefix = path.partition("/")
    request: dict[str, str] = {"Bucket": bucket, "Prefix": f"{prefix.rstrip('/')}/" if prefix else ""}
    while True:
        page = filesystem.call_s3("list_objects_v2", **request)
        for entry in page.get("Contents", ()):
            yield f"{bucket}/{entry['Key']}", int(entry["Size"])
        if not page.get("IsTruncated"):
            return
        request["ContinuationToken"] = page["NextContinuationToken"]


def _walk(
    url: str, filesystem: fsspec.AbstractFileSystem, path: str, above: frozenset[str] = frozenset()
) -> Iterator[tuple[str, int]]:
    """Files below a folder in the order in which an object store lists keys, a folder at a time.

    A symbolic link is followed, but not back into a folder that the walk is in.
    """
    if is_local(url):
        real = os.path.realpath(path)
        if real in above:
            return
        above |= {real}
    try:
        found = _patiently(url, lambda: filesystem.ls(path, detail=True))
    except (FileNotFoundError, NotADirectoryError):
        return
    entries = [(entry, _kind(entry)) for entry in found]
    folders = {entry["name"].rstrip("/") + "/" for entry, kind in entries if kind == "directory"}
    sizes = {entry["name"]: int(entry["size"] or 0) for entry, kind in entries if kind == "file"}
    for name in sorted(folders | sizes.keys()):
        if name in folders:
            yield from _walk(url, filesystem, name.rstrip("/"), above)
        elif name != path:
            yield name, sizes[name]


def _kind(entry: Mapping[str, Any]) -> str:
    """file, directory or other; a symbolic link is what it leads to, and a file where that is missing."""
    if not entry.get("islink"):
        return str(entry["type"])
    path = Path(entry["name"])
    if path.is_dir():
        return "directory"
    return "file" if path.is_file() or not path.exists() else "other"
