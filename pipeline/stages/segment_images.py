"""Masks of a chunk's images: the stage that holds the segmenter."""

import time

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gwm_model.merge import foreground_probability
from pipeline.config import SegmentConfig
from pipeline.errors import GwmError, UnitError
from pipeline.images import Image
from pipeline.inference import RegionModel, at_source, decide
from pipeline.masks import MaskRow, encode_mask
from pipeline.records import Row, decode_image
from pipeline.stages.failure import failed_row

Decision = tuple[Int64[Tensor, "B K"], Int64[Tensor, " B"]]


class SegmentImages:
    """Turns a chunk's images into run-length masks at their sources' sizes."""

    def __init__(self, config: SegmentConfig, device: str, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        self._config = config
        self._model = RegionModel(config.model, config.merge, batch_size=config.batch_size, device=device)
        self._video = ""
        self._decision: Decision | None = None

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
            labels, object_is = self._choice(row, regions, features)
            found = iter(zip(regions, labels, object_is, strict=True))
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

    def _choice(self, row: Row, regions: Tensor, features: Tensor) -> Decision:
        """Labels and object of each image: a video's from its anchors, others' from themselves."""
        method = self._config.merge.method
        if row["kind"] == "images":
            return decide(regions, features, is_video=False, method=method)
        if self._decision is None or self._video != row["video"]:
            anchors = torch.from_numpy(np.array(row["anchors"], order="C"))
            if not len(anchors):
                raise UnitError(f"none of the anchor frames of {row['source']} can be read")
            labels, object_is = decide(*self._model.regions(anchors), is_video=True, method=method)
            self._video, self._decision = row["video"], (labels[:1], object_is[:1])
        labels, object_is = self._decision
        return labels.expand(len(regions), -1), object_is.expand(len(regions))


def object_mask(
    regions: Float[Tensor, "K h w"],
    labels: Int64[Tensor, " K"],
    object_is: Int64[Tensor, ""],
    height_px: int,
    width_px: int,
    ground: Image | None,
    config: SegmentConfig,
) -> Row:
    """Columns of the mask record at the source's size: the object where its probability is above 0.5."""
    probability = foreground_probability(regions[None], labels[None], object_is[None])
    size = (height_px, width_px)
    object_at_source = at_source(probability, *size, ground, config.refine)[0].cpu().numpy()
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
