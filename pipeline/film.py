"""Frames with their times as a film to look at: H.264 in an mp4 that browsers play."""

from fractions import Fraction
from typing import Any, Self

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation

from pipeline.images import Image

MAX_SIDE_PX = 1280
"""Longest side of a film."""
TICKS_PER_S = 90_000
"""Of its clock: exact for the usual rates, 30000/1001 among them."""
BT709 = 1
"""Number of these primaries, this transfer and this matrix in H.264."""
FPS = 24
"""Of frames that have no clock, and of a single one."""
X264 = {"preset": "veryfast", "crf": "21", "g": "60", "bf": "0"}
"""Fast rather than small; a keyframe every 60 frames to jump to; frames stored in the order of their times."""
MP4 = {"movflags": "faststart", "fflags": "bitexact"}
"""The index comes first, so that a film plays while it loads; nothing names a library's version."""


def film_size(height_px: int, width_px: int) -> tuple[int, int]:
    """Height and width of the film of frames of this size: both even, as its colours have half of each."""
    scale = min(1.0, MAX_SIDE_PX / max(height_px, width_px))
    return max(2, 2 * round(height_px * scale / 2)), max(2, 2 * round(width_px * scale / 2))


class FilmWriter:
    """Writes RGB frames [H, W, 3] of one even size with their ascending presentation times, seconds, into a file.

    The first is shown from 0 s on, the last for as long as the one before it. A frame is encoded as it comes, so that
    memory does not grow with the film. Equal frames give equal bytes. After an error inside `with`, it is no film.
    """

    def __init__(self, path: str, height_px: int, width_px: int) -> None:
        self._container = av.open(path, "w", format="mp4", options=MP4)
        self._stream = _add_h264(self._container, height_px, width_px)
        self._began_s = 0.0
        self._tick, self._shown_for = -1, round(TICKS_PER_S / FPS)
        self.num_frames = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._container:
            if kind is None:
                self._finish()

    def add(self, time_s: float, image: Image) -> None:
        """Takes the next frame."""
        if not self.num_frames:
            self._began_s = time_s
        tick = max(self._tick + 1, round((time_s - self._began_s) * TICKS_PER_S))
        if self.num_frames:
            self._shown_for = tick - self._tick
        self._tick = tick
        self.num_frames += 1
        self._container.mux(self._stream.encode(_frame(image, tick)))

    def _finish(self) -> None:
        for packet in self._stream.encode(None):
            if packet.pts == self._tick:
                packet.duration = self._shown_for
            self._container.mux(packet)


def _frame(image: Image, tick: int) -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24").reformat(
        format="yuv420p",
        dst_colorspace=Colorspace.ITU709,
        dst_color_range=ColorRange.MPEG,
        interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT,
        threads=1,
    )
    frame.pts, frame.time_base = tick, Fraction(1, TICKS_PER_S)
    return frame


def _add_h264(container: Any, height_px: int, width_px: int) -> Any:
    """A stream of H.264 in BT.709, which a browser need not guess."""
    stream = container.add_stream("libx264", options=X264)
    stream.height, stream.width, stream.pix_fmt = height_px, width_px, "yuv420p"
    codec = stream.codec_context
    codec.time_base = Fraction(1, TICKS_PER_S)
    codec.colorspace = codec.color_primaries = codec.color_trc = BT709
    codec.color_range = int(ColorRange.MPEG)
    codec.thread_count = 1  # with more, equal frames give other bytes now and then
    return stream
