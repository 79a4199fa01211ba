"""Masks as PNG files: beside each other, as DAVIS 2016 keeps them, or as YouTube-VOS does.

| format      | frames                             | masks                                         |
|-------------|------------------------------------|-----------------------------------------------|
| png         | none                               | IMAGE.png, VIDEO/00000.png: 0, 255            |
| davis       | JPEGImages/480p/SEQUENCE/FRAME.jpg | Annotations/480p/SEQUENCE/FRAME.png: 0, 255   |
| youtube_vos | JPEGImages/SEQUENCE/FRAME.jpg      | Annotations/SEQUENCE/FRAME.png: palette, 0, 1 |
"""

from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import PurePosixPath

import numpy as np

from pipeline import storage
from pipeline.config import ExportConfig
from pipeline.errors import GwmError
from pipeline.file_names import safe_key
from pipeline.formats.shards import (
    Folders,
    Inputs,
    by_source,
    each_shard,
    mask_dataset,
    mask_of,
    masked,
    read_mask_rows,
)
from pipeline.metrics import Mask
from pipeline.pictures import encode_indexed_png, encode_png
from pipeline.predictions import sequence_name
from pipeline.summary import write_json

FramesOf = dict[str, list[str]]
"""By sequence, the frames in which the object is seen."""


def write_png(config: ExportConfig) -> Counter[str]:
    """One PNG for each mask, called like its image; frames have their number in a folder called like their video."""
    return each_shard(mask_dataset(config), partial(_png_shard, config))


def write_davis(config: ExportConfig) -> Counter[str]:
    """Frames and masks of videos in the layout of DAVIS 2016."""
    return each_shard(mask_dataset(config), _VideoFolders(config, "480p", _grey_png))


def write_youtube_vos(config: ExportConfig) -> Counter[str]:
    """Frames and masks of videos in the layout of YouTube-VOS, with meta.json."""
    folders = _VideoFolders(config, "", _palette_png)
    counts = each_shard(mask_dataset(config), folders)
    videos = {
        sequence: {"objects": {"1": {"category": "object", "frames": sorted(frames)}}}
        for sequence, frames in sorted(folders.seen.items())
    }
    write_json(storage.join(config.output, "meta.json"), {"videos": videos})
    return counts


def _png_shard(config: ExportConfig, shard: str) -> Counter[str]:
    rows, counts = masked(read_mask_rows(shard, config.decode))
    for row in rows:
        key = safe_key(row.source, is_folder=row.frame_index is not None)
        key += "" if row.frame_index is None else f"/{row.frame_index:05d}"
        storage.write_bytes(storage.join(config.output, f"{key}.png"), _grey_png(mask_of(row, config.decode)))
    return counts


class _VideoFolders:
    """Writes a shard's frames and masks into the folders of their sequences."""

    def __init__(self, config: ExportConfig, resolution: str, encode: Callable[[Mask], bytes]) -> None:
        self._config = config
        self._inputs = Inputs(str(config.images), config.decode)
        self._folders = [
            storage.join(config.output, part, resolution) for part in ("JPEGImages", "Annotations")
        ]
        self._encode = encode
        self._sequences = Folders()
        self.seen: FramesOf = defaultdict(list)

    def __call__(self, shard: str) -> Counter[str]:
        """How many frames were written, and how many had no mask."""
        rows, counts = masked(read_mask_rows(shard, self._config.decode))
        images, annotations = self._folders
        for source, run in by_source(rows):
            if run[0].frame_index is None:
                raise GwmError(
                    f"format={self._config.format} has videos only, and {source} is a single image."
                )
            sequence = self._sequences.name(sequence_name(source), source)
            names = [safe_key(PurePosixPath(name).stem) for name in self._inputs.file_names(run)]
            for row, name, jpeg in zip(run, names, self._inputs.jpegs(run), strict=True):
                mask = mask_of(row, self._config.decode)
                storage.write_bytes(storage.join(images, sequence, f"{name}.jpg"), jpeg)
                storage.write_bytes(storage.join(annotations, sequence, f"{name}.png"), self._encode(mask))
                if mask.any():
                    self.seen[sequence].append(name)
        return counts


def _grey_png(mask: Mask) -> bytes:
    return encode_png(mask.astype(np.uint8) * 255)


def _palette_png(mask: Mask) -> bytes:
    return encode_indexed_png(mask.astype(np.uint8))
