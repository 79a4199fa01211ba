"""Frames by their number, wherever they lie: image files, a video, or the shards of a flow dataset."""

from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from typing import Literal

import numpy as np
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.config import DecodeLimits
from pipeline.contained import contained
from pipeline.errors import UnitError
from pipeline.images import decode_images, resize_image
from pipeline.inputs import Source
from pipeline.records import Row, decode_image
from pipeline.video import FROM_START, Frames, VideoIndex, decode_frames, decode_on, probe

Kind = Literal["files", "video", "flow"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameList:
    """The frames of one sequence, in order."""

    kind: Kind
    urls: tuple[str, ...]
    """One for each frame: image files, or the flow shards that hold them; of a video only its own."""
    rows: tuple[int, ...] = ()
    """Rows of the shards."""
    num_frames: int

    def __len__(self) -> int:
        return self.num_frames

    def to_row(self) -> Row:
        """Columns that carry this list in a row."""
        return {
            "frames_kind": self.kind,
            "frames_urls": list(self.urls),
            "frames_rows": list(self.rows),
            "num_frames": self.num_frames,
        }

    @staticmethod
    def of_row(row: Row) -> "FrameList":
        """The list that `to_row` put into a row."""
        return FrameList(
            kind=row["frames_kind"],
            urls=tuple(row["frames_urls"]),
            rows=tuple(int(number) for number in row["frames_rows"]),
            num_frames=int(row["num_frames"]),
        )


def read_frame_list(
    frames: FrameList, positions: Sequence[int], height_px: int, width_px: int, limits: DecodeLimits
) -> Frames:
    """The frames at the given ascending positions, resized; UnitError if one cannot be read."""
    if frames.kind == "video":
        wanted = stamps(_probed(frames.urls[0], limits), positions)
        return read_video(frames.urls[0], wanted, height_px, width_px, limits)
    if frames.kind == "files":
        urls = [frames.urls[position] for position in positions]
        return contained(limits, decode_images, urls, height_px=height_px, width_px=width_px)
    return contained(limits, _read_flow_frames, frames, positions, height_px, width_px)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamps:
    """Frames of a video file by presentation time stamp, each with the keyframe to start decoding at."""

    pts: tuple[int, ...]
    """Ascending."""
    seek_pts: tuple[int, ...]
    """Keyframes; FROM_START where there is none before."""
    timed: bool
    """Whether `pts` are the container's time stamps."""

    def __len__(self) -> int:
        return len(self.pts)

    def to_row(self, prefix: str = "") -> Row:
        """Columns that carry the stamps in a row."""
        columns = {"pts": list(self.pts), "seek_pts": list(self.seek_pts), "timed": self.timed}
        return {f"{prefix}{name}": column for name, column in columns.items()}

    @staticmethod
    def of_row(row: Row, prefix: str = "") -> "Stamps":
        """The stamps that `to_row` put into a row."""
        return Stamps(
            pts=tuple(int(stamp) for stamp in row[f"{prefix}pts"]),
            seek_pts=tuple(int(stamp) for stamp in row[f"{prefix}seek_pts"]),
            timed=bool(row[f"{prefix}timed"]),
        )


def stamps(index: VideoIndex, positions: Sequence[int]) -> Stamps:
    """The stamps of the frames at ascending positions of a video."""
    pts = index.pts[np.asarray(positions, np.int64)]
    before = np.searchsorted(index.keyframe_pts, pts, side="right") - 1
    keyframes = np.append(index.keyframe_pts, FROM_START)
    return Stamps(pts=tuple(pts.tolist()), seek_pts=tuple(keyframes[before].tolist()), timed=index.timed)


def read_video(
    url: str,
    wanted: Stamps,
    height_px: int,
    width_px: int,
    limits: DecodeLimits,
    *,
    skip_broken: bool = False,
) -> Frames:
    """Frames of a video file, resized; each run after a keyframe is decoded once, within the limits.

    UnitError if a frame cannot be decoded; with `skip_broken` its run is left out instead.
    """
    parts = [np.empty((0, 3, height_px, width_px), np.uint8)]
    for seek_pts, pts in _runs(wanted):
        with suppress(UnitError) if skip_broken else nullcontext():
            parts.append(
                contained(
                    limits,
                    decode_frames,
                    url,
                    pts,
                    seek_pts=None if seek_pts == FROM_START else seek_pts,
                    timed=wanted.timed,
                    height_px=height_px,
                    width_px=width_px,
                )
            )
    return np.concatenate(parts)


def read_video_on(url: str, wanted: Stamps, height_px: int, width_px: int, limits: DecodeLimits) -> Frames:
    """As `read_video` for a run of frames, going on where the last run was read to, if that was before this one."""
    return contained(
        limits,
        decode_on,
        url,
        wanted.pts,
        seek_pts=None if wanted.seek_pts[0] == FROM_START else wanted.seek_pts[0],
        timed=wanted.timed,
        height_px=height_px,
        width_px=width_px,
    )


def _runs(wanted: Stamps) -> list[tuple[int, list[int]]]:
    """The stamps grouped by the keyframe to start at; one group where there are no time stamps."""
    if not wanted.timed:
        return [(FROM_START, list(wanted.pts))] if wanted.pts else []
    pairs = zip(wanted.seek_pts, wanted.pts, strict=True)
    return [(seek, [pts for _, pts in run]) for seek, run in groupby(pairs, key=itemgetter(0))]


@lru_cache(maxsize=4)
def _probed(url: str, limits: DecodeLimits) -> VideoIndex:
    return contained(limits, probe, Source(url=url, name=url, kind="video"))


def _read_flow_frames(frames: FrameList, positions: Sequence[int], height_px: int, width_px: int) -> Frames:
    """Stored frames of a flow dataset; a shard's file is opened once for each run of its frames."""
    result = np.empty((len(positions), 3, height_px, width_px), np.uint8)
    opened, column = "", None
    for number, position in enumerate(positions):
        if column is None or frames.urls[position] != opened:
            opened = frames.urls[position]
            with storage.open_read(opened) as file:
                column = pq.read_table(file, columns=["image"])["image"]
        image = decode_image(column[frames.rows[position]].as_py())
        result[number] = resize_image(image, height_px, width_px).transpose(2, 0, 1)
    return result
