"""Reading video frames by presentation time: an index without decoding, then only the frames that are wanted.

A frame is named by its presentation time stamp, never by `number / rate`: rates vary, B-frames are stored out
of order, and edit lists hide frames. Files whose container stores no presentation times (AVI, raw streams)
are counted instead: their index is made by decoding once, and a clip is decoded from the start of the file.
"""

import errno
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

import av
import av.error
import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation
from av.video.stream import VideoStream

from pipeline import storage
from pipeline.errors import UnitError
from pipeline.images import image_size, present
from pipeline.inputs import Source, frame_urls

Frames = npt.NDArray[np.uint8]
"""uint8 [T, 3, H, W], RGB, upright."""

ALONE = {"protocol_whitelist": "none"}
"""A list of files that is called a video opens none of them: neither this machine's nor another's."""
UNTIMED_CONTAINERS = frozenset({"avi"})
FROM_START = -(2**62)
"""Stands for no time stamp: before any."""
EARLY_FRAME_S = 1e-3
"""Containers round times to milliseconds: a frame that early still belongs to its tick."""
FULL_CHROMA = Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
EXACT = Interpolation.ACCURATE_RND | Interpolation.BITEXACT | FULL_CHROMA
"""Resizing that gives the same pixels on every processor, nearer to a true area average than the default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoIndex:
    """Which frames a video has, in presentation order."""

    pts: npt.NDArray[np.int64]
    """Presentation time stamps in ticks of the stream, or 0, 1, 2, ... where `timed` is false."""
    pts_s: npt.NDArray[np.float64]
    """Presentation times, seconds; for a folder of frames the frame's number (a folder has no clock)."""
    keyframe_pts: npt.NDArray[np.int64]
    """Time stamps at which decoding can start, ascending."""
    timed: bool
    """Whether `pts` are the container's time stamps."""
    height_px: int
    """Upright height, after the rotation that the file asks for; the sample aspect ratio is ignored."""
    width_px: int
    declared_frames: int
    """Frames that the container's own index lists; more than len(pts) when the end of the file is missing."""


def probe(source: Source) -> VideoIndex:
    """Return the index of a video or of a folder of frames; UnitError says why there is none."""
    if source.kind == "frames":
        return _probe_folder(source)
    with _opened(source.url) as (container, stream):
        first = next(_decoded(container, stream), None)
        if first is None:
            raise UnitError(f"{source.name} has no frame that can be decoded")
        height_px, width_px = first.height, first.width
        if _quarter_turns(first) % 2:
            height_px, width_px = width_px, height_px
    with _opened(source.url) as (container, stream):
        pts, keyframe_pts, declared = _packet_times(container, stream)
        tick_s = float(stream.time_base or 0.0)
        rate = float(stream.average_rate or 25)
    timed = pts is not None
    if pts is None:
        with _opened(source.url) as (container, stream):
            pts = np.arange(sum(1 for _ in _decoded(container, stream)), dtype=np.int64)
            tick_s = 1.0 / rate
    return VideoIndex(
        pts=pts,
        pts_s=np.asarray(pts * tick_s, dtype=np.float64),
        keyframe_pts=keyframe_pts,
        timed=timed,
        height_px=height_px,
        width_px=width_px,
        declared_frames=max(declared, len(pts)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a video says of itself before it is read: near the truth, and not always true."""

    num_frames: int
    duration_s: float
    height_px: int
    """As stored: a rotation is not looked for."""
    width_px: int


def read_header(source: Source) -> Header:
    """Return what a video's header says, or how many frames a folder has; UnitError where neither says anything."""
    if source.kind == "frames":
        folder = _probe_folder(source)
        count = len(folder.pts)
        return Header(
            num_frames=count, duration_s=float(count), height_px=folder.height_px, width_px=folder.width_px
        )
    with _opened(source.url) as (container, stream):
        ticks = stream.duration
        seconds = float(ticks * stream.time_base) if ticks and stream.time_base else 0.0
        seconds = seconds or (container.duration or 0) / av.time_base
        frames = stream.frames or round(seconds * float(stream.average_rate or 0))
        if not frames:
            raise UnitError(f"{source.name} does not say how long it is")
        return Header(num_frames=frames, duration_s=seconds, height_px=stream.height, width_px=stream.width)


def kept_frames(pts_s: npt.NDArray[np.float64], *, stride: int, fps: float | None) -> npt.NDArray[np.int64]:
    """Return the indices of the frames to keep: every `stride`-th, or the first frame of each 1/fps seconds.

    The one definition of a kept frame. With `fps`, ticks are counted from the first frame's time; no frame is
    repeated, so a rate above the video's keeps every frame.
    """
    if fps is None:
        return np.arange(0, len(pts_s), stride, dtype=np.int64)
    if len(pts_s) == 0:
        return np.zeros(0, dtype=np.int64)
    tick = np.floor((pts_s - pts_s[0] + EARLY_FRAME_S) * fps).astype(np.int64)
    return np.flatnonzero(np.diff(tick, prepend=tick[0] - 1)).astype(np.int64)


def fitted_size(
    source_height_px: int, source_width_px: int, height_px: int | None, width_px: int | None
) -> tuple[int, int]:
    """Return (height, width): as given; one from the other by aspect ratio, made even; or the source's."""
    if height_px is not None and width_px is not None:
        return height_px, width_px
    if height_px is not None:
        return height_px, max(2, 2 * round(height_px * source_width_px / source_height_px / 2))
    if width_px is not None:
        return max(2, 2 * round(width_px * source_height_px / source_width_px / 2)), width_px
    return source_height_px, source_width_px


def decode_frames(
    url: str,
    pts: Sequence[int],
    *,
    seek_pts: int | None,
    timed: bool,
    height_px: int,
    width_px: int,
    num_threads: int = 1,
) -> Frames:
    """Return the frames at exactly the ascending time stamps `pts`, resized to upright height_px x width_px.

    Decoding starts at the keyframe `seek_pts` and stops after the last wanted frame; only wanted frames are
    kept, so memory is bounded by the clip. A seek that lands too late (broken file indices) is answered by
    decoding from the start. UnitError: a wanted frame cannot be decoded.
    """
    frames = np.empty((len(pts), 3, height_px, width_px), dtype=np.uint8)
    missing = list(pts)
    for start in (seek_pts, None) if timed and seek_pts is not None else (None,):
        with _opened(url, num_threads) as (container, stream):
            if start is not None:
                container.seek(start, stream=stream)
            found = _collect(_stamped(_decoded(container, stream), timed), pts, timed, frames)
        missing = [stamp for stamp in pts if stamp not in found]
        if not missing:
            return frames
    raise UnitError(
        f"{len(missing)} of {len(pts)} frames cannot be decoded, the first at time stamp {missing[0]}"
    )


def decode_on(
    url: str, pts: Sequence[int], *, seek_pts: int | None, timed: bool, height_px: int, width_px: int
) -> Frames:
    """The same frames as `decode_frames`, going on where this process stopped reading the video, if that was before.

    So a whole video is decoded once, wherever its keyframes are. `stop_reading` closes it.
    """
    global _reading
    frames = np.empty((len(pts), 3, height_px, width_px), dtype=np.uint8)
    for start in (seek_pts, None) if timed else (None,):
        if _reading is None or _reading.url != url or _reading.passed >= pts[0]:
            stop_reading()
            _reading = _Reading(url, start, timed)
        with suppress(av.error.FFmpegError, OSError):  # read anew, it says what is wrong
            if len(_collect(_reading.frames, pts, timed, frames)) == len(pts):
                _reading.passed = pts[-1]
                return frames
        stop_reading()
    return decode_frames(url, pts, seek_pts=seek_pts, timed=timed, height_px=height_px, width_px=width_px)


def stop_reading() -> None:
    """Closes the video that `decode_on` would go on with."""
    global _reading
    if _reading is not None:
        _reading.close()
        _reading = None


class _Reading:
    """A video that is open, its decoded frames up to the last that was asked for."""

    def __init__(self, url: str, seek_pts: int | None, timed: bool) -> None:
        self.url, self.passed = url, FROM_START
        self._opened = ExitStack()
        container, stream = self._opened.enter_context(_opened(url))
        if seek_pts is not None:
            container.seek(seek_pts, stream=stream)
        self.frames = _stamped(_decoded(container, stream), timed)

    def close(self) -> None:
        """Closes the file."""
        self._opened.close()


_reading: _Reading | None = None


def _probe_folder(source: Source) -> VideoIndex:
    urls = frame_urls(source)
    if not urls:
        raise UnitError(f"{source.name} has no frames")
    height_px, width_px = image_size(urls[0])
    number = np.arange(len(urls), dtype=np.int64)
    return VideoIndex(
        pts=number,
        pts_s=number.astype(np.float64),
        keyframe_pts=number,
        timed=False,
        height_px=height_px,
        width_px=width_px,
        declared_frames=len(urls),
    )


@contextmanager
def _opened(url: str, num_threads: int = 1) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Yield the container and its video stream; codec and container errors become UnitError."""
    with present(url), storage.open_read(url) as file:
        try:
            with av.open(file, options=ALONE) as container:
                pictures = Disposition.attached_pic | Disposition.timed_thumbnails
                streams = [s for s in container.streams.video if not s.disposition & pictures]
                if not streams:
                    raise UnitError(f"{url} has no video stream")
                stream = streams[0]
                stream.codec_context.thread_count = num_threads
                stream.thread_type = "AUTO"
                yield container, stream
        except MemoryError:
            raise
        except av.error.FFmpegError as error:
            raise UnitError(f"{url} is not a video that can be read ({error.strerror})") from error
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # a seek before the start of a file too short for its format's header
            raise UnitError(f"{url} is not a video that can be read (it is too short)") from error


def _packet_times(
    container: InputContainer, stream: VideoStream
) -> tuple[npt.NDArray[np.int64] | None, npt.NDArray[np.int64], int]:
    """Return the frames' times (None if there are none), the keyframes' times, and the declared frame count.

    Packets are read, not decoded: the index entries of a container hold decoding times, which differ from
    presentation times wherever there are B-frames.
    """
    num_listed = len(stream.index_entries)
    timed = container.format.name not in UNTIMED_CONTAINERS
    times: list[int] = []
    keyframes: list[int] = []
    num_packets, last_dts = 0, None
    with suppress(av.error.FFmpegError):
        for packet in container.demux(stream) if timed else ():
            if packet.size == 0 or packet.is_corrupt:
                continue
            num_packets += 1
            if packet.is_discard or _is_hidden(stream, packet):
                continue
            if packet.pts is None:
                timed = False
                break
            last_dts = packet.dts if packet.dts is not None else last_dts
            times.append(packet.pts)
            if packet.is_keyframe:
                keyframes.append(packet.pts)
    if not timed:
        return None, np.zeros(0, dtype=np.int64), 0
    pts = np.unique(np.asarray(times, dtype=np.int64))
    num_lost = max(0, num_listed - num_packets)
    declared = len(pts) + num_lost
    if num_lost and last_dts is not None:
        pts = pts[pts <= last_dts]  # between later ones, frames may be missing
    return pts, np.unique(np.asarray(keyframes, dtype=np.int64)), declared


def _is_hidden(stream: VideoStream, packet: av.Packet) -> bool:
    """Whether a VP8 packet only feeds later frames: bit 4 of its first byte is show_frame (RFC 6386)."""
    return stream.codec_context.name == "vp8" and not (bytes(packet)[0] >> 4) & 1


def _decoded(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """Yield the frames from the container's position on, in presentation order, past unreadable packets."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except MemoryError:
            raise
        except av.error.FFmpegError:
            packet = None
        if packet is None:
            return
        if packet.is_corrupt:
            continue
        with suppress(av.error.InvalidDataError):
            yield from (frame for frame in packet.decode() if isinstance(frame, VideoFrame))


def _stamped(decoded: Iterable[VideoFrame], timed: bool) -> Iterator[tuple[int | None, VideoFrame]]:
    """The frames, each with its time stamp, or else with its number."""
    for number, frame in enumerate(decoded):
        yield frame.pts if timed else number, frame


def _collect(
    stamped: Iterable[tuple[int | None, VideoFrame]], pts: Sequence[int], timed: bool, frames: Frames
) -> set[int]:
    """Fill `frames` with the wanted ones of those that come, and return the time stamps found."""
    position = {stamp: i for i, stamp in enumerate(pts)}
    found: set[int] = set()
    for stamp, frame in stamped:
        if stamp is None or frame.is_corrupt:
            continue
        if stamp in position:
            frames[position[stamp]] = _upright(frame, frames.shape[2], frames.shape[3])
            found.add(stamp)
        if len(found) == len(pts) or (stamp > pts[-1] and timed):
            break
        if timed and not found and stamp > pts[0]:
            break
    return found


def _upright(frame: VideoFrame, height_px: int, width_px: int) -> npt.NDArray[np.uint8]:
    """Return the frame [3, H, W] in RGB: resized before the conversion, then rotated as the file asks."""
    turns = _quarter_turns(frame)
    height, width = (width_px, height_px) if turns % 2 else (height_px, width_px)
    shrinks = height < frame.height and width < frame.width
    kernel = Interpolation.AREA if shrinks else Interpolation.BICUBIC  # at equal size it is chroma that grows
    resized = frame.reformat(width, height, "rgb24", interpolation=kernel | EXACT, threads=1)
    return np.rot90(np.asarray(resized.to_ndarray(), dtype=np.uint8), turns).transpose(2, 0, 1)


def _quarter_turns(frame: VideoFrame) -> int:
    """Quarter turns counter-clockwise that put the frame upright (display matrix)."""
    return round(frame.rotation / 90) % 4
