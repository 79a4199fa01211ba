"""About how much work inputs are, from the headers of a few of them: for a dry run, which reads no more."""

import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import ceil

from pipeline.config import DecodeConfig, PrepareConfig, SegmentConfig
from pipeline.contained import contained
from pipeline.errors import UnitError
from pipeline.inputs import LOOKING, Source
from pipeline.stages.plan_clips import clip_spans
from pipeline.video import Header, fitted_size, read_header

SAMPLED_VIDEOS = 16

EVERY_FRAME = DecodeConfig()


@dataclass(slots=True)
class Sample:
    """Some videos of a stream, drawn by their names, and what all of them weigh: bytes, or one each in a list."""

    drawn: list[Source] = field(default_factory=list)
    number: int = 0
    weight: int = 0

    def add(self, video: Source) -> None:
        """Takes note of one video."""
        self.number += 1
        self.weight += _weight(video)
        self.drawn = sorted([*self.drawn, video], key=lambda one: zlib.crc32(one.name.encode()))[
            :SAMPLED_VIDEOS
        ]


@dataclass(slots=True)
class Inputs:
    """What a listing came to."""

    kinds: Counter[str] = field(default_factory=Counter)
    num_bytes: int = 0
    videos: dict[str, Sample] = field(default_factory=dict)
    """By kind: files and folders of frames differ in how many bytes a frame has."""

    @staticmethod
    def listed(sources: Iterable[Source]) -> "Inputs":
        """Goes through a listing once, of whatever length."""
        inputs = Inputs()
        for source in sources:
            inputs.kinds[source.kind] += 1
            inputs.num_bytes += source.size_bytes or 0
            if source.kind != "image":
                inputs.videos.setdefault(source.kind, Sample()).add(source)
        return inputs


@dataclass(slots=True, kw_only=True)
class Work:
    """Units and frames of inputs, done or not."""

    units: float = 0.0
    frames: float = 0.0
    decoded_px: float = 0.0
    """Pixels of all frames at the size at which flow is estimated."""
    stored_px: float = 0.0
    counted: str = ""
    """What the numbers rest on."""


def work_of(inputs: Inputs, config: PrepareConfig | SegmentConfig) -> Work:
    """The work that a command's inputs are; of many videos it is estimated by the share that was looked at."""
    work, looked_at, unreadable = Work(), 0, 0
    for sample in inputs.videos.values():
        headers = [(video, header) for video in sample.drawn if (header := _header(video)) is not None]
        looked_at += len(sample.drawn)
        unreadable += len(sample.drawn) - len(headers)
        share = sum(map(_weight, sample.drawn)) / sample.weight
        for _, header in headers:
            _add_video(work, header, config, 1 / share)
    if isinstance(config, SegmentConfig) and (images := inputs.kinds["image"]):
        work.units += ceil(images / config.chunk_images)
        work.frames += images
    work.counted = _said(sum(sample.number for sample in inputs.videos.values()), looked_at, unreadable)
    return work


def _add_video(work: Work, header: Header, config: PrepareConfig | SegmentConfig, times: float) -> None:
    decode = config.decode if isinstance(config, PrepareConfig) else EVERY_FRAME
    frames = _kept(header, decode)
    if isinstance(config, PrepareConfig):
        decoded = fitted_size(header.height_px, header.width_px, decode.height_px, decode.width_px)
        stored = fitted_size(*decoded, config.store.height_px, config.store.width_px)
        work.decoded_px += times * frames * decoded[0] * decoded[1]
        work.stored_px += times * frames * stored[0] * stored[1]
        unit_frames = decode.clip_frames
    else:
        unit_frames = frames if config.write_objects else config.chunk_images
    work.units += times * len(clip_spans(frames, max(1, unit_frames)))
    work.frames += times * frames


def _kept(header: Header, decode: DecodeConfig) -> int:
    """How many frames of a video are used."""
    if decode.fps is not None:
        return min(header.num_frames, ceil(header.duration_s * decode.fps))
    return ceil(header.num_frames / decode.stride)


def _header(video: Source) -> Header | None:
    try:
        return contained(LOOKING, read_header, video)
    except UnitError:
        return None


def _weight(video: Source) -> int:
    return 1 if video.size_bytes is None else max(1, video.size_bytes)


def _said(videos: int, looked_at: int, unreadable: int) -> str:
    if not videos:
        return "the listing"
    number = "all" if looked_at == videos else f"{looked_at} of {videos}"
    bad = f", {unreadable} of which cannot be read" if unreadable else ""
    return f"the headers of {number} videos{bad}"
