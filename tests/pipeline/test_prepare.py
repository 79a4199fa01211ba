import json
import shutil
from dataclasses import replace

import pytest

from pipeline.dataset import Dataset
from pipeline.errors import GwmError
from pipeline.prepare import flow_shards, prepare


@pytest.fixture
def config(stages):
    return stages.config()


def test_videos_of_all_kinds_become_shards_and_bad_ones_go_to_quarantine(
    ray_local, make_video, make_frame_folder, config, tmp_path, capsys
):
    make_video("wide.mp4", num_frames=20, height_px=48, width_px=96)
    make_video("a/turned.mp4", num_frames=10, rotation_deg=90)
    make_frame_folder("seq", num_frames=5)
    make_video("single.mp4", num_frames=1)
    text = tmp_path / "videos" / "text.mp4"
    text.write_bytes(b"this is text\n" * 100)

    summary = prepare(config)

    assert summary["units"] == {"done": 6, "skipped": 0, "quarantined": 2}
    assert summary["rows"] == 35
    assert summary["dataset"]["num_rows"] == 35
    assert json.loads((tmp_path / "flow" / "summary.json").read_text()) == summary
    assert {"plan_clips", "decode_clip", "estimate_flow", "write_flow_shard", "total"} <= set(
        summary["seconds"]
    )
    printed = capsys.readouterr()
    assert f"gwm train --config conf/train.yaml flow={config.output}" in printed.out
    assert "single.mp4 has 1 frame" in printed.err
    dataset = Dataset.read(config.output, kind="flow")
    entries = {(entry.source, entry.num_rows) for entry in dataset.manifest()}
    assert entries == {("wide.mp4", 8), ("wide.mp4", 4), ("a/turned.mp4", 8), ("a/turned.mp4", 2), ("seq", 5)}
    reasons = {record["source"]: record["reason"] for record in dataset.quarantined()}
    assert "1 frame" in reasons["single.mp4"]
    assert "is not a video" in reasons["text.mp4"]
    shards = {path.name: path.read_bytes() for path in (tmp_path / "flow" / "shards").iterdir()}

    rerun = prepare(config)

    assert rerun["units"] == {"done": 0, "skipped": 6, "quarantined": 2}
    assert rerun["dataset"] == summary["dataset"]

    shutil.move(make_video("text2.mp4", num_frames=4), text)
    (tmp_path / "flow" / "shards" / sorted(shards)[0]).unlink()
    retried = prepare(replace(config, retry_quarantined=True))

    assert retried["units"] == {"done": 2, "skipped": 5, "quarantined": 1}
    now = {path.name: path.read_bytes() for path in (tmp_path / "flow" / "shards").iterdir()}
    assert now.items() >= shards.items()
    assert len(now) == 7


def test_the_plan_names_the_stages_in_order(ray_local, make_video, config):
    make_video()
    plan = repr(flow_shards(config, Dataset(url=config.output)))
    names = ["write_flow_shard", "EstimateFlow", "decode_clip", "plan_clips"]
    positions = [plan.find(name) for name in names]
    assert -1 not in positions
    assert positions == sorted(positions)


def test_an_error_that_is_not_the_units_ends_the_job_with_its_sentence(
    ray_local, make_video, config, tmp_path
):
    make_video(num_frames=9)
    (tmp_path / "flow").mkdir()
    (tmp_path / "flow" / "shards").write_text("a file where the shards should go")
    with pytest.raises(GwmError, match="a part of the path is a file"):
        prepare(config)


def test_weights_that_do_not_fit_leave_nothing_behind(make_video, config, tmp_path):
    make_video(num_frames=9)
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"no weights")
    flow = replace(config.estimate_flow, estimator="raft_small", weights=str(weights))
    with pytest.raises(GwmError, match=r"estimate_flow\.weights"):
        prepare(replace(config, estimate_flow=flow))
    assert not (tmp_path / "flow").exists()


def test_an_output_of_another_configuration_is_refused(make_video, config):
    make_video(num_frames=9)
    Dataset.open(config.output, kind="flow", config=config, schema_version=1)
    other = replace(config, decode=replace(config.decode, stride=2))
    with pytest.raises(GwmError, match=r"decode\.stride"):
        prepare(other)


def test_no_videos_is_an_error_and_leaves_nothing_behind(config, tmp_path):
    (tmp_path / "videos").mkdir()
    with pytest.raises(GwmError, match="no video"):
        prepare(config)
    assert not (tmp_path / "flow").exists()
