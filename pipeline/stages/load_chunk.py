"""A chunk's images or frames and its video's anchors, resized to the segmenter's input."""

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache

import numpy as np

from pipeline.config import DecodeLimits, SegmentConfig
from pipeline.contained import contained
from pipeline.errors import GwmError, UnitError, printable
from pipeline.frames import Stamps, read_video
from pipeline.images import Image, read_image_at, read_image_with_picture
from pipeline.model_card import ModelCard
from pipeline.pictures import picture_size
from pipeline.records import Row, encode_image
from pipeline.stages.failure import failed_row
from pipeline.stages.plan_clips import clip_spans
from pipeline.video import Frames
from pipeline.video_flow import read_video_flow


def load_chunk(row: Row, config: SegmentConfig, card: ModelCard) -> Row:
    """The chunk's row with `images` uint8 [N, 3, h, w] and a video's `anchors`; other rows pass unchanged.

    A video whose objects are followed passes unchanged too: it is loaded in parts (`load_parts`) where it is segmented.
    With `refine.use_flow` the frames' `flow` and `has_flow` come along, as in `VideoFlow`.
    `errors` holds a sentence for each image or frame that cannot be read and "" for the others; N counts the
    others. `heights_px` and `widths_px` are the displayed sizes: an image is turned as its EXIF data asks.
    """
    if row["status"] != "planned" or is_followed(row, config):
        return row
    began = time.monotonic()
    try:
        loaded = _load(row, config, card)
    except GwmError:
        raise
    except Exception as error:
        return failed_row(row, "load_chunk", error)
    return {**row, **loaded, "seconds_load_chunk": time.monotonic() - began}


def is_followed(row: Row, config: SegmentConfig) -> bool:
    """Whether the objects of the row are numbered through a video."""
    return config.write_objects and row["kind"] != "images"


def load_parts(row: Row, config: SegmentConfig, card: ModelCard) -> Iterator[Row]:
    """A whole video in runs of about `chunk_images` frames, loaded one after another. UnitError as `load_chunk`."""
    by_frame = ("frame_index", "pts", "seek_pts") if row["kind"] == "video" else ("frame_index", "urls")
    for start, stop in clip_spans(len(row["frame_index"]), config.chunk_images):
        part = {**row, **{name: row[name][start:stop] for name in by_frame}}
        yield {**part, **_load(part, config, card)}


def _load(row: Row, config: SegmentConfig, card: ModelCard) -> Row:
    loaded = _load_video(row, config, card) if row["kind"] == "video" else _load_files(row, config, card)
    if config.flow is None or row["kind"] == "images":
        return loaded
    positions = [
        int(frame) for frame, error in zip(row["frame_index"], loaded["errors"], strict=True) if not error
    ]
    return {**loaded, **read_video_flow(config.flow, row["names"][0], positions).to_row()}


def _load_files(row: Row, config: SegmentConfig, card: ModelCard) -> Row:
    """Columns of a chunk of image files."""
    images, sizes, errors, pictures = [], [], [], []
    for url in row["urls"]:
        try:
            if config.loads_pictures:
                wanted = (url, card.height_px, card.width_px)
                image, size, picture = contained(config.decode, read_image_with_picture, *wanted)
                pictures.append(picture)
            else:
                image, size = _read_file(url, card.height_px, card.width_px, config.decode)
        except UnitError as error:
            sizes.append((0, 0))
            errors.append(printable(str(error)))
            continue
        sizes.append(size)
        errors.append("")
        images.append(image)
    is_video = row["kind"] == "frames"
    anchors = _file_anchors(tuple(row["anchor_urls"]), card, config.decode) if is_video else _none(card)
    return {
        "images": np.stack(images) if images else _none(card),
        "anchors": anchors,
        "heights_px": [height for height, _ in sizes],
        "widths_px": [width for _, width in sizes],
        "errors": errors,
        "pictures": pictures,
    }


def _load_video(row: Row, config: SegmentConfig, card: ModelCard) -> Row:
    """Columns of a chunk of a video file."""
    url, wanted, limits = row["urls"][0], Stamps.of_row(row), config.decode
    images = read_video(url, wanted, card.height_px, card.width_px, limits)
    pictures = []
    if config.loads_pictures:
        size = picture_size(row["height_px"], row["width_px"])
        pictures = [_picture(frame) for frame in read_video(url, wanted, *size, limits)]
    return {
        "images": images,
        "anchors": _video_anchors(row["video"], url, Stamps.of_row(row, "anchor_"), card, limits),
        "heights_px": [row["height_px"]] * len(images),
        "widths_px": [row["width_px"]] * len(images),
        "errors": [""] * len(images),
        "pictures": pictures,
    }


def _read_file(
    url: str, height_px: int, width_px: int, limits: DecodeLimits
) -> tuple[Image, tuple[int, int]]:
    """An image file [3, height_px, width_px] and its own size; UnitError if it cannot be read."""
    return contained(limits, read_image_at, url, height_px, width_px)


@lru_cache(maxsize=2)
def _video_anchors(
    video: str,  # noqa: ARG001
    url: str,
    wanted: Stamps,
    card: ModelCard,
    limits: DecodeLimits,
) -> Frames:
    """The anchors of a video, without any that cannot be decoded; kept, as its next chunk needs them too.

    `video` names the video's content (name, size) and so keeps a replaced file apart.
    """
    return read_video(url, wanted, card.height_px, card.width_px, limits, skip_broken=True)


@lru_cache(maxsize=2)
def _file_anchors(urls: Sequence[str], card: ModelCard, limits: DecodeLimits) -> Frames:
    """The anchors of a folder of frames, without any that cannot be read."""
    images = []
    for url in urls:
        with suppress(UnitError):
            images.append(_read_file(url, card.height_px, card.width_px, limits)[0])
    return np.stack(images) if images else _none(card)


def _none(card: ModelCard) -> Frames:
    return np.empty((0, 3, card.height_px, card.width_px), np.uint8)


def _picture(image: Image) -> bytes:
    """An image [3, H, W] as the ground of its overlay and the guide of its mask, JPEG."""
    return encode_image(image.transpose(1, 2, 0))
