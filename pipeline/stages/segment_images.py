"""Masks of a chunk's images: the stage that holds the segmenter."""

import time
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.config import SegmentConfig
from pipeline.errors import GwmError, UnitError
from pipeline.images import Image
from pipeline.inference import ObjectRule, RegionModel, at_source, object_at_source
from pipeline.masks import MaskRow, encode_mask
from pipeline.records import Row, decode_image
from pipeline.stages.failure import failed_row


class ChunkRegions(NamedTuple):
    """The regions of a chunk's readable images, and the object, on the network's grid."""

    regions: Float[Tensor, "N K h w"]
    object_probability: Float[Tensor, "N h w"]

    def to_row(self) -> Row:
        """Columns that carry them in a row."""
        return {name: value.cpu().numpy() for name, value in self._asdict().items()}

    @staticmethod
    def of_row(row: Row) -> "ChunkRegions":
        """The regions that `to_row` put into a row."""
        return ChunkRegions(*(torch.from_numpy(np.array(row[name])) for name in ChunkRegions._fields))


class SegmentImages:
    """Turns a chunk's images into run-length masks at their sources' sizes."""

    def __init__(self, config: SegmentConfig, device: str, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        self._config = config
        self._model = RegionModel(config.model, config.merge, batch_size=config.batch_size, device=device)
        self._video = ""
        self._rule: ObjectRule | None = None

    def __call__(self, row: Row) -> Row:
        """The row with `masks`, one MaskRow an image, instead of its images; other rows pass unchanged.

        Masks that are refined by the CRF are left to `refine_masks`: the row then has what they are made of.
        """
        if row["status"] != "planned":
            return row
        began = time.monotonic()
        leaves_masks = self._config.refine.method == "crf"
        try:
            found = self._regions(row)
            columns = found.to_row() if leaves_masks else {"masks": chunk_masks(row, found, self._config)}
        except GwmError:
            raise
        except Exception as error:
            return failed_row(row, "segment_images", error)
        needs_pictures = leaves_masks or self._config.write_png
        used = ("images", "anchors", *(() if needs_pictures else ("pictures",)))
        kept = {name: value for name, value in row.items() if name not in used}
        return {**kept, **columns, "seconds_segment_images": time.monotonic() - began}

    def _regions(self, row: Row) -> ChunkRegions:
        images = torch.from_numpy(np.array(row["images"], order="C"))
        if not len(images):
            return ChunkRegions(torch.empty(0, 2, 1, 1), torch.empty(0, 1, 1))
        regions, features = self._model.regions(images)
        rule = None if row["kind"] == "images" else self._rule_of(row)
        return ChunkRegions(regions, self._model.object_probability(regions, features, rule))

    def _rule_of(self, row: Row) -> ObjectRule:
        """What a video's anchors decide; kept for its other chunks."""
        if self._rule is None or self._video != row["video"]:
            anchors = torch.from_numpy(np.array(row["anchors"], order="C"))
            if not len(anchors):
                raise UnitError(f"none of the anchor frames of {row['source']} can be read")
            self._video, self._rule = (
                row["video"],
                self._model.rule(*self._model.regions(anchors)),
            )
        return self._rule


def chunk_masks(row: Row, chunk: ChunkRegions, config: SegmentConfig) -> list[MaskRow]:
    """The masks of a chunk's images in their order, with the sentence for each image that could not be read."""
    found = zip(*chunk, strict=True)
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
