from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline import work_plan
from pipeline.config import DecodeConfig, PrepareConfig, SegmentConfig, StoreConfig
from pipeline.dataset import Dataset
from pipeline.inputs import Source, find_images, find_videos
from pipeline.scenes import write_video
from pipeline.stages.plan_chunks import inputs_of, plan_chunks
from pipeline.stages.plan_clips import plan_clips, videos_of
from pipeline.work_plan import SAMPLED_VIDEOS, Inputs, Sample, Work, work_of

LENGTHS = (5, 33, 80)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos, and a folder of seven frames, each 32 x 48 pixels."""
    folder = tmp_path_factory.mktemp("videos")
    noise = np.random.default_rng(0)
    for length in LENGTHS:
        frames = noise.integers(0, 255, (length, 32, 48, 3), dtype=np.uint8)
        write_video(folder / f"{length}.mp4", frames)
    (folder / "frames").mkdir()
    for number in range(7):
        cv2.imwrite(str(folder / "frames" / f"{number:03d}.jpg"), np.full((32, 48, 3), number, np.uint8))
    return folder


def work(config: PrepareConfig | SegmentConfig) -> Work:
    found = find_videos(config.videos) if isinstance(config, PrepareConfig) else find_images(config.images)
    return work_of(Inputs.listed(found), config)


@pytest.mark.parametrize(
    "decode", [DecodeConfig(), DecodeConfig(stride=3, clip_frames=8), DecodeConfig(fps=6, height_px=16)]
)
def test_clips_and_frames_are_those_that_prepare_plans(
    videos: Path, tmp_path: Path, decode: DecodeConfig
) -> None:
    config = PrepareConfig(videos=str(videos / "*.mp4"), output=str(tmp_path / "out"), decode=decode)
    dataset = Dataset(url=config.output)
    clips = [clip for row in videos_of(config.videos) for clip in plan_clips(row, config, dataset, "f")]
    guessed = work(config)
    assert guessed.units == len(clips)
    assert guessed.frames == sum(clip["stop"] - clip["start"] for clip in clips)
    assert guessed.decoded_px == sum(
        (clip["stop"] - clip["start"]) * clip["height_px"] * clip["width_px"] for clip in clips
    )
    assert guessed.counted == "the headers of all videos"


@pytest.mark.parametrize("write_objects", [False, True])
def test_chunks_are_those_that_segment_plans(videos: Path, tmp_path: Path, write_objects: bool) -> None:
    for number in range(5):
        cv2.imwrite(str(tmp_path / f"photo{number}.jpg"), np.zeros((8, 8, 3), np.uint8))
    for images, num_frames in ((str(videos), sum(LENGTHS) + 7), (str(tmp_path), 5)):
        config = SegmentConfig(
            images=images, model="m", output="out", chunk_images=4, write_objects=write_objects
        )
        dataset = Dataset(url=str(tmp_path / "nowhere"))
        chunks = [chunk for row in inputs_of(images, 4) for chunk in plan_chunks(row, config, dataset, "f")]
        assert (work(config).units, work(config).frames) == (len(chunks), num_frames)


def test_stored_size(videos: Path) -> None:
    config = PrepareConfig(videos=str(videos / "5.mp4"), output="out", store=StoreConfig(height_px=16))
    assert (work(config).decoded_px, work(config).stored_px) == (5 * 32 * 48, 5 * 16 * 24)


def test_many_videos_are_estimated_from_some(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_plan, "SAMPLED_VIDEOS", 2)
    video = next(find_videos(str(videos / "33.mp4")))
    copies = [Source(url=video.url, name=f"{number}", kind="video", size_bytes=900) for number in range(10)]
    guessed = work_of(Inputs.listed(copies), PrepareConfig(videos="in", output="out"))
    assert (guessed.units, guessed.frames) == (10, 330)
    assert guessed.counted == "the headers of 2 of 10 videos"


def test_a_sample_is_weighed_and_does_not_depend_on_the_order() -> None:
    videos = [Source(url="u", name=f"v{n}", kind="video", size_bytes=n) for n in range(1, 101)]
    one, other = Sample(), Sample()
    for forward, backward in zip(videos, reversed(videos), strict=True):
        one.add(forward)
        other.add(backward)
    assert one == other
    assert (len(one.drawn), one.number, one.weight) == (SAMPLED_VIDEOS, 100, 5050)


def test_what_cannot_be_read_is_said(tmp_path: Path, videos: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video")
    (tmp_path / "b.mp4").write_bytes((videos / "5.mp4").read_bytes())
    guessed = work(PrepareConfig(videos=str(tmp_path), output="out"))
    assert guessed.frames == 5
    assert guessed.counted == "the headers of all videos, 1 of which cannot be read"
