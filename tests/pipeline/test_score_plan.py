import cv2
import numpy as np
import pytest

from pipeline.config import DecodeLimits, EvaluateConfig
from pipeline.dataset import Dataset
from pipeline.errors import GwmError
from pipeline.frames import FrameList, read_frame_list
from pipeline.layouts import read_layout
from pipeline.score_plan import check_inputs, plan_scores


def config_of(**values):
    return EvaluateConfig(**{"dataset": "davis2016", "data": "data", "output": "out", **values})


def write_pictures(folder, stems, value=0):
    folder.mkdir(parents=True, exist_ok=True)
    for stem in stems:
        cv2.imwrite(str(folder / f"{stem}.png"), np.full((48, 64), value, np.uint8))


def numbers(count):
    return [f"{number:05d}" for number in range(count)]


def davis(root, name="v", count=6):
    write_pictures(root / "JPEGImages/480p" / name, numbers(count), 90)
    write_pictures(root / "Annotations/480p" / name, numbers(count), 255)
    return str(root)


def plan(config):
    return plan_scores(config, read_layout(config.dataset, config.data))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({}, "Give either masks= .* or model="),
        ({"masks": "m", "model": "m"}, "Give either masks= .* or model="),
        ({"masks": "m", "protocol": "paper"}, "protocol=paper chooses among the K regions .* give model="),
        ({"masks": "m", "protocol": "oracle"}, "protocol=oracle chooses among the K regions"),
        ({"model": "m", "protocol": "official"}, "protocol=official scores given masks"),
        ({"masks": "m", "protocol": "best"}, "protocol=best is not known: it is one of official, label_free"),
        ({"masks": "m", "images": "i"}, "give model= too"),
        ({"model": "m", "images": "i", "flow": "f"}, "either images= or flow="),
    ],
)
def test_inputs_that_do_not_go_together_are_one_sentence(values, sentence):
    with pytest.raises(GwmError, match=sentence):
        check_inputs(config_of(**values))


@pytest.mark.parametrize(
    "values", [{"masks": "m"}, {"masks": "m", "protocol": "official"}, {"model": "m", "protocol": "paper"}]
)
def test_inputs_that_go_together(values):
    check_inputs(config_of(**values))


def test_given_masks_are_planned_for_the_official_frames(tmp_path):
    data = davis(tmp_path / "data")
    write_pictures(tmp_path / "masks/v", numbers(6), 255)
    (row,) = plan(config_of(data=data, masks=str(tmp_path / "masks")))
    assert row["frame_index"] == [1, 2, 3, 4]
    assert row["frame"] == ["00001", "00002", "00003", "00004"]
    assert [name.rsplit("/", 2)[1:] for name in row["files"]] == [
        ["v", f"{stem}.png"] for stem in row["frame"]
    ]
    assert row["masks_kind"] == "folder"


def test_a_mask_that_no_protocol_needs_may_be_missing(tmp_path):
    data = davis(tmp_path / "data")
    write_pictures(tmp_path / "masks/v", numbers(5), 255)
    assert len(plan(config_of(data=data, masks=str(tmp_path / "masks")))) == 1
    (tmp_path / "masks/v/00004.png").unlink()
    with pytest.raises(GwmError, match="holds no mask of v/00004"):
        plan(config_of(data=data, masks=str(tmp_path / "masks")))


def test_a_models_frames_are_marked_by_protocol(tmp_path):
    (row,) = plan(config_of(data=davis(tmp_path / "data"), model="m"))
    assert row["frame_index"] == [1, 2, 3, 4]
    assert row["in_official"] == [True] * 4
    assert row["in_paper"] == [False, True, True, True]
    assert FrameList.of_row(row).num_frames == 6


def test_single_images_come_in_rows_of_64(tmp_path):
    stems = [f"i{number}" for number in range(150)]
    write_pictures(tmp_path / "images", stems)
    write_pictures(tmp_path / "masks", stems, 255)
    rows = plan(config_of(dataset="images", data=str(tmp_path), model="m"))
    assert [len(row["frame_index"]) for row in rows] == [64, 64, 22]
    assert [number for row in rows for number in row["frame_index"]] == list(range(150))
    assert {row["sequence"] for row in rows} == {"images"}


def test_frames_can_come_from_a_video_or_another_folder(tmp_path, make_video):
    data = davis(tmp_path / "data")
    make_video("v.mp4", num_frames=6)
    (row,) = plan(config_of(data=data, model="m", images=str(tmp_path / "videos")))
    assert (row["frames_kind"], row["num_frames"]) == ("video", 6)
    make_video("v.mp4", num_frames=7)
    with pytest.raises(GwmError, match="v has 7 frames to segment, but 6 in "):
        plan(config_of(data=data, model="m", images=str(tmp_path / "videos")))
    (row,) = plan(config_of(data=data, model="m", images=str(tmp_path / "data/JPEGImages/480p")))
    assert (row["frames_kind"], row["num_frames"]) == ("files", 6)
    with pytest.raises(GwmError, match="holds no v"):
        plan(config_of(data=data, model="m", images=str(tmp_path / "data/JPEGImages/480p/v/00000.png")))


def test_frames_can_come_from_a_flow_dataset(tmp_path, make_video, stages):
    data = davis(tmp_path / "data", count=12)
    make_video("v.mp4", num_frames=12)
    prepare = stages.config()
    Dataset.open(prepare.output, kind="flow", config=prepare, schema_version=1)
    stages.run(prepare)
    (row,) = plan(config_of(data=data, model="m", flow=prepare.output))
    frames = FrameList.of_row(row)
    assert (frames.kind, len(frames)) == ("flow", 12)
    found = read_frame_list(frames, [0, 7, 11], 48, 64, DecodeLimits())
    video = FrameList(kind="video", urls=(str(tmp_path / "videos/v.mp4"),), num_frames=12)
    difference = found.astype(np.int16) - read_frame_list(video, [0, 7, 11], 48, 64, DecodeLimits())
    assert np.abs(difference).mean() < 3  # stored as JPEG
    davis(tmp_path / "data", name="w")
    with pytest.raises(GwmError, match="does not hold all frames of w"):
        plan(config_of(data=data, model="m", flow=prepare.output))
