"""A chunk's images or frames and its video's anchors, resized to the segmenter's input."""

import time
from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np

from pipeline import storage
from pipeline.config import SegmentConfig
from pipeline.errors import GwmError, UnitError
from pipeline.frames import Stamps, read_video
from pipeline.inference import ModelCard
from pipeline.pictures import encode_jpeg
from pipeline.records import Row
from pipeline.stages.failure import failed_row
from pipeline.video import Frames, fitted_size, resize_image

PICTURE_SIDE_PX = 854
"""Longest side of an overlay picture."""


def load_chunk(row: Row, config: SegmentConfig, card: ModelCard) -> Row:
    """The chunk's row with `images` uint8 [N, 3, h, w] and a video's `anchors`; other rows pass unchanged.

    `errors` holds a sentence for each image or frame that cannot be read and "" for the others; N counts the
    others. `heights_px` and `widths_px` are the displayed sizes: an image is turned as its EXIF data asks.
    """
    if row["status"] != "planned":
        return row
    began = time.monotonic()
    try:
        loaded = _load_video(row, config, card) if row["kind"] == "video" else _load_files(row, config, card)
    except GwmError:
        raise
    except Exception as error:
        return failed_row(row, "load_chunk", error)
    return {**row, **loaded, "seconds_load_chunk": time.monotonic() - began}


def _load_files(row: Row, config: SegmentConfig, card: ModelCard) -> Row:
    """Columns of a chunk of image files."""
    images, sizes, errors, pictures = [], [], [], []
    for url in row["urls"]:
        try:
            image = read_image(url)
        except UnitError as error:
            sizes.append((0, 0))
            errors.append(str(error))
            continue
        sizes.append(image.shape[:2])
        errors.append("")
        images.append(_at_input_size(image, card))
        if config.write_png:
            pictures.append(_picture(image))
    anchors = _file_anchors(tuple(row["anchor_urls"]), card) if row["kind"] == "frames" else _none(card)
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
    url, wanted = row["urls"][0], Stamps.of_row(row)
    images = read_video(url, wanted, card.height_px, card.width_px)
    pictures = []
    if config.write_png:
        size = _picture_size(row["height_px"], row["width_px"])
        pictures = [encode_jpeg(frame.transpose(1, 2, 0)) for frame in read_video(url, wanted, *size)]
    return {
        "images": images,
        "anchors": _video_anchors(row["video"], url, Stamps.of_row(row, "anchor_"), card),
        "heights_px": [row["height_px"]] * len(images),
        "widths_px": [row["width_px"]] * len(images),
        "errors": [""] * len(images),
        "pictures": pictures,
    }


def read_image(url: str) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
    """An image file as RGB [H, W, 3], turned as its EXIF data asks; UnitError if it is none."""
    try:
        encoded = np.frombuffer(storage.read_bytes(url), np.uint8)
        image = cv2.imdecode(encoded, cv2.IMREAD_COLOR) if encoded.size else None
    except GwmError as error:
        if storage.exists(url):
            raise
        raise UnitError(f"{url} is gone") from error
    except cv2.error as error:
        raise UnitError(f"{url} cannot be decoded: {error.err}") from error
    if image is None:
        raise UnitError(f"{url} is not an image that can be read")
    return np.ascontiguousarray(image[..., ::-1], np.uint8)


@lru_cache(maxsize=2)
def _video_anchors(video: str, url: str, wanted: Stamps, card: ModelCard) -> Frames:  # noqa: ARG001
    """The anchors of a video, without any that cannot be decoded; kept, as its next chunk needs them too.

    `video` names the video's content (name, size) and so keeps a replaced file apart.
    """
    return read_video(url, wanted, card.height_px, card.width_px, skip_broken=True)


@lru_cache(maxsize=2)
def _file_anchors(urls: Sequence[str], card: ModelCard) -> Frames:
    """The anchors of a folder of frames, without any that cannot be read."""
    images = []
    for url in urls:
        try:
            images.append(_at_input_size(read_image(url), card))
        except UnitError:
            continue
    return np.stack(images) if images else _none(card)


def _none(card: ModelCard) -> Frames:
    return np.empty((0, 3, card.height_px, card.width_px), np.uint8)


def _at_input_size(image: np.ndarray, card: ModelCard) -> np.ndarray:
    return np.ascontiguousarray(resize_image(image, card.height_px, card.width_px).transpose(2, 0, 1))


def _picture(image: np.ndarray) -> bytes:
    """The image as the ground of its overlay, JPEG."""
    return encode_jpeg(resize_image(image, *_picture_size(*image.shape[:2])))


def _picture_size(height_px: int, width_px: int) -> tuple[int, int]:
    if max(height_px, width_px) <= PICTURE_SIDE_PX:
        return height_px, width_px
    is_wide = width_px >= height_px
    wanted = (None, PICTURE_SIDE_PX) if is_wide else (PICTURE_SIDE_PX, None)
    return fitted_size(height_px, width_px, *wanted)
