"""Given segmentations, found by sequence and frame: mask shards, or a folder or zip of PNGs.

A PNG is SEQUENCE/FRAME.png, below any folder; a single image's is NAME.png. Its values are 0/255 or 0/1. A
row of a mask shard belongs to a sequence by the last name of its source, without a video's suffix, and its
frame index. Members of a zip are read in memory; their names never become paths.
"""

import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal

import cv2
import numpy as np
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.dataset import Dataset
from pipeline.errors import GwmError
from pipeline.inputs import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from pipeline.layouts import AnnotatedSequence
from pipeline.masks import decode_mask
from pipeline.metrics import Mask, binary_mask

MAX_PNG_BYTES = 64 * 2**20
"""A larger member of a zip is no mask."""

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


def find_predictions(url: str) -> Predictions:
    """The masks at a URL: a zip, a mask dataset (it has a dataset.json), or a folder of PNGs."""
    kind: Kind
    if url.lower().endswith(".zip"):
        kind, places = "zip", _png_places(_zip_members(url))
    elif storage.exists(storage.join(url, "dataset.json")):
        kind, places = "shards", _shard_places(url)
    else:
        kind, places = "folder", _png_places((file, file) for file in storage.list_files(url))
    if not places:
        raise GwmError(f"masks={url} holds no masks: PNGs SEQUENCE/FRAME.png, or what gwm segment writes.")
    return Predictions(url=storage.absolute(url), kind=kind, places=places)


def read_predictions(url: str, kind: Kind, places: Iterable[Place]) -> Iterator[Mask]:
    """The masks at the given places, in order; GwmError names one that cannot be read."""
    if kind == "shards":
        yield from _read_rows(places)
    elif kind == "folder":
        for place in places:
            yield read_mask(place.file, storage.read_bytes(place.file))
    else:
        with storage.open_read(url) as file, zipfile.ZipFile(file) as archive:
            for place in places:
                yield read_mask(f"{url}: {place.file}", _read_member(url, archive, place.file))


def read_mask(name: str, encoded: bytes) -> Mask:
    """The foreground of an encoded mask image."""
    data = np.frombuffer(encoded, np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE) if data.size else None
    if image is None:
        raise GwmError(f"{name} is not an image that can be read.")
    return binary_mask(np.asarray(image, np.uint8))


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
    try:
        with storage.open_read(url) as file, zipfile.ZipFile(file) as archive:
            return [(name, name) for name in archive.namelist()]
    except zipfile.BadZipFile as error:
        raise GwmError(f"masks={url} is not a zip file.") from error


def _read_member(url: str, archive: zipfile.ZipFile, name: str) -> bytes:
    info = archive.getinfo(name)
    if info.file_size > MAX_PNG_BYTES:
        raise GwmError(f"{url}: {name} is no mask: it unpacks to {info.file_size} bytes.")
    try:
        return archive.read(info)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise GwmError(f"{url}: {name} cannot be unpacked: {error}.") from error


def _shard_places(url: str) -> dict[tuple[str, int | str], list[Place]]:
    """Places by sequence and frame index; of single images by folder and name, and by name alone."""
    places: dict[tuple[str, int | str], list[Place]] = {}
    for shard in Dataset.read(url, kind="masks").shards():
        with storage.open_read(shard) as file:
            table = pq.read_table(file, columns=["source", "frame_index"])
        pairs = zip(table["source"].to_pylist(), table["frame_index"].to_pylist(), strict=True)
        for row, (source, frame_index) in enumerate(pairs):
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


def _read_rows(places: Iterable[Place]) -> Iterator[Mask]:
    """Masks of shard rows; the shard read last is kept, as a sequence's frames lie together."""
    opened, table = "", None
    for place in places:
        if table is None or place.file != opened:
            with storage.open_read(place.file) as file:
                opened, table = place.file, pq.read_table(file)
        row = table.slice(place.row, 1).to_pylist()[0]
        if row["mask_rle"] is None:
            raise GwmError(f"{row['source']}, frame {row['frame_index']}, has no mask: {row['error']}.")
        yield decode_mask(row["mask_rle"], row["height_px"], row["width_px"])
