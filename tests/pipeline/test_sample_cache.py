import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.sample_cache import Sample, SampleCache


def sample_of(frame_id: int) -> Sample:
    generator = np.random.default_rng(frame_id)
    return Sample(
        image=generator.integers(0, 255, (3, 8, 8), dtype=np.uint8),
        features=[generator.normal(size=(4, 2, 2)).astype(np.float16) for _ in range(2)],
        flow=generator.normal(size=(2, 2, 4, 4)).astype(np.float16),
        has_flow=np.array([True, frame_id > 0]),
    )


class Maker:
    def __init__(self) -> None:
        self.made: list[int] = []

    def __call__(self, frame_id: int) -> Sample:
        self.made.append(frame_id)
        return sample_of(frame_id)


def assert_same(left: Sample, right: Sample) -> None:
    for name, array in left.arrays().items():
        assert np.array_equal(array, right.arrays()[name]), name


def test_a_kept_frame_comes_back_and_is_never_made_again(tmp_path: Path) -> None:
    cache, make = SampleCache(tmp_path / "cache", 5, 10**6), Maker()
    for frame_id in (3, 0, 3, 4, 0, 3):
        assert_same(cache.get(frame_id, make), sample_of(frame_id))
    assert make.made == [3, 0, 4]


def test_ranks_of_a_node_share_what_they_made(tmp_path: Path) -> None:
    first, second, make = SampleCache(tmp_path, 5, 10**6), SampleCache(tmp_path, 5, 10**6), Maker()
    first.get(2, make)
    second.get(1, make)
    for cache in (first, second):
        assert_same(cache.get(2, make), sample_of(2))
        assert_same(cache.get(1, make), sample_of(1))
    assert make.made == [2, 1]


def test_frames_beyond_the_limit_are_made_each_time(tmp_path: Path) -> None:
    frame_bytes = sum(array.nbytes for array in sample_of(0).arrays().values())
    cache, make = SampleCache(tmp_path, 5, 2 * frame_bytes), Maker()
    for frame_id in (0, 1, 4, 0, 1, 4):
        assert_same(cache.get(frame_id, make), sample_of(frame_id))
    assert make.made == [0, 1, 4, 4]


def test_no_room_at_all_still_trains(tmp_path: Path) -> None:
    cache, make = SampleCache(tmp_path, 5, 0), Maker()
    assert_same(cache.get(1, make), sample_of(1))
    assert_same(cache.get(1, make), sample_of(1))
    assert make.made == [1, 1]


class KillsItsProcess:
    """An array that ends the process at the moment when it is copied into the cache."""

    def __array__(self, *args: object, **kwargs: object) -> np.ndarray:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def fill_until_killed(folder: Path) -> None:
    cache = SampleCache(folder, 5, 10**6)
    cache.get(3, sample_of)
    cache.get(1, lambda frame_id: replace(sample_of(frame_id), flow=KillsItsProcess()))


def test_a_frame_that_a_killed_process_left_half_written_is_made_again(tmp_path: Path) -> None:
    """The image of frame 1 is in the cache, its flow is not; frame 3 is whole and stays."""
    killed = multiprocessing.get_context("fork").Process(target=fill_until_killed, args=(tmp_path,))
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    images = np.fromfile(tmp_path / "image", np.uint8).reshape(5, 3, 8, 8)
    assert np.array_equal(images[1], sample_of(1).image)
    cache, make = SampleCache(tmp_path, 5, 10**6), Maker()
    for frame_id in (2, 1, 3):
        assert_same(cache.get(frame_id, make), sample_of(frame_id))
    assert make.made == [2, 1]
