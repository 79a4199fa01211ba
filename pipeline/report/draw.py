"""Pictures of samples: the images read again, and what was made of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import cv2
import numpy as np

from pipeline.config import DecodeLimits
from pipeline.errors import GwmError, UnitError
from pipeline.frames import FrameList, read_frame_list
from pipeline.images import Image
from pipeline.masks import decode_mask
from pipeline.metrics import Mask
from pipeline.pictures import colour_flow, colour_regions, encode_webp, overlay, picture_size
from pipeline.predictions import read_mask
from pipeline.records import Row
from pipeline.report.page import Sample
from pipeline.video_flow import read_video_flow


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A sample to draw, and the run lengths of its masks."""

    sample: Sample
    size: tuple[int, int]
    """Height and width of the masks."""
    masks: Mapping[str, bytes | None]
    """By the titles of their pictures, the image with the mask over it; none where there is no mask."""
    regions: Sequence[bytes] = ()
    objects: Sequence[bytes] = ()
    truth_url: str | None = None
    """An image of the true mask."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """Samples of one input, of one size."""

    source: str
    frames: FrameList
    positions: Sequence[int]
    """Where in `frames` each sample is, ascending."""
    wanted: Sequence[Wanted] = field(repr=False)


def draw_samples(row: Row, *, side_px: int, limits: DecodeLimits, flow: str | None) -> Row:
    """{samples}: those of the row's `strip`, with pictures of at most `side_px`.

    `flow` is a flow dataset of the same videos. A sample whose image cannot be read again says so.
    """
    strip: Strip = row["strip"]
    try:
        return {"samples": list(_drawn(strip, side_px, limits, flow))}
    except (GwmError, UnitError) as error:
        return {"samples": [replace(wanted.sample, note=str(error)) for wanted in strip.wanted]}


def _drawn(strip: Strip, side_px: int, limits: DecodeLimits, flow: str | None) -> Iterator[Sample]:
    size = picture_size(*strip.wanted[0].size, side_px)
    images = read_frame_list(strip.frames, strip.positions, *size, limits).transpose(0, 2, 3, 1)
    flows = [None] * len(images) if flow is None else _flows(flow, strip)
    for wanted, image, seen in zip(strip.wanted, images, flows, strict=True):
        image = np.ascontiguousarray(image)
        pictures: dict[str, Image | None] = {"image": image}
        if flow is not None:
            pictures["flow"] = None if seen is None else _resized(seen, size)
        if wanted.regions:
            pictures["regions"] = colour_regions(_masks(wanted.regions, wanted.size, size))
        if wanted.objects:
            pictures["objects"] = _tinted(image, _masks(wanted.objects, wanted.size, size))
        for title, rle in wanted.masks.items():
            pictures[title] = None if rle is None else overlay(image, _masks([rle], wanted.size, size)[0])
        if wanted.truth_url is not None:
            truth = read_mask(wanted.truth_url, limits)
            pictures["ground truth"] = overlay(image, _shrunk(truth, size))
        encoded = {
            title: None if picture is None else encode_webp(picture) for title, picture in pictures.items()
        }
        yield replace(wanted.sample, pictures=encoded)


def _flows(url: str, strip: Strip) -> list[Image | None]:
    """The flow of the samples' frames to the next ones, in colours; none where the dataset has none."""
    if any(wanted.sample.frame_index is None for wanted in strip.wanted):
        return [None] * len(strip.wanted)
    frames = [wanted.sample.frame_index or 0 for wanted in strip.wanted]
    try:
        found = read_video_flow(url, strip.source, frames)
    except UnitError:
        return [None] * len(frames)
    shown = zip(found.flow[:, 0].astype(np.float32), found.has_flow[:, 0], strict=True)
    return [colour_flow(flow) if has_flow else None for flow, has_flow in shown]


def _masks(rles: Sequence[bytes], size: tuple[int, int], shown: tuple[int, int]) -> np.ndarray:
    """Float [K, h, w]: the share of each pixel of the picture that each mask covers."""
    return np.stack([_shrunk(decode_mask(rle, *size), shown) for rle in rles])


def _shrunk(mask: Mask, shown: tuple[int, int]) -> np.ndarray:
    return np.asarray(
        cv2.resize(mask.astype(np.float32), shown[::-1], interpolation=cv2.INTER_AREA), np.float32
    )


def _resized(picture: Image, size: tuple[int, int]) -> Image:
    return np.asarray(cv2.resize(picture, size[::-1], interpolation=cv2.INTER_AREA), np.uint8)


def _tinted(image: Image, objects: np.ndarray) -> Image:
    """The image with each object in a colour of its own."""
    share = np.clip(objects.sum(0), 0, 1)[..., None]
    mixed = (1 - 0.6 * share) * image + 0.6 * colour_regions(objects)
    return np.asarray(np.clip(np.rint(mixed), 0, 255), np.uint8)
