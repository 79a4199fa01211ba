"""Frames by their number, wherever they lie: image files, a video, or the shards of a flow dataset."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.inputs import Source
from pipeline.records import Row, decode_image
from pipeline.video import Frames, VideoIndex, decode_frames, decode_images, probe, resize_image

DECODE_TIMEOUT_S = 600.0

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


def read_frame_list(frames: FrameList, positions: Sequence[int], height_px: int, width_px: int) -> Frames:
    """The frames at the given ascending positions, resized; UnitError if one cannot be read."""
    if frames.kind == "video":
        source = Source(url=frames.urls[0], name=frames.urls[0], kind="video")
        return read_video(source, probe(source), positions, height_px, width_px)
    if frames.kind == "files":
        urls = [frames.urls[position] for position in positions]
        return decode_images(urls, height_px=height_px, width_px=width_px, timeout_s=DECODE_TIMEOUT_S)
    return _read_flow_frames(frames, positions, height_px, width_px)


def read_video(
    source: Source, index: VideoIndex, positions: Sequence[int], height_px: int, width_px: int
) -> Frames:
    """Frames of a video file at ascending positions, resized; each run between keyframes is decoded once."""
    options: dict[str, Any] = {"height_px": height_px, "width_px": width_px, "timeout_s": DECODE_TIMEOUT_S}
    pts = [int(index.pts[position]) for position in positions]
    if not index.timed:
        return decode_frames(source.url, pts, seek_pts=None, timed=False, **options)
    keyframes = np.searchsorted(index.keyframe_pts, pts, side="right") - 1
    parts = []
    for keyframe in np.unique(keyframes):
        wanted = [stamp for stamp, before in zip(pts, keyframes, strict=True) if before == keyframe]
        seek_pts = int(index.keyframe_pts[keyframe]) if keyframe >= 0 else None
        parts.append(decode_frames(source.url, wanted, seek_pts=seek_pts, timed=True, **options))
    return np.concatenate(parts) if parts else np.empty((0, 3, height_px, width_px), np.uint8)


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
