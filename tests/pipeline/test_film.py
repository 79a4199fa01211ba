from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.film import FPS, MAX_SIDE_PX, FilmWriter, film_size

TIMES_S = {
    "one": [3.0],
    "ntsc": [number * 1001 / 30000 for number in range(10)],
    "varying": [5.0, 5.04, 5.08, 5.5, 5.52, 6.5, 6.6],
}


def pictures(count: int) -> np.ndarray:
    """Frames [T, 64, 96, 3] of a colour each with a square in another."""
    frames = np.zeros((count, 64, 96, 3), np.uint8)
    frames[:] = np.random.default_rng(0).integers(40, 200, (count, 1, 1, 3))
    frames[:, 16:48, 32:64] = (230, 40, 90)
    return frames


def write(path: Path, times_s: list[float]) -> bytes:
    with FilmWriter(str(path), 64, 96) as film:
        for time_s, picture in zip(times_s, pictures(len(times_s)), strict=True):
            film.add(time_s, picture)
    assert film.num_frames == len(times_s)
    return path.read_bytes()


@pytest.mark.parametrize("times_s", TIMES_S.values(), ids=TIMES_S.keys())
def test_frames_keep_their_times_and_their_colours(times_s: list[float], tmp_path: Path) -> None:
    write(tmp_path / "film.mp4", times_s)
    with av.open(str(tmp_path / "film.mp4")) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        duration_s = float(stream.duration * stream.time_base)
    found_s = np.array([frame.time for frame in frames])
    assert np.abs(found_s - (np.array(times_s) - times_s[0])).max() < 1e-5
    last_s = times_s[-1] - times_s[-2] if len(times_s) > 1 else 1 / FPS
    assert duration_s == pytest.approx(times_s[-1] - times_s[0] + last_s, abs=1e-4)
    decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in frames]).astype(int)
    assert np.abs(decoded - pictures(len(times_s))).mean() < 4


def test_a_film_is_what_browsers_play_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    first = write(tmp_path / "a.mp4", TIMES_S["ntsc"])
    assert first == write(tmp_path / "b.mp4", TIMES_S["ntsc"])
    assert first.find(b"moov") < first.find(b"mdat")
    with av.open(str(tmp_path / "a.mp4")) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.name, codec.pix_fmt) == ("h264", "yuv420p")
        assert (codec.colorspace, codec.color_primaries, codec.color_trc, codec.color_range) == (1, 1, 1, 1)


def fail_after(path: Path, num_frames: int) -> None:
    with FilmWriter(str(path), 64, 96) as film:
        for number in range(num_frames):
            film.add(float(number), pictures(1)[0])
        raise RuntimeError("decoding")


@pytest.mark.parametrize("num_frames", [0, 1, 5])
def test_an_error_while_frames_come_is_raised_as_it_is(num_frames: int, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"^decoding$"):
        fail_after(tmp_path / "film.mp4", num_frames)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ((2160, 3840), (720, 1280)),
        ((1920, 1080), (1280, 720)),
        ((480, 854), (480, 854)),
        ((1, 1), (2, 2)),
        ((1, 5000), (2, 1280)),
    ],
)
def test_a_film_has_even_sides_and_is_not_larger_than_its_frames(
    source: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert film_size(*source) == expected
    for side in range(MAX_SIDE_PX - 3, MAX_SIDE_PX + 4):
        assert all(found % 2 == 0 and abs(found - side) <= 4 for found in film_size(side, side))
