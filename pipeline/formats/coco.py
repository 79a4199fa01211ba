"""COCO's JSON of annotations: the masks as compressed run lengths, one category, "object"."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO

from pycocotools import mask as coco

from pipeline import storage
from pipeline.config import DecodeLimits, ExportConfig
from pipeline.contained import contained
from pipeline.dataset import Dataset
from pipeline.formats.shards import Inputs, by_source, frame_path, mask_dataset, masked, read_mask_rows
from pipeline.masks import MaskRow, readable_mask
from pipeline.progress import Progress

CATEGORY = {"id": 1, "name": "object", "supercategory": "object"}


def write_coco(config: ExportConfig) -> Counter[str]:
    """One JSON file with `images` and `annotations`; an empty mask is an image without annotation.

    Ids count the rows with a mask from 1, in the order of the shards' names. The shards are read twice, so that no list
    of all images is held. With `images`, frames of folders have their files' names, otherwise their numbers.
    """
    dataset = mask_dataset(config)
    inputs = None if config.images is None else Inputs(config.images, config.decode)
    counts: Counter[str] = Counter()
    with storage.open_write(config.output) as file:
        file.write(b'{"categories": [' + json.dumps(CATEGORY).encode() + b'],\n"images": [')
        _write_items(file, _images(dataset, inputs, config.decode, counts))
        file.write(b'],\n"annotations": [')
        _write_items(file, _annotations(dataset, config.decode))
        file.write(b"]}\n")
    return counts


def _write_items(file: BinaryIO, items: Iterator[dict[str, Any]]) -> None:
    for number, item in enumerate(items):
        file.write(b",\n" if number else b"\n")
        file.write(json.dumps(item).encode())


def _images(
    dataset: Dataset, inputs: Inputs | None, limits: DecodeLimits, counts: Counter[str]
) -> Iterator[dict[str, Any]]:
    number = 0
    with Progress(unit="shards") as progress:
        for shard in dataset.shards():
            rows, found = masked(read_mask_rows(shard, limits))
            counts.update(found)
            for source, run in by_source(rows):
                names = [frame_path(row) for row in run] if inputs is None else inputs.file_names(run)
                for row, name in zip(run, names, strict=True):
                    number += 1
                    size = {"height": row.height_px, "width": row.width_px}
                    frame = (
                        {} if row.frame_index is None else {"video": source, "frame_index": row.frame_index}
                    )
                    yield {"id": number, "file_name": name, **size, **frame}
            progress.advance(**counts)


def _annotations(dataset: Dataset, limits: DecodeLimits) -> Iterator[dict[str, Any]]:
    image = number = 0
    for shard in dataset.shards():
        rows, _ = masked(read_mask_rows(shard, limits))
        for row in rows:
            image += 1
            if row.area_fraction:
                number += 1
                yield {"id": number, "image_id": image, **_annotation(row, limits)}


def _annotation(row: MaskRow, limits: DecodeLimits) -> dict[str, Any]:
    size = [row.height_px, row.width_px]
    with readable_mask(row.source):
        area, bbox = contained(limits, _area_and_bbox, {"size": size, "counts": row.mask_rle})
        segmentation = {"size": size, "counts": (row.mask_rle or b"").decode("ascii")}
    return {
        "category_id": CATEGORY["id"],
        "segmentation": segmentation,
        "area": area,
        "bbox": bbox,
        "iscrowd": 0,
        "score": row.foreground_score,
    }


def _area_and_bbox(rle: dict[str, Any]) -> tuple[int, list[float]]:
    """Pixels of a mask, and its box: left, top, width and height in pixels."""
    return int(coco.area(rle)), [float(side) for side in coco.toBbox(rle)]
