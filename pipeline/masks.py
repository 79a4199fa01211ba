"""The mask record: one row for each image or video frame, masks as COCO run lengths at the source's size."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pycocotools import mask as coco

from pipeline.errors import GwmError, UnitError

MASK_SCHEMA_VERSION = 1
NUM_ERRORS = b"num_errors"
"""Schema metadata: rows of the shard without a mask."""
MAX_INDEX = 255
"""An indexed PNG has no room for more objects."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskRow:
    """One image or frame; where `error` says why it has no mask, only `source` and `frame_index` are set."""

    source: str
    """Image or video, relative to the input root; stable across runs."""
    frame_index: int | None = None
    """0-based in presentation order; none for a single image."""
    height_px: int | None = None
    """Displayed height, after the rotation that an image's EXIF data or a video asks for."""
    width_px: int | None = None
    mask_rle: bytes | None = None
    """The object: COCO compressed run lengths of height_px x width_px pixels."""
    area_fraction: float | None = None
    """Share of the pixels that belong to the object."""
    foreground_score: float | None = None
    """Mean object probability inside the mask, 0.5 to 1; 0 for an empty mask."""
    segments_rle: list[bytes] | None = None
    """The K regions, each pixel in its most probable one; by option."""
    object_ids: list[int] | None = None
    """Numbers of the separate objects from 1, the same for one object in all frames of a video; by option."""
    objects_rle: list[bytes] | None = None
    """The masks of `object_ids`, which do not overlap; specks of the mask belong to none."""
    error: str | None = None
    """Why this image has no mask."""


def mask_schema(*, source: str, segments: bool, objects: bool = False) -> pa.Schema:
    """The columns of a mask shard; `source` names the work unit's input in the schema metadata."""
    fields = [
        pa.field("source", pa.string(), nullable=False),
        pa.field("frame_index", pa.int32()),
        pa.field("height_px", pa.int32()),
        pa.field("width_px", pa.int32()),
        pa.field("mask_rle", pa.binary()),
        pa.field("area_fraction", pa.float64()),
        pa.field("foreground_score", pa.float64()),
    ]
    if segments:
        fields.append(pa.field("segments_rle", pa.list_(pa.binary())))
    if objects:
        fields.append(pa.field("object_ids", pa.list_(pa.int32())))
        fields.append(pa.field("objects_rle", pa.list_(pa.binary())))
    fields.append(pa.field("error", pa.string()))
    metadata = {b"source": source.encode(), b"schema_version": str(MASK_SCHEMA_VERSION).encode()}
    return pa.schema(fields, metadata=metadata)


def mask_table(rows: Sequence[MaskRow], *, source: str, segments: bool, objects: bool = False) -> pa.Table:
    """A mask shard's table, rows in the order given."""
    schema = mask_schema(source=source, segments=segments, objects=objects)
    num_errors = sum(row.error is not None for row in rows)
    schema = schema.with_metadata({**schema.metadata, NUM_ERRORS: str(num_errors).encode()})
    columns = {name: [getattr(row, name) for row in rows] for name in schema.names}
    return pa.table(columns, schema=schema)


def mask_rows(table: pa.Table) -> list[MaskRow]:
    """The rows of a mask shard."""
    names = [name for name in table.schema.names if name in MaskRow.__slots__]
    return [MaskRow(**row) for row in table.select(names).to_pylist()]


def encode_mask(mask: npt.NDArray[np.bool_]) -> bytes:
    """COCO compressed run lengths of a mask [H, W]."""
    return bytes(coco.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"])


def decode_mask(rle: bytes, height_px: int, width_px: int) -> npt.NDArray[np.bool_]:
    """The mask [H, W] of COCO run lengths. ValueError if they cover more than H x W pixels."""
    return np.asarray(coco.decode({"size": [height_px, width_px], "counts": rle}), dtype=np.bool_)


@contextmanager
def readable_mask(owner: str) -> Iterator[None]:
    """Makes one sentence of whatever reading a damaged mask raises; `owner` says whose mask it is."""
    try:
        yield
    except (UnitError, ArithmeticError, TypeError, ValueError) as error:
        raise GwmError(f"{owner} has a mask that cannot be read: {error}.") from error


def indexed_objects(row: MaskRow) -> npt.NDArray[np.uint8]:
    """The number of the object at each pixel [H, W], 0 for none; objects above 255 are left out."""
    size = (row.height_px or 0, row.width_px or 0)
    numbers = np.zeros(size, np.uint8)
    for number, rle in zip(row.object_ids or (), row.objects_rle or (), strict=True):
        if number <= MAX_INDEX:
            numbers[decode_mask(rle, *size)] = number
    return numbers
