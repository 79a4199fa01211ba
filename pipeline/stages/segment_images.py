"""Masks of a chunk's images: the stage that holds the segmenter."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.config import SegmentConfig
from pipeline.errors import GwmError, UnitError
from pipeline.inference import ObjectRule, RegionModel, at_source, object_at_source
from pipeline.masks import MaskRow, decode_mask, encode_mask
from pipeline.objects import Objects, open_objects
from pipeline.records import Row, decode_image
from pipeline.stages.failure import failed_row
from pipeline.stages.load_chunk import is_followed, load_parts
from pipeline.torch_settings import set_up_torch
from pipeline.video_flow import VideoFlow


class ChunkRegions(NamedTuple):
    """What the network makes of a chunk's readable images, on its own grids."""

    regions: Float[Tensor, "N K h w"]
    object_probability: Float[Tensor, "N h w"]
    features: Float[Tensor, "N C i j"]

    def to_row(self) -> Row:
        """Columns that carry what masks are made of in a row."""
        return {name: getattr(self, name).cpu().numpy() for name in REGION_COLUMNS}


REGION_COLUMNS = ("regions", "object_probability")
IMAGES_AT_ONCE = 16
"""Images of one size whose masks a GPU brings to it together; on a CPU one by one, each within the cache."""


class SegmentImages:
    """Turns a chunk's images into run-length masks at their sources' sizes."""

    def __init__(self, config: SegmentConfig, device: str, num_threads: int) -> None:
        set_up_torch(num_threads)
        self._config = config
        self._model = RegionModel(
            config.model,
            config.merge,
            batch_size=config.batch_size,
            device=device,
            scales=config.input_scales,
        )
        self._video = ""
        self._rule: ObjectRule | None = None

    def __call__(self, row: Row) -> Row:
        """The row with `masks`, one MaskRow an image, instead of its images; other rows pass unchanged.

        Masks that are refined apart are left to `refine_masks`: the row then has what they are made of.
        """
        if row["status"] != "planned":
            return row
        began = time.monotonic()
        apart = self._config.refines_apart
        try:
            columns = self._regions(row).to_row() if apart else self._segmented(row)
        except GwmError:
            raise
        except Exception as error:
            return failed_row(row, "segment_images", error)
        used = ("images", "anchors", "flow", "has_flow", *(() if apart else ("pictures",)))
        kept = {name: value for name, value in row.items() if name not in used}
        return {**kept, **columns, "seconds_segment_images": time.monotonic() - began}

    def _segmented(self, row: Row) -> Row:
        """The chunk's `masks`, and its `pictures` where they are needed again; a followed video is loaded here."""
        follows = is_followed(row, self._config)
        objects = open_objects(follows) if self._config.write_objects else None
        masks: list[MaskRow] = []
        pictures: list[bytes] = []
        for part in load_parts(row, self._config, self._model.card) if follows else [row]:
            chunk = self._regions(part)
            found = chunk_masks(part, chunk.regions, chunk.object_probability, self._config)
            if objects is not None:
                add_objects(objects, part, found, chunk.features)
            masks += found
            pictures += part["pictures"] if self._config.write_png else []
        if objects is not None:
            columns = objects.columns()
            masks = [mask if mask.error else replace(mask, **next(columns)) for mask in masks]
        return {"masks": masks, "pictures": pictures}

    def _regions(self, row: Row) -> ChunkRegions:
        images = torch.from_numpy(np.array(row["images"], order="C"))
        if not len(images):
            return ChunkRegions(torch.empty(0, 2, 1, 1), torch.empty(0, 1, 1), torch.empty(0, 1, 1, 1))
        regions, features = self._model.regions(images)
        rule = None if row["kind"] == "images" else self._rule_of(row)
        return ChunkRegions(
            regions, self._model.object_probability(regions, features, rule, VideoFlow.of_row(row)), features
        )

    def _rule_of(self, row: Row) -> ObjectRule:
        """What a video's anchors decide; kept for its other chunks."""
        if self._rule is None or self._video != row["video"]:
            anchors = torch.from_numpy(np.array(row["anchors"], order="C"))
            if not len(anchors):
                raise UnitError(f"none of the anchor frames of {row['source']} can be read")
            self._video, self._rule = row["video"], self._model.rule(*self._model.regions(anchors))
        return self._rule


def add_objects(objects: Objects, row: Row, masks: list[MaskRow], features: Tensor) -> None:
    """Shows the chunk's readable images to `objects`."""
    found = [mask for mask in masks if mask.error is None]
    for image, appearance, mask in zip(row["images"], features, found, strict=True):
        pixels = decode_mask(mask.mask_rle or b"", mask.height_px or 0, mask.width_px or 0)
        objects.add(image, appearance.cpu().numpy(), pixels)


def chunk_masks(
    row: Row,
    regions: Float[Tensor, "N K h w"],
    object_probability: Float[Tensor, "N h w"],
    config: SegmentConfig,
) -> list[MaskRow]:
    """The masks of a chunk's images in their order, with the sentence for each image that could not be read."""
    is_image = row["kind"] == "images"
    sizes = zip(row["heights_px"], row["widths_px"], row["errors"], strict=True)
    readable = [(int(height), int(width)) for height, width, error in sizes if not error]
    pictures = row["pictures"] if config.refine.method != "none" else []
    found = object_masks(regions, object_probability, readable, pictures, config)
    rows: list[MaskRow] = []
    for number, error in enumerate(row["errors"]):
        place = {
            "source": row["names"][number if is_image else 0],
            "frame_index": None if is_image else int(row["frame_index"][number]),
        }
        rows.append(MaskRow(**place, error=str(error)) if error else MaskRow(**place, **next(found)))
    return rows


def object_masks(
    regions: Float[Tensor, "N K h w"],
    probability: Float[Tensor, "N h w"],
    sizes_px: Sequence[tuple[int, int]],
    pictures: Sequence[bytes],
    config: SegmentConfig,
) -> Iterator[Row]:
    """Columns of the mask record of N images at their own sizes: the object where its probability is above 0.5.

    `pictures` are the images, encoded; none where masks are not refined.
    """
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for part in _runs(sizes_px, 1 if regions.device.type == "cpu" else IMAGES_AT_ONCE):
            at = (*sizes_px[part.start], list(pool.map(decode_image, pictures[part])), config.refine)
            found = object_at_source(probability[part], *at)
            masks = found > 0.5
            scores = (found * masks).sum((1, 2)) / masks.sum((1, 2)).clamp_min(1)
            columns: dict[str, list[Any]] = {
                "height_px": [at[0]] * len(masks),
                "width_px": [at[1]] * len(masks),
                "mask_rle": list(pool.map(encode_mask, masks.cpu().numpy())),
                "area_fraction": masks.double().mean((1, 2)).tolist(),
                "foreground_score": scores.clamp_max(1.0).tolist(),
            }
            if config.write_segments:
                nearest = at_source(regions[part], *at).argmax(1).cpu().numpy()
                columns["segments_rle"] = [
                    [encode_mask(image == number) for number in range(regions.shape[1])] for image in nearest
                ]
            yield from (
                dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
            )


def _runs(sizes_px: Sequence[tuple[int, int]], at_most: int) -> Iterator[slice]:
    """Runs of images of one size."""
    start = 0
    for _, group in groupby(sizes_px):
        stop = start + len(list(group))
        for first in range(start, stop, at_most):
            yield slice(first, min(first + at_most, stop))
        start = stop
