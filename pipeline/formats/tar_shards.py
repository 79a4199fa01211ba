"""WebDataset: tar files of samples, each an image, its mask and what is known of them."""

import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from functools import partial

import numpy as np

from pipeline import storage
from pipeline.config import ExportConfig
from pipeline.formats.shards import (
    Inputs,
    by_source,
    each_shard,
    mask_dataset,
    mask_of,
    masked,
    read_mask_rows,
)
from pipeline.manifest import unit_of
from pipeline.pictures import encode_png

DESCRIPTION = ("source", "frame_index", "height_px", "width_px", "area_fraction", "foreground_score")


def write_webdataset(config: ExportConfig) -> Counter[str]:
    """One UNIT.tar for each mask shard; a sample has the members KEY.jpg, KEY.mask.png (0 and 255) and KEY.json."""
    inputs = Inputs(str(config.images), config.decode)
    return each_shard(mask_dataset(config), partial(_write_tar, config, inputs))


def _write_tar(config: ExportConfig, inputs: Inputs, shard: str) -> Counter[str]:
    unit = unit_of(shard)
    rows, counts = masked(read_mask_rows(shard, config.decode))
    if not rows:
        return counts
    images = (jpeg for _, run in by_source(rows) for jpeg in inputs.jpegs(run))
    with (
        storage.open_write(storage.join(config.output, f"{unit}.tar")) as file,
        tarfile.open(fileobj=file, mode="w") as archive,
    ):
        for number, (row, jpeg) in enumerate(zip(rows, images, strict=True)):
            mask = mask_of(row, config.decode).astype(np.uint8) * 255
            description = {name: getattr(row, name) for name in DESCRIPTION}
            sample = {"jpg": jpeg, "mask.png": encode_png(mask), "json": json.dumps(description).encode()}
            for member, data in _members(f"{unit}-{number:05d}", sample):
                archive.addfile(member, io.BytesIO(data))
    return counts


def _members(key: str, sample: dict[str, bytes]) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    for suffix, data in sample.items():
        member = tarfile.TarInfo(f"{key}.{suffix}")
        member.size = len(data)
        yield member, data
