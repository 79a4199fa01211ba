"""Masks of a chunk's images: the stage that holds the segmenter."""

import time
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gwm_model.merge import foreground_probability
from pipeline.config import SegmentConfig
from pipeline.errors import GwmError, UnitError
from pipeline.images import Image
from pipeline.inference import RegionModel, at_source, decide, refined
from pipeline.masks import MaskRow, encode_mask
from pipeline.records import Row, decode_image
from pipeline.stages.failure import failed_row

Decision = tuple[Int64[Tensor, "B K"], Int64[Tensor, " B"]]


class DecidedRegions(NamedTuple):
    """The regions of a chunk's readable images, and which of them are the object."""

    regions: Float[Tensor, "N K h w"]
    labels: Int64[Tensor, "N K"]
    object_is: Int64[Tensor, " N"]

    def to_row(self) -> Row:
        """Columns that carry them in a row."""
        return {name: value.cpu().numpy() for name, value in self._asdict().items()}

    @staticmethod
    def of_row(row: Row) -> "DecidedRegions":
        """The regions that `to_row` put into a row."""
        return DecidedRegions(*(torch.from_numpy(np.array(row[name])) for name in DecidedRegions._fields))


class SegmentImages:
    """Turns a chunk's images into run-length masks at their sources' sizes."""

    def __init__(self, config: SegmentConfig, device: str, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        self._config = config
        self._model = RegionModel(config.model, config.merge, batch_size=config.batch_size, device=device)
        self._video = ""
        self._decision: Decision | None = None

    def __call__(self, row: Row) -> Row:
        """The row with `masks`, one MaskRow an image, instead of its images; other rows pass unchanged.

        Masks that are refined by the CRF are left to `refine_masks`: the row then has what they are made of.
        """
        if row["status"] != "planned":
            return row
        began = time.monotonic()
        leaves_masks = self._config.refine.method == "crf"
        try:
            decided = self._decided(row)
            columns = decided.to_row() if leaves_masks else {"masks": chunk_masks(row, decided, self._config)}
        except GwmError:
            raise
        except Exception as error:
            return failed_row(row, "segment_images", error)
        needs_pictures = leaves_masks or self._config.write_png
        used = ("images", "anchors", *(() if needs_pictures else ("pictures",)))
        kept = {name: value for name, value in row.items() if name not in used}
        return {**kept, **columns, "seconds_segment_images": time.monotonic() - began}

    def _decided(self, row: Row) -> DecidedRegions:
        images = torch.from_numpy(np.array(row["images"], order="C"))
        if not len(images):
            none = torch.empty(0, 2, dtype=torch.int64)
            return DecidedRegions(torch.empty(0, 2, 1, 1), none, none[:, 0])
        regions, features = self._model.regions(images)
        return DecidedRegions(regions, *self._choice(row, regions, features))

    def _choice(self, row: Row, regions: Tensor, features: Tensor) -> Decision:
        """Labels and object of each image: a video's from its anchors, others' from themselves."""
        if row["kind"] == "images":
            return decide(regions, features, is_video=False)
        if self._decision is None or self._video != row["video"]:
            anchors = torch.from_numpy(np.array(row["anchors"], order="C"))
            if not len(anchors):
                raise UnitError(f"none of the anchor frames of {row['source']} can be read")
            labels, object_is = decide(*self._model.regions(anchors), is_video=True)
            self._video, self._decision = row["video"], (labels[:1], object_is[:1])
        labels, object_is = self._decision
        return labels.expand(len(regions), -1), object_is.expand(len(regions))


def chunk_masks(row: Row, decided: DecidedRegions, config: SegmentConfig) -> list[MaskRow]:
    """The masks of a chunk's images in their order, with the sentence for each image that could not be read."""
    found = zip(*decided, strict=True)
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
    labels: Int64[Tensor, " K"],
    object_is: Int64[Tensor, ""],
    height_px: int,
    width_px: int,
    ground: Image | None,
    config: SegmentConfig,
) -> Row:
    """Columns of the mask record at the source's size: the object where its probability is above 0.5."""
    if ground is not None and config.refine.method == "crf":
        # It is not linear and takes all regions: they are merged afterwards.
        regions, ground = refined(regions, ground, config.refine), None
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
