"""A chunk's shard of masks, and the pictures beside it by option."""

import json
import time
from pathlib import PurePosixPath

import cv2
import numpy as np

from pipeline import storage
from pipeline.config import SegmentConfig
from pipeline.dataset import Dataset
from pipeline.file_names import safe_key
from pipeline.masks import MaskRow, decode_mask, indexed_objects, mask_table
from pipeline.pictures import encode_indexed_png, encode_jpeg, encode_png, overlay
from pipeline.records import Row, decode_image

STAGES = ("plan_chunks", "load_chunk", "segment_images", "refine_masks", "write_mask_shard")


def write_mask_shard(row: Row, config: SegmentConfig, dataset: Dataset) -> Row:
    """Writes the chunk's shard, or puts a failed unit into quarantine; the unit's summary row.

    Pictures are written before the shard, whose existence says that all of the unit is there.
    """
    began = time.monotonic()
    summary = _summary(row)
    if row["status"] == "failed":
        failure = json.loads(row["failure"])
        where = {"source": row["source"], "stage": failure["stage"], "attempts": failure["attempts"]}
        dataset.quarantine(row["unit"], **where, error=row["failure"])
        return {**summary, "status": "quarantined", "reason": failure["reason"]}
    if row["status"] != "planned":
        return summary
    masks: list[MaskRow] = list(row["masks"])
    if config.write_png:
        _write_pictures(masks, _picture_keys(row), row["pictures"], dataset.url)
    table = mask_table(
        masks, source=row["source"], segments=config.write_segments, objects=config.write_objects
    )
    entry = dataset.write_shard(row["unit"], table)
    broken = [mask for mask in masks if mask.error is not None]
    return {
        **summary,
        "status": "done",
        "reason": broken[0].error if broken else "",
        "num_rows": entry.num_rows,
        "num_bytes": entry.num_bytes,
        "num_errors": len(broken),
        "sha256": entry.sha256,
        "seconds_write_mask_shard": time.monotonic() - began,
    }


def _picture_keys(row: Row) -> list[str]:
    """Paths of the pictures without suffix: the image's own, or its video's and the frame's name or number."""
    if row["kind"] == "images":
        return [safe_key(name) for name in row["names"]]
    folder = safe_key(row["names"][0], is_folder=True)
    if row["kind"] == "frames":
        return [f"{folder}/{safe_key(PurePosixPath(url).stem)}" for url in row["urls"]]
    return [f"{folder}/{number:05d}" for number in row["frame_index"]]


def _write_pictures(masks: list[MaskRow], keys: list[str], pictures: list[bytes], output: str) -> None:
    """png/KEY.png, the mask (0/255), overlay/KEY.jpg, the image with the object marked, and objects/KEY.png."""
    grounds = iter(pictures)
    for row, key in zip(masks, keys, strict=True):
        if row.mask_rle is None or row.height_px is None or row.width_px is None:
            continue
        mask = decode_mask(row.mask_rle, row.height_px, row.width_px).astype(np.uint8) * 255
        storage.write_bytes(storage.join(output, "png", f"{key}.png"), encode_png(mask))
        if row.objects_rle is not None:
            objects = encode_indexed_png(indexed_objects(row))
            storage.write_bytes(storage.join(output, "objects", f"{key}.png"), objects)
        ground = decode_image(next(grounds))
        shown = cv2.resize(mask, ground.shape[1::-1], interpolation=cv2.INTER_NEAREST) > 0
        marked = encode_jpeg(overlay(ground, shown))
        storage.write_bytes(storage.join(output, "overlay", f"{key}.jpg"), marked)


def _summary(row: Row) -> Row:
    """The columns that every unit ends with."""
    return {
        "unit": row["unit"],
        "source": row["source"],
        "status": row["status"],
        "reason": "",
        "num_units": int(row.get("num_units") or 1),
        "num_inputs": int(row.get("num_inputs") or 0),
        "input_units": int(row.get("input_units") or 0),
        "num_rows": 0,
        "num_bytes": 0,
        "num_errors": int(row.get("num_errors") or 0),
        "sha256": "",
        **{f"seconds_{stage}": float(row.get(f"seconds_{stage}") or 0.0) for stage in STAGES},
    }
