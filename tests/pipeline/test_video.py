import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import cv2
import fsspec
import numpy as np
import pytest
from av.video.reformatter import Interpolation

from pipeline import video
from pipeline.errors import GwmError, UnitError
from pipeline.images import decode_images
from pipeline.inputs import Source
from pipeline.video import (
    EXACT,
    VideoIndex,
    decode_frames,
    decode_on,
    fitted_size,
    kept_frames,
    probe,
    read_header,
    stop_reading,
)

stamped = video._stamped
VARIABLE_MS = np.cumsum([0] + [40, 20, 70] * 10)[:30].tolist()


def source_of(path: Path, kind: str = "video") -> Source:
    return Source(url=str(path), name=path.name, kind=kind, size_bytes=1)


def sequential(path: Path) -> np.ndarray:
    """Every frame of the file decoded in order at its own size, RGB [T, 3, H, W], rotated by hand."""
    frames = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            image = frame.reformat(format="rgb24", interpolation=Interpolation.BICUBIC | EXACT).to_ndarray()
            frames.append(np.rot90(image, round(frame.rotation / 90)).transpose(2, 0, 1))
    return np.stack(frames)


def by_clips(
    path: Path, index: VideoIndex, clip_frames: int, height_px: int, width_px: int, decode=decode_frames
) -> np.ndarray:
    clips = []
    for start in range(0, len(index.pts), clip_frames):
        wanted = index.pts[start : start + clip_frames]
        before = index.keyframe_pts[index.keyframe_pts <= wanted[0]]
        clips.append(
            decode(
                str(path),
                wanted.tolist(),
                seek_pts=int(before[-1]) if len(before) else None,
                timed=index.timed,
                height_px=height_px,
                width_px=width_px,
            )
        )
    return np.concatenate(clips)


def noted(calls: list[Any]) -> Callable[[Any], Any]:
    """A function that returns what it is given and keeps it."""

    def note(given: Any) -> Any:
        calls.append(given)
        return given

    return note


@pytest.mark.parametrize(
    ("name", "making"),
    [
        ("plain.mp4", {}),
        ("variable.mp4", {"times_ms": VARIABLE_MS}),
        ("matroska.mkv", {}),
        ("old.avi", {"codec": "mpeg4", "b_frames": 0}),
    ],
)
def test_a_header_says_what_reading_finds(make_video, name, making):
    source = source_of(make_video(name, **making))
    header, index = read_header(source), probe(source)
    assert (header.num_frames, header.height_px, header.width_px) == (len(index.pts), 48, 64)
    assert header.duration_s == pytest.approx(index.pts_s[-1] - index.pts_s[0], abs=0.1)


def test_a_header_of_a_folder_and_of_what_is_no_video(make_frame_folder, tmp_path):
    folder = source_of(make_frame_folder(), "frames")
    header, index = read_header(folder), probe(folder)
    assert (header.num_frames, header.height_px) == (len(index.pts), index.height_px)
    (tmp_path / "no.mp4").write_bytes(b"no video")
    with pytest.raises(UnitError, match="is not a video that can be read"):
        read_header(source_of(tmp_path / "no.mp4"))


@pytest.mark.parametrize(
    ("name", "making", "timed"),
    [
        ("plain.mp4", {"b_frames": 0}, True),
        ("b_frames.mp4", {"b_frames": 3}, True),
        ("open_gop.mp4", {"options": {"x264-params": "open-gop=1:scenecut=0"}, "b_frames": 3}, True),
        ("variable.mp4", {"times_ms": VARIABLE_MS}, True),
        ("offset.mp4", {"times_ms": [time + 5000 for time in VARIABLE_MS]}, True),
        ("rotated.mp4", {"rotation_deg": -90}, True),
        ("with_sound.mp4", {"audio": True}, True),
        ("h265.mp4", {"codec": "libx265", "options": {"x265-params": "log-level=none"}}, True),
        ("fragmented.mp4", {"container_options": {"movflags": "frag_keyframe+empty_moov"}}, True),
        ("matroska.mkv", {}, True),
        ("transport.ts", {}, True),
        ("vp8.webm", {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "16"}}, True),
        ("vp9.webm", {"codec": "libvpx-vp9", "options": {"auto-alt-ref": "1"}}, True),
        ("old.avi", {"codec": "mpeg4"}, False),
        ("h264.avi", {}, False),
        ("raw.h264", {}, False),
    ],
)
def test_clips_hold_exactly_the_frames_of_a_sequential_decode(make_video, name, making, timed, monkeypatch):
    path = make_video(name, **making)
    index = probe(source_of(path))
    expected = sequential(path)
    assert index.timed is timed
    assert len(index.pts) == index.declared_frames == len(expected) == 30
    assert (index.height_px, index.width_px) == expected.shape[2:]
    for clip_frames in (1, 7, 30):
        found = by_clips(path, index, clip_frames, *expected.shape[2:])
        assert np.array_equal(found, expected), clip_frames

    decoded = []
    monkeypatch.setattr(video, "_stamped", lambda *given: map(noted(decoded), stamped(*given)))
    found = by_clips(path, index, 7, *expected.shape[2:], decode=decode_on)
    assert np.array_equal(found, expected)
    assert 30 <= len(decoded) <= 31, "each frame is decoded once, but for a seek that lands too late"
    again = by_clips(path, index, 30, *expected.shape[2:], decode=decode_on)
    assert np.array_equal(again, expected), "a run before the last one is read anew"
    stop_reading()


def test_presentation_times_of_a_variable_frame_rate(make_video):
    index = probe(source_of(make_video("variable.mp4", times_ms=[time + 5000 for time in VARIABLE_MS])))
    assert index.pts_s == pytest.approx(5 + np.array(VARIABLE_MS) / 1000, abs=1e-3)


def test_frames_are_counted_where_the_container_has_no_times(make_video):
    index = probe(source_of(make_video("old.avi", codec="mpeg4")))
    assert index.pts_s == pytest.approx(np.arange(30) / 25)


def test_frames_that_a_vp8_stream_hides_are_no_frames(make_video):
    path = make_video("hidden.webm", codec="libvpx", keyframe_every=30)
    with av.open(str(path)) as container:
        packet = bytes([p for p in container.demux(video=0) if p.size][7])
    hidden = bytes([packet[0] & ~0x10]) + packet[1:]  # clears the bit show_frame
    path.write_bytes(path.read_bytes().replace(packet, hidden))
    index = probe(source_of(path))
    expected = sequential(path)
    assert len(index.pts) == len(expected) == 29
    assert np.array_equal(by_clips(path, index, 5, 48, 64), expected)


def test_frames_that_an_edit_list_hides_are_no_frames(make_video, tmp_path):
    source, path = make_video(), tmp_path / "videos" / "edited.mp4"
    hidden = 5
    options = {"use_editlist": "1", "avoid_negative_ts": "disabled"}
    with av.open(str(source)) as original, av.open(str(path), "w", options=options) as container:
        stream = container.add_stream_from_template(original.streams.video[0])
        ticks = round(1 / 25 / original.streams.video[0].time_base)
        for packet in original.demux(video=0):
            if packet.size:
                packet.pts, packet.dts = packet.pts - hidden * ticks, packet.dts - hidden * ticks
                packet.stream = stream
                container.mux(packet)
    index = probe(source_of(path))
    assert index.pts_s[:3] == pytest.approx([0, 0.04, 0.08])
    assert np.array_equal(by_clips(path, index, 6, 48, 64), sequential(source)[hidden:])


@pytest.mark.parametrize("rotation_deg", [90, -90, 180])
def test_rotation_puts_the_picture_upright(make_video, rotation_deg):
    path = make_video("turned.mp4", rotation_deg=rotation_deg)
    index = probe(source_of(path))
    lying = sequential(make_video("plain.mp4"))[0]
    turn = {90: cv2.ROTATE_90_COUNTERCLOCKWISE, -90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180}
    turned = cv2.rotate(np.ascontiguousarray(lying.transpose(1, 2, 0)), turn[rotation_deg])
    expected = turned.transpose(2, 0, 1)
    assert (index.height_px, index.width_px) == expected.shape[1:]
    found = by_clips(path, index, 30, index.height_px, index.width_px)[0]
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("size", [(49, 65), (31, 41), (97, 129)])
def test_odd_sizes(make_video, size):
    path = make_video("odd.mp4", height_px=49, width_px=65, pixels="yuv444p")
    index = probe(source_of(path))
    assert (index.height_px, index.width_px) == (49, 65)
    found = by_clips(path, index, 30, *size).astype(int)
    for frame, image in zip(found, sequential(path), strict=True):
        method = cv2.INTER_AREA if size < (49, 65) else cv2.INTER_CUBIC
        expected = cv2.resize(image.transpose(1, 2, 0), size[::-1], interpolation=method)
        assert np.abs(frame - expected.transpose(2, 0, 1)).mean() < 4


def test_threads_do_not_change_pixels(make_video):
    path = make_video(height_px=240, width_px=320)
    index = probe(source_of(path))
    one, two = (
        decode_frames(
            str(path),
            index.pts.tolist(),
            seek_pts=None,
            timed=True,
            height_px=120,
            width_px=160,
            num_threads=threads,
        )
        for threads in (1, 2)
    )
    assert np.array_equal(one, two)


def test_a_seek_that_lands_too_late_is_answered_by_decoding_from_the_start(make_video):
    path = make_video(keyframe_every=10)
    index = probe(source_of(path))
    wanted = index.pts[3:6].tolist()
    size = {"height_px": 48, "width_px": 64, "timed": True}
    late = decode_frames(str(path), wanted, seek_pts=int(index.keyframe_pts[1]), **size)
    assert np.array_equal(late, decode_frames(str(path), wanted, seek_pts=None, **size))


def test_a_cut_file_keeps_its_readable_frames_and_tells_how_many_it_lists(make_video):
    path = make_video(num_frames=60, container_options={"movflags": "faststart"})
    whole = sequential(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    index = probe(source_of(path))
    assert 10 < len(index.pts) < 40
    assert index.declared_frames == 60
    found = by_clips(path, index, 8, 48, 64)
    assert np.array_equal(found, whole[: len(found)])


def test_damage_in_the_middle_fails_only_the_frames_it_touches(make_video):
    path = make_video(num_frames=48, keyframe_every=12, b_frames=0)
    index = probe(source_of(path))
    with av.open(str(path)) as container:
        packet = [p for p in container.demux(video=0) if p.size][18]
        start, num_bytes = packet.pos, packet.size
    data = bytearray(path.read_bytes())
    data[start : start + num_bytes] = bytes(num_bytes)
    path.write_bytes(data)
    size = {"height_px": 48, "width_px": 64, "timed": True}
    decode_frames(str(path), index.pts[24:48].tolist(), seek_pts=int(index.keyframe_pts[2]), **size)
    with pytest.raises(UnitError, match="cannot be decoded"):
        decode_frames(str(path), index.pts[12:24].tolist(), seek_pts=int(index.keyframe_pts[1]), **size)


@pytest.mark.parametrize("content", [b"", b"x", b"just text\n" * 300, bytes(5000)])
def test_a_file_that_is_no_video(tmp_path, content):
    path = tmp_path / "text.mp4"
    path.write_bytes(content)
    with pytest.raises(UnitError, match=r"text\.mp4 is not a video that can be read"):
        probe(source_of(path))


def test_a_file_cut_before_its_index(make_video):
    path = make_video()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UnitError, match="is not a video that can be read"):
        probe(source_of(path))


def test_sound_without_pictures(make_audio):
    with pytest.raises(UnitError, match="has no video stream"):
        probe(source_of(make_audio()))


def test_a_missing_file_fails_its_unit_only(tmp_path):
    with pytest.raises(UnitError, match="there is no"):
        probe(source_of(tmp_path / "gone.mp4"))


def test_storage_errors_are_not_the_videos(monkeypatch, make_video):
    def unreachable(url):
        raise GwmError("Cannot reach the storage server")

    path = make_video()
    monkeypatch.setattr("pipeline.storage.open_read", unreachable)
    with pytest.raises(GwmError, match="Cannot reach"):
        probe(source_of(path))


def test_a_storage_error_while_reading_passes_through_the_decoder(monkeypatch, make_video):
    path = make_video()

    class Broken:
        def __init__(self):
            self.file = path.open("rb")

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def read(self, num_bytes):
            if self.file.tell() > 4000:
                raise GwmError("The storage server stopped answering")
            return self.file.read(min(num_bytes, 1000))

        def seek(self, *position):
            return self.file.seek(*position)

        def tell(self):
            return self.file.tell()

    monkeypatch.setattr("pipeline.storage.open_read", lambda url: Broken())
    with pytest.raises(GwmError, match="stopped answering"):
        probe(source_of(path))


def test_a_video_in_a_bucket_is_read_in_ranges(make_video):
    path = make_video()
    fsspec.filesystem("memory").pipe_file("/bucket/video.mp4", path.read_bytes())
    remote = Source(url="memory://bucket/video.mp4", name="video.mp4", kind="video", size_bytes=1)
    index = probe(remote)
    assert np.array_equal(index.pts, probe(source_of(path)).pts)
    size = {"height_px": 48, "width_px": 64, "timed": True}
    wanted, start = index.pts[14:20].tolist(), int(index.keyframe_pts[1])
    frames = decode_frames(remote.url, wanted, seek_pts=start, **size)
    assert np.array_equal(frames, decode_frames(str(path), wanted, seek_pts=start, **size))


@pytest.mark.parametrize(
    "text", ["ffconcat version 1.0\nfile secret.ts\n", "#EXTM3U\n#EXTINF:1,\nsecret.ts\n"]
)
def test_a_list_that_is_called_a_video_shows_no_other_file(make_video, monkeypatch, text):
    path = make_video("secret.ts").with_name("list.mp4")
    path.write_text(text)
    monkeypatch.chdir(path.parent)
    with pytest.raises(UnitError, match="is not a video that can be read"):
        probe(source_of(path))


def test_a_folder_of_frames(make_frame_folder):
    folder = make_frame_folder(num_frames=5)
    index = probe(source_of(folder, "frames"))
    assert index.pts_s.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert (index.height_px, index.width_px) == (48, 64)
    urls = [str(path) for path in sorted(folder.iterdir())]
    frames = decode_images(urls, height_px=48, width_px=64)
    expected = [cv2.imread(url)[..., ::-1].transpose(2, 0, 1) for url in urls]
    assert np.array_equal(frames, np.stack(expected))
    half = decode_images(urls[:1], height_px=24, width_px=32)[0]
    smaller = cv2.resize(cv2.imread(urls[0])[..., ::-1], (32, 24), interpolation=cv2.INTER_AREA)
    assert np.array_equal(half, smaller.transpose(2, 0, 1))


def test_a_broken_frame_in_a_folder(make_frame_folder):
    folder = make_frame_folder()
    (folder / "00003.png").write_bytes(b"not a picture")
    with pytest.raises(UnitError, match=r"00003\.png is not an image"):
        decode_images([str(folder / "00003.png")], height_px=48, width_px=64)


def test_kept_frames_by_stride():
    assert kept_frames(np.arange(7) / 25, stride=3, fps=None).tolist() == [0, 3, 6]


def test_kept_frames_by_rate():
    def kept(times_s, fps):
        return kept_frames(np.asarray(times_s), stride=1, fps=fps).tolist()

    assert kept(np.arange(10) / 24, 12.0) == [0, 2, 4, 6, 8]
    assert kept(np.round(np.arange(10) / 24, 3), 12.0) == [0, 2, 4, 6, 8]  # times rounded to milliseconds
    assert kept(np.arange(5) / 24, 60.0) == [0, 1, 2, 3, 4]  # never a frame twice
    assert kept([5.0, 5.1, 5.2, 5.9, 6.0, 8.0], 1.0) == [0, 4, 5]  # variable rate, late start, a gap
    assert kept(1000 * 3600 / 25 + np.arange(50) / 25, 5.0) == list(range(0, 50, 5))
    assert kept([], 5.0) == []


@pytest.mark.parametrize(
    ("height_px", "width_px", "expected"),
    [
        (None, None, (480, 854)),
        (240, None, (240, 428)),
        (None, 432, (242, 432)),
        (240, 432, (240, 432)),
        (100, 31, (100, 31)),
    ],
)
def test_fitted_size(height_px, width_px, expected):
    assert fitted_size(480, 854, height_px, width_px) == expected


def test_memory_is_bounded_by_the_clip(make_video):
    """Ten times more video takes no more memory for one clip at its end."""
    script = r"""
import re, sys
from pathlib import Path
from pipeline.inputs import Source
from pipeline.video import decode_frames, probe
index = probe(Source(url=sys.argv[1], name="v", kind="video", size_bytes=1))
decode_frames(sys.argv[1], index.pts[-4:].tolist(), seek_pts=None, timed=True,
              height_px=240, width_px=320)
print(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1])
"""
    peaks_kib = []
    for num_frames in (50, 500):
        path = make_video(f"{num_frames}.mp4", num_frames=num_frames, height_px=240, width_px=320)
        command = [sys.executable, "-c", script, str(path)]
        peaks_kib.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    assert peaks_kib[1] - peaks_kib[0] < 20_000  # 450 more frames would be 52 MB of YUV, 104 MB of RGB
