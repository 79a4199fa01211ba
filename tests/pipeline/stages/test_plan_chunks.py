import cv2
import numpy as np
import pytest

from pipeline.dataset import Dataset
from pipeline.inputs import Source
from pipeline.stages.plan_chunks import group_inputs, plan_chunks


def write_images(folder, count, side=20):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture = np.random.default_rng(number).integers(0, 255, (side, side + 4, 3), np.uint8)
        cv2.imwrite(str(folder / f"img_{chr(97 + number)}.png"), picture)


def image(number):
    return Source(url=f"/in/{number}.jpg", name=f"{number}.jpg", kind="image", size_bytes=number)


def test_images_are_grouped_in_order_and_videos_stay_alone():
    video = Source(url="/in/v.mp4", name="v.mp4", kind="video", size_bytes=9)
    rows = list(group_inputs([image(1), image(2), video, image(3), image(4)], 3))
    assert [row["kind"] for row in rows] == ["video", "images", "images"]
    assert [row["names"] for row in rows] == [["v.mp4"], ["1.jpg", "2.jpg", "3.jpg"], ["4.jpg"]]
    assert rows[1]["source"] == "1.jpg to 3.jpg"
    assert rows[2]["sizes"] == [4]


def test_images_become_chunks_that_name_every_image_once(segment_stages, tmp_path):
    write_images(tmp_path / "videos" / "sub", 19)
    rows = segment_stages.plan(segment_stages.config())
    names = [name for row in rows for name in row["names"]]
    assert names == [f"sub/img_{chr(97 + number)}.png" for number in range(19)]
    assert [len(row["names"]) for row in rows] == [8, 8, 3]
    assert len({row["unit"] for row in rows}) == 3


def test_a_units_name_is_a_function_of_keys_sizes_and_configuration(segment_stages, tmp_path):
    write_images(tmp_path / "videos", 3)
    config = segment_stages.config()
    dataset = Dataset(url=config.output)
    source = next(group_inputs([image(1), image(2)], 8))
    unit = plan_chunks(source, config, dataset, "one")[0]["unit"]
    assert plan_chunks(source, config, dataset, "one")[0]["unit"] == unit
    assert plan_chunks(source, config, dataset, "two")[0]["unit"] != unit
    grown = next(
        group_inputs([image(1), Source(url="/in/2.jpg", name="2.jpg", kind="image", size_bytes=7)], 8)
    )
    assert plan_chunks(grown, config, dataset, "one")[0]["unit"] != unit


@pytest.mark.parametrize("kind", ["video", "frames"])
def test_chunks_of_a_video_own_every_frame_once_and_share_their_anchors(
    segment_stages, make_video, make_frame_folder, kind
):
    if kind == "video":
        make_video("v.mp4", num_frames=21)
    else:
        make_frame_folder("v", num_frames=21)
    rows = segment_stages.plan(segment_stages.config(anchor_frames=4))
    assert [number for row in rows for number in row["frame_index"]] == list(range(21))
    assert len(rows) == 3
    where = "anchor_pts" if kind == "video" else "anchor_urls"
    assert all(row[where] == rows[0][where] for row in rows)
    assert len(rows[0][where]) == 4
    assert {row["video"] for row in rows} == {rows[0]["video"]}


def test_a_file_that_is_no_video_fails_as_one_unit(segment_stages, make_video, tmp_path):
    make_video("good.mp4", num_frames=8)
    (tmp_path / "videos" / "text.mp4").write_text("not a video")
    rows = segment_stages.plan(segment_stages.config())
    failed = [row for row in rows if row["status"] == "failed"]
    assert [row["source"] for row in failed] == ["text.mp4"]
    assert sum(row["status"] == "planned" for row in rows) == 1


def test_finished_units_are_not_planned_again_unless_they_hold_errors(segment_stages, tmp_path):
    write_images(tmp_path / "videos", 10)
    (tmp_path / "videos" / "img_b.png").write_bytes(b"nothing")
    config = segment_stages.config()
    segment_stages.run(config)
    rows = segment_stages.plan(config)
    assert [(row["status"], row["num_units"], row["num_errors"]) for row in rows] == [
        ("skipped", 1, 1),
        ("skipped", 1, 0),
    ]
    again = segment_stages.plan(segment_stages.config(retry_quarantined=True))
    assert [row["status"] for row in again] == ["planned", "skipped"]


def test_quarantined_units_are_counted_and_left_alone(segment_stages, tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "text.mp4").write_text("not a video")
    config = segment_stages.config()
    assert [row["status"] for row in segment_stages.run(config)] == ["quarantined"]
    (row,) = segment_stages.plan(config)
    assert (row["status"], row["num_units"]) == ("quarantined", 1)
