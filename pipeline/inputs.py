"""What `videos=` and `images=` mean (a file, folder, glob, prefix or list), as a stream of sources."""

import csv
import io
import itertools
import posixpath
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from pipeline import storage
from pipeline.columns import first_column
from pipeline.config import DecodeLimits
from pipeline.contained import contained
from pipeline.errors import GwmError, UnitError, printable
from pipeline.images import image_size
from pipeline.storage_errors import without_secrets

VIDEO_SUFFIXES = frozenset(
    (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".mts", ".m2ts", ".ts", ".wmv", ".flv")
)
IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"))
LIST_SUFFIXES = frozenset((".txt", ".csv", ".parquet"))
LIST_COLUMNS = ("url", "path", "file", "video", "image")
FRAMES_LOOKED_AT = 6
MAX_FRAMES = 200_000
"""A folder of more numbered images is a collection: two hours of video have fewer."""
LOOKING = DecodeLimits(timeout_s=60.0)
"""For what is read before the work is planned."""

Kind = Literal["video", "frames", "image"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One video file, one folder of numbered frames, or one image."""

    url: str
    name: str
    """Path relative to the input root (`a/b.mp4`; `blackswan` for a folder of frames); stable across runs."""
    kind: Kind
    size_bytes: int | None = None
    """None where the input is a list."""


def find_videos(spec: str) -> Iterator[Source]:
    """The videos of `videos=`: video files, and folders whose images are numbered (one source each).

    Raises GwmError where nothing is there, or nothing of it is a video.
    """
    yield from _at_least_one(_find(spec, images=False), spec, "video")


def find_images(spec: str) -> Iterator[Source]:
    """The images and videos of `images=`.

    A folder of images of one size whose names are all digits, evenly counted, is one source of kind `frames`,
    so that the object is chosen consistently over it; other images stand alone, as do the images of a list.
    """
    yield from _at_least_one(_find(spec, images=True), spec, "image or video")


def refuse_images(spec: str) -> None:
    """GwmError where `images=` names images that are not frames of a video, or nothing at all."""
    alone = next((source.name for source in find_images(spec) if source.kind == "image"), None)
    if alone is not None:
        raise GwmError(
            f"adapt=true learns from motion, and {without_secrets(alone)} is a single image: "
            "give videos or folders of numbered frames."
        )


def absolute_spec(spec: str) -> str:
    """What `videos=` and `images=` mean from every folder: a worker has one of its own."""
    return storage.absolute(spec) if storage.is_local(spec) else spec


def input_root(spec: str) -> str:
    """The folder from which the names of the sources that `spec` means are counted."""
    if _has_glob(spec) and not storage.exists(spec):
        return _split_glob(spec)[0]
    if storage.is_folder(spec):
        return storage.absolute(spec)
    if storage.exists(spec):
        return posixpath.dirname(storage.absolute(spec))
    if storage.is_local(spec):
        raise GwmError(f"There is no file or folder {spec}.")
    return _split_glob(f"{spec}*")[0]


def frame_urls(source: Source) -> list[str]:
    """The frames of a source of kind `frames`, by number."""
    numbered = [
        (number, url) for url in storage.list_folder(source.url) if (number := _number(url)) is not None
    ]
    return [url for _, url in sorted(numbered)]


def _find(spec: str, *, images: bool) -> Iterator[Source]:
    if _has_glob(spec) and not storage.exists(spec):
        root, pattern = _split_glob(spec)
        yield from _group(_matching(root, pattern), root, images=images)
    elif storage.is_folder(spec):
        root = storage.absolute(spec)
        yield from _group(storage.list_file_sizes(root), root, images=images)
    elif storage.exists(spec):
        yield from _find_file(storage.absolute(spec), images=images)
    elif not storage.is_local(spec):
        # A prefix of keys that is no folder: s3://bucket/videos/2024-
        root, pattern = _split_glob(f"{spec}*")
        yield from _group(_matching(root, pattern), root, images=images)
    else:
        raise GwmError(f"There is no file or folder {spec}.")


def _find_file(url: str, *, images: bool) -> Iterator[Source]:
    suffix = _suffix(url)
    if suffix in LIST_SUFFIXES:
        for entry in _list_entries(url):
            yield from _listed(entry, posixpath.dirname(url), images=images)
    elif suffix in VIDEO_SUFFIXES or (images and suffix in IMAGE_SUFFIXES):
        kind: Kind = "video" if suffix in VIDEO_SUFFIXES else "image"
        yield Source(url=url, name=posixpath.basename(url), kind=kind, size_bytes=storage.size_bytes(url))


def _listed(entry: str, folder: str, *, images: bool) -> Iterator[Source]:
    """The source of one line of a list; a relative path counts from the list's folder."""
    anchored = "://" in entry or entry.startswith(("/", "~"))
    url = storage.absolute(entry if anchored else storage.join(folder, entry))
    name = re.sub(r"^[a-z0-9]+://", "", url).lstrip("/") if anchored else posixpath.normpath(entry)
    suffix = _suffix(url)
    if suffix in VIDEO_SUFFIXES:
        yield Source(url=url, name=name, kind="video")
    elif suffix in IMAGE_SUFFIXES:
        if images:
            yield Source(url=url, name=name, kind="image")
    else:
        yield Source(url=url, name=name, kind="frames")


def _list_entries(url: str) -> Iterator[str]:
    """The lines of a text file, or the first fitting column of a CSV or Parquet file, without repetitions."""
    entries: Iterable[object]
    if _suffix(url) == ".parquet":
        entries = first_column(url, LIST_COLUMNS, LOOKING)
    else:
        try:
            text = storage.read_bytes(url).decode("utf-8-sig")
            entries = _csv_column(text) if _suffix(url) == ".csv" else text.splitlines()
        except (UnicodeDecodeError, csv.Error) as error:
            raise GwmError(f"{url} is not a list that can be read: {error}.") from error
    lines = (str(entry).strip() for entry in entries if entry is not None)
    yield from dict.fromkeys(line for line in lines if line and not line.startswith("#"))


def _csv_column(text: str) -> list[str]:
    rows = list(csv.reader(io.StringIO(text)))
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    named = [header.index(name) for name in LIST_COLUMNS if name in header]
    column = named[0] if named else 0
    return [row[column] for row in rows[1 if named else 0 :] if len(row) > column]


@dataclass(slots=True)
class _Folder:
    """A folder whose files are still arriving: its images wait until it is known whether they are frames."""

    url: str
    images: list[tuple[str, int]] = field(default_factory=list)
    all_numbered: bool = True


def _group(files: Iterable[tuple[str, int]], root: str, *, images: bool) -> Iterator[Source]:
    """Sources of a sorted stream of files; waits for at most the open folders' numbered images."""
    open_folders: list[_Folder] = []
    for url, num_bytes in files:
        folder = posixpath.dirname(url)
        while open_folders and not f"{folder}/".startswith(f"{open_folders[-1].url}/"):
            yield from _close(open_folders.pop(), root, images=images)
        suffix = _suffix(url)
        if suffix in VIDEO_SUFFIXES:
            yield Source(url=url, name=storage.relative(url, root), kind="video", size_bytes=num_bytes)
        elif suffix in IMAGE_SUFFIXES:
            if not open_folders or open_folders[-1].url != folder:
                open_folders.append(_Folder(url=folder))
            current = open_folders[-1]
            current.all_numbered &= _number(url, digits_only=images) is not None
            current.images.append((url, num_bytes))
            current.all_numbered &= len(current.images) <= MAX_FRAMES or not images
            if not current.all_numbered:
                yield from _close(current, root, images=images)
                current.images.clear()
    while open_folders:
        yield from _close(open_folders.pop(), root, images=images)


def _close(folder: _Folder, root: str, *, images: bool) -> Iterator[Source]:
    """A folder's frames as one source, or its images one by one."""
    if folder.all_numbered and (not images or _are_frames([url for url, _ in folder.images])):
        name = posixpath.basename(root) if folder.url == root else storage.relative(folder.url, root)
        num_bytes = sum(size for _, size in folder.images)
        yield Source(url=folder.url, name=name, kind="frames", size_bytes=num_bytes)
    elif images:
        for url, num_bytes in folder.images:
            yield Source(url=url, name=storage.relative(url, root), kind="image", size_bytes=num_bytes)


def _are_frames(urls: list[str]) -> bool:
    """Whether numbered images are one video and not a photo collection.

    The numbers of frames run on with (almost) one step, and all frames have one size; a few are looked at.
    """
    numbered = sorted((int(posixpath.splitext(posixpath.basename(url))[0]), url) for url in urls)
    numbers = [number for number, _ in numbered]
    step = min((after - before for before, after in itertools.pairwise(numbers)), default=0)
    if step == 0 or numbers[-1] - numbers[0] >= 2 * step * len(numbers):
        return False
    looked_at = numbered[:: max(1, len(numbered) // FRAMES_LOOKED_AT)]
    return len({size for _, url in looked_at if (size := _image_size(url))}) <= 1


def _image_size(url: str) -> tuple[int, ...]:
    """Height and width, or nothing for what is no image: it has no say, and a stage will report it."""
    try:
        return contained(LOOKING, image_size, url)
    except UnitError:
        return ()


def _matching(root: str, pattern: str) -> Iterator[tuple[str, int]]:
    """Files below `root` that match the pattern, or lie in a folder that does."""
    matches = storage.glob_matcher(pattern)
    for url, num_bytes in storage.list_file_sizes(root):
        parts = storage.relative(url, root).split("/")
        if any(matches("/".join(parts[:count])) for count in range(1, len(parts) + 1)):
            yield url, num_bytes


def _at_least_one(sources: Iterator[Source], spec: str, what: str) -> Iterator[Source]:
    first = next(sources, None)
    if first is None:
        raise GwmError(f"There is no {what} in {without_secrets(spec)}.")
    yield from map(_travelling, itertools.chain((first,), sources))


def _travelling(source: Source) -> Source:
    """The source as rows can carry it: a file name that is no UTF-8 is missed by its stage under its escaped name."""
    try:
        f"{source.name}{source.url}".encode()
    except UnicodeEncodeError:
        return replace(source, name=printable(source.name), url=printable(source.url))
    return source


def _split_glob(spec: str) -> tuple[str, str]:
    """The folder before the first wildcard, and the pattern below it."""
    parts = spec.split("/")
    first = next(index for index, part in enumerate(parts) if _has_glob(part))
    return storage.absolute("/".join(parts[:first]) or ("/" if spec.startswith("/") else ".")), "/".join(
        parts[first:]
    )


def _has_glob(text: str) -> bool:
    return any(character in text for character in "*?[")


def _suffix(url: str) -> str:
    return posixpath.splitext(url)[1].lower()


def _number(url: str, *, digits_only: bool = False) -> int | None:
    """The number in an image's name, or None: `00012.jpg`; unless digits only, `frame_12.png` too."""
    stem, suffix = posixpath.splitext(posixpath.basename(url))
    match = re.fullmatch(r"\d+" if digits_only else r".*?(\d+)", stem)
    return int(match[match.lastindex or 0]) if match and suffix.lower() in IMAGE_SUFFIXES else None
