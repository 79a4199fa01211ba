"""Masks of a chunk's images: the stage that holds the segmenter."""

import time
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.config import SegmentConfig
from pipeline.errors import GwmError, UnitError
from pipeline.images import Image
from pipeline.inference import ObjectRule, RegionModel, at_source, object_at_source
from pipeline.masks import MaskRow, decode_mask, encode_mask
from pipeline.objects import Objects, open_objects
from pipeline.records import Row, decode_image
from pipeline.stages.failure import failed_row
from pipeline.stages.load_chunk import is_followed, load_parts
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


class SegmentImages:
    """Turns a chunk's images into run-length masks at their sources' sizes."""

    def __init__(self, config: SegmentConfig, device: str, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
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
    found = zip(regions, object_probability, strict=True)
    grounds = iter(row["pictures"] if config.refine.method != "none" else ())
    is_image = row["kind"] == "images"
    rows: list[MaskRow] = []
    for number, error in enumerate(row["errors"]):
        place = {
            "source": row["names"][number if is_image else 0],
            "frame_index": None if is_image else int(row["frame_index"][number]),
        }
        if error:
            rows.append(MaskRow(**place, error=str(error)))
            continue
        height_px, width_px = int(row["heights_px"][number]), int(row["widths_px"][number])
        ground = next(grounds, None)
        if ground is not None:
            ground = decode_image(ground)
        mask = object_mask(*next(found), height_px, width_px, ground, config)
        rows.append(MaskRow(**place, height_px=height_px, width_px=width_px, **mask))
    return rows


def object_mask(
    regions: Float[Tensor, "K h w"],
    probability: Float[Tensor, "h w"],
    height_px: int,
    width_px: int,
    ground: Image | None,
    config: SegmentConfig,
) -> Row:
    """Columns of the mask record at the source's size: the object where its probability is above 0.5."""
    at = (height_px, width_px, ground, config.refine)
    found = object_at_source(probability, *at).cpu().numpy()
    mask = found > 0.5
    columns = {
        "mask_rle": encode_mask(mask),
        "area_fraction": float(mask.mean()),
        "foreground_score": min(1.0, float(found[mask].mean())) if mask.any() else 0.0,
    }
    if config.write_segments:
        nearest = at_source(regions, *at).argmax(0).cpu().numpy()
        columns["segments_rle"] = [encode_mask(nearest == number) for number in range(len(regions))]
    return columns
