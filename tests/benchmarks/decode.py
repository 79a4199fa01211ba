"""Decoding: PyAV alone against the decoding of a clip as the stage does it, and a clip from the middle of a video.

Both decode the same file with the same threads and scale every frame with the same kernel; the frames must be
equal. Ours decodes in a child process, so that a broken file cannot take a worker along.
"""

import tempfile
from pathlib import Path
from typing import Any

import av
import numpy as np
from common import davis_frames, read_frames, report, rounded, side_by_side

from pipeline.config import DecodeLimits
from pipeline.contained import contained
from pipeline.inputs import Source
from pipeline.video import EXACT, Frames, Interpolation, VideoIndex, decode_frames, probe

HEIGHT_PX, WIDTH_PX = 240, 428
CLIP_FRAMES = 32
LONG_REPEATS = 40
LIMITS = DecodeLimits()


def write_video(path: Path, repeats: int) -> None:
    """A DAVIS sequence as H.264 at 480 x 854, over and over, a keyframe every 2 seconds."""
    frames = read_frames(davis_frames("blackswan"), 480, 854)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25, options={"g": "50", "preset": "fast"})
        stream.width, stream.height, stream.pix_fmt = 854, 480, "yuv420p"
        for _ in range(repeats):
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def by_pyav(path: Path, count: int) -> Frames:
    """The first frames, decoded and scaled by PyAV with one thread."""
    frames = np.empty((count, 3, HEIGHT_PX, WIDTH_PX), np.uint8)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for number, frame in zip(range(count), container.decode(stream), strict=False):
            scaled = frame.reformat(
                WIDTH_PX, HEIGHT_PX, "rgb24", interpolation=Interpolation.AREA | EXACT, threads=1
            )
            frames[number] = scaled.to_ndarray().transpose(2, 0, 1)
    return frames


def clip(path: Path, index: VideoIndex, first: int, count: int) -> Frames:
    """A clip as the stage decodes it; the index was made when it was planned."""
    pts = index.pts[first : first + count]
    keyframe = index.keyframe_pts[index.keyframe_pts <= pts[0]][-1]
    return contained(
        LIMITS,
        decode_frames,
        str(path),
        [int(stamp) for stamp in pts],
        seek_pts=int(keyframe),
        timed=True,
        height_px=HEIGHT_PX,
        width_px=WIDTH_PX,
    )


def main() -> None:
    """Prints one JSON line for each target."""
    with tempfile.TemporaryDirectory() as temporary:
        short, long = Path(temporary) / "short.mp4", Path(temporary) / "long.mp4"
        write_video(short, 4)
        write_video(long, LONG_REPEATS)
        short_index, long_index = (
            probe(Source(url=str(path), name=path.name, kind="video")) for path in (short, long)
        )
        clip(short, short_index, 0, 2)  # the child is there
        whole = side_by_side(lambda: by_pyav(short, 160), lambda: clip(short, short_index, 0, 160), rounds=11)
        assert np.array_equal(whole.expected, whole.result)
        report(
            "decode",
            "480 x 854 H.264 to 240 x 428, 1 thread",
            "times the frames/s of PyAV alone",
            whole.ratio,
            at_least=0.9,
            **rounded(pyav_s=whole.reference_s, ours_s=whole.ours_s),
        )
        count = 50 * LONG_REPEATS
        middle = side_by_side(
            lambda: clip(long, long_index, 0, CLIP_FRAMES),
            lambda: clip(long, long_index, count // 2, CLIP_FRAMES),
            rounds=5,
        )
        report(
            "decode",
            f"{CLIP_FRAMES} frames from the middle of {count}",
            "times the first clip's seconds",
            middle.ours_s / middle.reference_s,
            at_most=3,
            **rounded(first_clip_s=middle.reference_s, middle_clip_s=middle.ours_s),
        )


if __name__ == "__main__":
    main()
