"""Given segmentations, found by sequence and frame: mask shards, or a folder or zip of PNGs.

A PNG is SEQUENCE/FRAME.png, below any folder; a single image's is NAME.png. Its values are 0/255 or 0/1; those of
a single image may be grey, for probabilities. A row of a mask shard belongs to a sequence by the last name of its
source, without a video's suffix, and its frame index. Members of a zip are read in memory; their names never become
paths.
"""

import lzma
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Literal

from pipeline import storage
from pipeline.columns import read_columns
from pipeline.config import DecodeLimits
from pipeline.contained import contained
from pipeline.dataset import Dataset
from pipeline.errors import GwmError, UnitError
from pipeline.images import Image, decode_grey, read_grey
from pipeline.inputs import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from pipeline.layouts import AnnotatedSequence
from pipeline.masks import decode_mask, readable_mask
from pipeline.metrics import Map, Mask, binary_mask

MAX_PNG_BYTES = 64 * 2**20
"""A larger member of a zip is no mask."""

BROKEN_ZIP = (
    zipfile.BadZipFile,
    NotImplementedError,
    RuntimeError,
    ValueError,
    EOFError,
    OSError,
    lzma.LZMAError,
    struct.error,
    zlib.error,
)
"""What zipfile raises for damaged, encrypted and unknown content."""
ROW_COLUMNS = ("source", "frame_index", "height_px", "width_px", "mask_rle", "error")

Kind = Literal["shards", "folder", "zip"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where one frame's mask lies."""

    file: str
    """URL of the PNG or of the shard, or the zip's member."""
    row: int = 0
    """Row of the shard."""
    source: str = ""
    """Source of the shard's row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """All masks of one prediction."""

    url: str
    kind: Kind
    places: dict[tuple[str, int | str], list[Place]] = field(repr=False)
    """By (sequence, frame index or frame name); by ("", name) for single images."""

    def find(self, sequence: AnnotatedSequence, position: int) -> Place:
        """Where the mask of a frame lies; GwmError names one that is missing or not unique."""
        name = sequence.frame_names[position]
        keys: list[tuple[str, int | str]] = [(sequence.name, position), (sequence.name, name)]
        frame = f"{sequence.name}/{name}"
        if not sequence.is_video:
            keys, frame = [("", name)], name
        found = next((self.places[key] for key in keys if key in self.places), [])
        if not found:
            raise GwmError(f"masks={self.url} holds no mask of {frame}.")
        if len(found) > 1:
            several = " and ".join(place.source or place.file for place in found[:2])
            raise GwmError(f"masks={self.url} holds two masks of {frame}: {several}.")
        return found[0]


def find_predictions(url: str, limits: DecodeLimits) -> Predictions:
    """The masks at a URL: a zip, a mask dataset (it has a dataset.json), or a folder of PNGs."""
    kind: Kind
    if url.lower().endswith(".zip"):
        kind, places = "zip", _png_places(_zip_members(url))
    elif storage.exists(storage.join(url, "dataset.json")):
        kind, places = "shards", _shard_places(url, limits)
    else:
        kind, places = "folder", _png_places((file, file) for file in storage.list_files(url))
    if not places:
        raise GwmError(f"masks={url} holds no masks: PNGs SEQUENCE/FRAME.png, or what gwm segment writes.")
    return Predictions(url=storage.absolute(url), kind=kind, places=places)


def read_predictions(
    url: str,
    kind: Kind,
    places: Iterable[Place],
    limits: DecodeLimits,
    meaning: Callable[[Image], Map] = binary_mask,
) -> Iterator[Map]:
    """The masks at the given places, in order; GwmError names one that cannot be read.

    `meaning` makes a mask, or probabilities, of a PNG's grey values; what lies in shards is binary.
    """
    if kind == "shards":
        yield from _read_rows(places, limits)
    elif kind == "folder":
        for place in places:
            yield meaning(_readable(partial(contained, limits, read_grey, place.file)))
    else:
        with storage.open_read(url) as file, _archive(url, file) as archive:
            for place in places:
                name, member = f"{url}: {place.file}", _read_member(url, archive, place.file)
                yield meaning(_readable(partial(contained, limits, decode_grey, name, member)))


def read_mask(url: str, limits: DecodeLimits) -> Mask:
    """The foreground of a mask image."""
    return binary_mask(_readable(partial(contained, limits, read_grey, url)))


def _readable(read: Callable[[], Image]) -> Image:
    try:
        return read()
    except UnitError as error:
        raise GwmError(f"{error}.") from error


def _png_places(files: Iterable[tuple[str, str]]) -> dict[tuple[str, int | str], list[Place]]:
    """Places by the last two names of each PNG's path, and by its own name alone."""
    places: dict[tuple[str, int | str], list[Place]] = {}
    for path, file in files:
        pure = PurePosixPath(path.replace("\\", "/"))
        if pure.suffix.lower() != ".png":
            continue
        inner = PurePosixPath(pure.stem)  # gwm segment writes the mask of a.jpg as a.jpg.png
        name = inner.stem if inner.suffix.lower() in IMAGE_SUFFIXES else pure.stem
        for key in ((sequence_name(pure.parent.name), name), ("", name)):
            places.setdefault(key, []).append(Place(file=file))
    return places


def _zip_members(url: str) -> list[tuple[str, str]]:
    with storage.open_read(url) as file, _archive(url, file) as archive:
        return [(name, name) for name in archive.namelist()]


def _archive(url: str, file: BinaryIO) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except BROKEN_ZIP as error:
        raise GwmError(f"masks={url} is not a zip file that can be read: {error}.") from error


def _read_member(url: str, archive: zipfile.ZipFile, name: str) -> bytes:
    """A member's bytes: at most as many as the archive claims, and it may not claim too many."""
    info = archive.getinfo(name)
    if info.file_size > MAX_PNG_BYTES:
        raise GwmError(f"{url}: {name} is no mask: it unpacks to {info.file_size} bytes.")
    try:
        return archive.read(info)
    except BROKEN_ZIP as error:
        raise GwmError(f"{url}: {name} cannot be unpacked: {error}.") from error


def _shard_places(url: str, limits: DecodeLimits) -> dict[tuple[str, int | str], list[Place]]:
    """Places by sequence and frame index; of single images by folder and name, and by name alone."""
    places: dict[tuple[str, int | str], list[Place]] = {}
    for shard in Dataset.read(url, kind="masks").shards():
        columns = read_columns(shard, ("source", "frame_index"), limits)
        for row, (source, frame_index) in enumerate(zip(*columns.values(), strict=True)):
            place = Place(file=shard, row=row, source=source)
            for key in _row_keys(source, frame_index):
                places.setdefault(key, []).append(place)
    return places


def _row_keys(source: str, frame_index: int | None) -> list[tuple[str, int | str]]:
    path = PurePosixPath(source)
    if frame_index is None:
        return [(path.parent.name, path.stem), ("", path.stem)]
    return [(sequence_name(source), frame_index)]


def sequence_name(source: str) -> str:
    """The sequence that a video's source means: its last name, without a video's suffix."""
    path = PurePosixPath(source)
    return path.stem if path.suffix.lower() in VIDEO_SUFFIXES else path.name


def _read_rows(places: Iterable[Place], limits: DecodeLimits) -> Iterator[Mask]:
    """Masks of shard rows; the shard read last is kept, as a sequence's frames lie together."""
    opened, columns = "", dict[str, list[Any]]()
    for place in places:
        if place.file != opened:
            opened, columns = place.file, read_columns(place.file, ROW_COLUMNS, limits)
        row = {name: column[place.row] for name, column in columns.items()}
        where = f"{row['source']}, frame {row['frame_index']},"
        if row["mask_rle"] is None:
            raise GwmError(f"{where} has no mask: {row['error']}.")
        with readable_mask(where):
            mask = contained(limits, decode_mask, row["mask_rle"], row["height_px"], row["width_px"])
        yield mask
