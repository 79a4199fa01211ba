import json
from collections import Counter

import numpy as np
import pytest

from pipeline.dataset import Dataset
from pipeline.stages.plan_clips import clip_spans, decoded_span


@pytest.mark.parametrize("num_frames", [1, 7, 8, 9, 15, 16, 17, 33, 100])
def test_spans_cover_every_frame_once(num_frames):
    spans = clip_spans(num_frames, 8)
    assert [frame for start, stop in spans for frame in range(start, stop)] == list(range(num_frames))


def test_a_tiny_remainder_joins_the_last_clip():
    assert clip_spans(17, 8) == [(0, 8), (8, 17)]
    assert clip_spans(18, 8) == [(0, 8), (8, 16), (16, 18)]
    assert clip_spans(1, 8) == [(0, 1)]


@pytest.mark.parametrize("gaps", [(1, -1), (1,), (-1,), (2, -3), (1, -1, 2, -2), (40,)])
def test_every_pair_at_every_gap_is_computed_exactly_once(gaps):
    num_frames = 30
    computed = Counter()
    for start, stop in clip_spans(num_frames, 8):
        first, last = decoded_span(start, stop, num_frames, gaps)
        for gap in gaps:
            computed.update((t, t + gap) for t in range(start, stop) if first <= t + gap < last)
    expected = {(t, t + gap) for gap in gaps for t in range(num_frames) if 0 <= t + gap < num_frames}
    assert set(computed) == expected
    assert set(computed.values()) <= {1}


def test_clips_of_a_video(make_video, stages):
    make_video("a/b.mp4", num_frames=30)
    rows = stages.plan(stages.config())
    assert {row["source"] for row in rows} == {"a/b.mp4"}
    assert [(row["start"], row["stop"], row["owned"]) for row in rows] == [
        (0, 8, 0),
        (8, 16, 1),
        (16, 24, 1),
        (24, 30, 1),
    ]
    assert rows[1]["frame_index"] == list(range(7, 17))
    assert rows[1]["pts_s"] == pytest.approx(np.arange(7, 17) / 25)
    assert rows[1]["seek_pts"] <= rows[1]["pts"][0]
    assert (rows[0]["height_px"], rows[0]["width_px"]) == (48, 64)
    assert len({row["unit"] for row in rows}) == 4


def test_frame_numbers_are_the_videos_own_when_frames_are_left_out(make_video, stages):
    make_video(num_frames=30)
    rows = stages.plan(stages.config(decode={"stride": 3, "clip_frames": 5}))
    assert [row["frame_index"] for row in rows] == [[0, 3, 6, 9, 12, 15], [12, 15, 18, 21, 24, 27]]
    assert [(row["start"], row["stop"]) for row in rows] == [(0, 5), (5, 10)]


def test_units_depend_on_the_video_and_the_configuration_only(make_video, stages, tmp_path):
    path = make_video()
    config = stages.config()
    units = [row["unit"] for row in stages.plan(config)]
    assert units == [row["unit"] for row in stages.plan(config)]
    path.rename(path.with_name("other.mp4"))
    assert not set(units) & {row["unit"] for row in stages.plan(config)}


def test_a_folder_of_frames_is_one_video(make_frame_folder, stages):
    make_frame_folder("seq", num_frames=10)
    rows = stages.plan(stages.config(decode={"height_px": 24}))
    assert [row["kind"] for row in rows] == ["frames", "frames"]
    assert [url.rsplit("/", 1)[1] for url in rows[1]["frame_urls"]] == ["00007.png", "00008.png", "00009.png"]
    assert rows[1]["pts_s"] == [7.0, 8.0, 9.0]
    assert (rows[0]["height_px"], rows[0]["width_px"]) == (24, 32)


def test_finished_and_quarantined_clips_are_counted_and_not_planned(make_video, stages):
    make_video(num_frames=30)
    config = stages.config()
    first, second, third, fourth = (row["unit"] for row in stages.plan(config))
    dataset = Dataset(url=config.output)
    for unit in (first, third):
        shard = stages.folder / "flow" / "shards" / f"{unit}.parquet"
        shard.parent.mkdir(parents=True, exist_ok=True)
        shard.touch()
    dataset.quarantine(second, source="video.mp4", stage="decode_clip", error="broken")
    rows = stages.plan(config)
    assert [row["unit"] for row in rows if row["status"] == "planned"] == [fourth]
    settled = {row["status"]: row["num_units"] for row in rows if row["status"] != "planned"}
    assert settled == {"skipped": 2, "quarantined": 1}


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"only text", "is not a video that can be read"), (b"", "is not a video that can be read")],
)
def test_a_video_without_an_index_fails_as_one_unit(stages, tmp_path, content, reason):
    path = tmp_path / "videos" / "text.mp4"
    path.parent.mkdir()
    path.write_bytes(content)
    config = stages.config()
    (row,) = stages.plan(config)
    failure = json.loads(row["failure"])
    assert (row["status"], row["source"], failure["stage"]) == ("failed", "text.mp4", "plan_clips")
    assert reason in failure["reason"]
    assert "Traceback" in failure["traceback"]
    Dataset(url=config.output).quarantine(row["unit"], source="text.mp4", stage="plan_clips", error="text")
    (again,) = stages.plan(config)
    assert (again["status"], again["num_units"]) == ("quarantined", 1)


def test_a_single_frame_has_no_pair(make_video, stages):
    make_video(num_frames=1)
    (row,) = stages.plan(stages.config())
    assert json.loads(row["failure"])["reason"] == (
        "video.mp4 has 1 frame to use, so there is no pair of frames to estimate flow for"
    )


def test_frames_before_a_cut_are_planned_and_the_missing_end_fails(make_video, stages):
    path = make_video(num_frames=60, container_options={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    *clips, end = stages.plan(stages.config())
    assert len(clips) >= 2
    assert {row["status"] for row in clips} == {"planned"}
    assert "lists 60 frames and only" in json.loads(end["failure"])["reason"]


def test_a_video_in_quarantine_is_not_looked_at_until_it_is_retried(make_video, stages, tmp_path):
    (tmp_path / "list.txt").write_text("videos/v.mp4\n")
    config = stages.config(videos=str(tmp_path / "list.txt"))
    assert [row["status"] for row in stages.run(config)] == ["quarantined"]
    make_video("v.mp4", num_frames=8)
    assert [(row["status"], row.get("num_units")) for row in stages.plan(config)] == [("quarantined", 1)]
    Dataset(url=config.output).clear_quarantine()
    assert [row["status"] for row in stages.plan(config)] == ["planned"]
