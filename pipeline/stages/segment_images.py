"""Masks of a chunk's images: the stage that holds the segmenter."""

import time

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.config import SegmentConfig
from pipeline.errors import GwmError, UnitError
from pipeline.images import Image
from pipeline.inference import ObjectRule, RegionModel, at_source
from pipeline.masks import MaskRow, encode_mask
from pipeline.records import Row, decode_image
from pipeline.stages.failure import failed_row


class SegmentImages:
    """Turns a chunk's images into run-length masks at their sources' sizes."""

    def __init__(self, config: SegmentConfig, device: str, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        self._config = config
        self._model = RegionModel(config.model, config.merge, batch_size=config.batch_size, device=device)
        self._video = ""
        self._rule: ObjectRule | None = None

    def __call__(self, row: Row) -> Row:
        """The row with `masks`, one MaskRow an image, instead of its images; other rows pass unchanged."""
        if row["status"] != "planned":
            return row
        began = time.monotonic()
        try:
            masks = self._mask_rows(row)
        except GwmError:
            raise
        except Exception as error:
            return failed_row(row, "segment_images", error)
        used = ("images", "anchors", *(() if self._config.write_png else ("pictures",)))
        kept = {name: value for name, value in row.items() if name not in used}
        return {**kept, "masks": masks, "seconds_segment_images": time.monotonic() - began}

    def _mask_rows(self, row: Row) -> list[MaskRow]:
        images = torch.from_numpy(np.array(row["images"], order="C"))
        if len(images):
            regions, features = self._model.regions(images)
            rule = None if row["kind"] == "images" else self._rule_of(row)
            objects = self._model.objects(regions, features, rule)
            found = iter(zip(regions, objects, strict=True))
        refine = self._config.refine
        grounds = iter(row["pictures"] if refine.method != "none" else ())
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
            mask = object_mask(*next(found), height_px, width_px, ground, self._config)
            rows.append(MaskRow(**place, height_px=height_px, width_px=width_px, **mask))
        return rows

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


def object_mask(
    regions: Float[Tensor, "K h w"],
    probability: Float[Tensor, "h w"],
    height_px: int,
    width_px: int,
    ground: Image | None,
    config: SegmentConfig,
) -> Row:
    """Columns of the mask record at the source's size: the object where its probability is above 0.5."""
    size = (height_px, width_px)
    object_at_source = at_source(probability[None], *size, ground, config.refine)[0].cpu().numpy()
    mask = object_at_source > 0.5
    columns = {
        "mask_rle": encode_mask(mask),
        "area_fraction": float(mask.mean()),
        "foreground_score": min(1.0, float(object_at_source[mask].mean())) if mask.any() else 0.0,
    }
    if config.write_segments:
        nearest = at_source(regions, *size, ground, config.refine).argmax(0).cpu().numpy()
        columns["segments_rle"] = [encode_mask(nearest == number) for number in range(len(regions))]
    return columns
