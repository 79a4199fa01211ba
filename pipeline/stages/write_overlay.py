"""A film of a video with its masks drawn over it, once its masks are there: video in, video out."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.config import SegmentConfig
from pipeline.contained import contained
from pipeline.dataset import Dataset
from pipeline.errors import GwmError, UnitError, printable
from pipeline.film import FPS, FilmWriter, film_size
from pipeline.frames import read_video_on, stamps
from pipeline.images import Image, decode_images
from pipeline.inputs import Source, frame_urls
from pipeline.masks import MaskRow, decode_mask, indexed_objects, mask_rows
from pipeline.overlay_files import overlay_url
from pipeline.pictures import overlay, overlay_objects
from pipeline.records import Row
from pipeline.stages.plan_chunks import chunk_units, input_unit
from pipeline.video import Frames, VideoIndex, probe, stop_reading

FRAMES_AT_ONCE = 32
"""Decoded frames that are held at a time."""
OUTLINE_SHARE = 1 / 360
"""Of the picture's shorter side."""


@dataclass(frozen=True, slots=True)
class Video:
    """A video to be read in runs of frames."""

    source: Source
    index: VideoIndex
    urls: list[str]
    """The files of a folder of frames."""

    def read(self, positions: Sequence[int], height_px: int, width_px: int, config: SegmentConfig) -> Frames:
        """The frames at ascending positions, resized; UnitError if one cannot be read."""
        if self.urls:
            urls = [self.urls[position] for position in positions]
            return contained(config.decode, decode_images, urls, height_px=height_px, width_px=width_px)
        wanted = stamps(self.index, positions)
        return read_video_on(self.source.url, wanted, height_px, width_px, config.decode)

    def time_s(self, position: int) -> float:
        """The frame's presentation time; frames of a folder have no clock, and get one."""
        return position / FPS if self.urls else float(self.index.pts_s[position])


def write_overlay(row: Row, config: SegmentConfig, dataset: Dataset, fingerprint: str) -> Iterator[Row]:
    """Writes the film of a video, a row of `inputs_of`, unless it is there already.

    It has the frames that have a mask, at their own times; the others are left out. A long film takes its time, so that
    a row comes for every few frames, with `num_frames`; the last one has the outcome: `status` written, skipped, or
    failed with a `reason`.
    """
    began = time.monotonic()
    source, url = row["names"][0], overlay_url(row["names"][0], dataset.url)
    outcome = {"source": source, "url": url, "num_frames": 0, "reason": "", "seconds": 0.0}
    if storage.exists(url):
        yield {**outcome, "status": "skipped"}
        return
    try:
        for num_frames in _write(row, url, config, dataset, fingerprint):
            yield {**outcome, "status": "drawing", "num_frames": num_frames}
    except GwmError:
        raise
    except Exception as error:
        reason = printable(str(error).strip().partition("\n")[0] or type(error).__name__)
        yield {**outcome, "status": "failed", "reason": reason}
        return
    yield {**outcome, "status": "written", "seconds": time.monotonic() - began}


def _write(row: Row, url: str, config: SegmentConfig, dataset: Dataset, fingerprint: str) -> Iterator[int]:
    """Writes the film in one piece; yields the number of frames of each run."""
    unit = input_unit(row, fingerprint)
    if dataset.is_quarantined(unit):  # not looked at again: it may have taken its time to fail
        raise UnitError("it is in quarantine")
    source = Source(url=row["urls"][0], name=row["names"][0], kind=row["kind"])
    index = contained(config.decode, probe, source)
    video = Video(source, index, frame_urls(source) if source.kind == "frames" else [])
    size = film_size(index.height_px, index.width_px)
    units = [unit for unit, _, _ in chunk_units(unit, len(index.pts), config) if dataset.is_done(unit)]
    with storage.open_write(url) as file, FilmWriter(file.name, *size) as film, _read_through(config):
        for unit in units:
            for masks in read_masks(dataset.shard_url(unit)):
                found = [mask for mask in masks if mask.error is None]
                positions = [mask.frame_index or 0 for mask in found]
                frames = video.read(positions, *size, config) if found else ()
                for frame, mask in zip(frames, found, strict=True):
                    film.add(video.time_s(mask.frame_index or 0), draw_mask(frame.transpose(1, 2, 0), mask))
                yield len(found)
        if not film.num_frames:
            raise UnitError("none of its frames has a mask")


@contextmanager
def _read_through(config: SegmentConfig) -> Iterator[None]:
    """Closes the video that the decoding process has open, in the end."""
    try:
        yield
    finally:
        contained(config.decode, stop_reading)


def read_masks(shard_url: str) -> Iterator[list[MaskRow]]:
    """The rows of a mask shard without the K regions, a few at a time."""
    with storage.open_read(shard_url) as file:
        shard = pq.ParquetFile(file)
        columns = [name for name in shard.schema_arrow.names if name != "segments_rle"]
        for batch in shard.iter_batches(batch_size=FRAMES_AT_ONCE, columns=columns):
            yield mask_rows(pa.Table.from_batches([batch]))


def draw_mask(image: Image, row: MaskRow) -> Image:
    """An image [H, W, 3] of any size with its mask drawn over it; separate objects in colours, if there are any."""
    height_px, width_px = image.shape[:2]
    image = np.ascontiguousarray(image)
    outline_px = max(1, round(min(height_px, width_px) * OUTLINE_SHARE))
    if row.objects_rle is not None:
        numbers = cv2.resize(indexed_objects(row), (width_px, height_px), interpolation=cv2.INTER_NEAREST)
        return overlay_objects(image, numbers, outline_px=outline_px)
    return overlay(image, _mask_at(row, height_px, width_px), outline_px=outline_px)


def _mask_at(row: MaskRow, height_px: int, width_px: int) -> npt.NDArray[np.float32]:
    """The share of each pixel of a picture of this size that the mask covers."""
    # run lengths go down the columns, and so does the memory of what is decoded of them
    columns = decode_mask(row.mask_rle or b"", row.height_px or 0, row.width_px or 0).T.astype(np.uint8) * 255
    shown = cv2.resize(columns, (height_px, width_px), interpolation=cv2.INTER_AREA).T
    return np.asarray(shown / np.float32(255), np.float32)
