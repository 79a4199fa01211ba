import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.config import EstimateFlowConfig, StoreConfig
from pipeline.errors import GwmError
from pipeline.records import decode_flow
from pipeline.stages.decode_clip import decode_clip
from pipeline.stages.estimate_flow import (
    EstimateFlow,
    load_estimator,
    resize_flow,
    stored_flow,
    with_absolute_paths,
)


def decoded(stages, config):
    return [decode_clip(row, config) for row in stages.plan(config)]


def test_flow_of_the_owned_frames_only(make_video, stages):
    make_video(num_frames=30, height_px=96, width_px=128)
    config = stages.config()
    row = EstimateFlow(config, "cpu", 1)(decoded(stages, config)[1])
    assert row["frames"].shape == (8, 3, 96, 128)
    assert list(row["frame_index"]) == list(range(8, 16))
    assert row["flow_p1"].shape == (8, 2, 96, 128)
    assert row["has_flow_p1"].all()
    assert row["has_flow_m1"].all()
    forward, backward = (np.median(decode_flow(row[name]), axis=(0, 2, 3)) for name in ("flow_p1", "flow_m1"))
    assert forward == pytest.approx([-2, -1], abs=0.15)  # the texture moves 2 px left and 1 px up
    assert backward == pytest.approx([2, 1], abs=0.15)


def test_flow_is_absent_at_the_ends_of_the_video(make_video, stages):
    make_video(num_frames=16)
    config = stages.config(estimate_flow={"gaps": (1, -1, 3)})
    estimate_flow = EstimateFlow(config, "cpu", 1)
    first, last = (estimate_flow(row) for row in decoded(stages, config))
    assert first["has_flow_m1"].tolist() == [False] + [True] * 7
    assert last["has_flow_p1"].tolist() == [True] * 7 + [False]
    assert last["has_flow_p3"].tolist() == [True] * 5 + [False] * 3
    assert not first["flow_m1"][0].any()
    assert not last["flow_p3"][5:].any()
    assert last["flow_p3"][:5].any()


@pytest.mark.parametrize("estimator", ["dis", "raft_small"])
def test_any_split_into_clips_gives_the_flow_of_the_whole_video(make_video, stages, estimator, tmp_path):
    make_video(num_frames=9, height_px=128, width_px=128)
    weights = "pretrained"
    if estimator == "raft_small":
        weights = str(tmp_path / "raft.pth")
        torch.manual_seed(0)
        from torchvision.models.optical_flow import raft_small

        torch.save(raft_small(weights=None).state_dict(), weights)
    flows = {}
    for clip_frames in (100, 4):
        config = stages.config(
            decode={"clip_frames": clip_frames},
            estimate_flow={"estimator": estimator, "weights": weights, "iterations": 2},
        )
        estimate_flow = EstimateFlow(config, "cpu", 1)
        rows = [estimate_flow(row) for row in decoded(stages, config)]
        flows[clip_frames] = {
            name: np.concatenate([row[name] for row in rows]).astype(int)
            for name in ("flow_p1", "flow_m1", "has_flow_p1", "has_flow_m1")
        }
    for name, whole in flows[100].items():
        steps = 0 if estimator == "dis" else 1  # another batch size may round a network's last bit otherwise
        assert np.abs(flows[4][name] - whole).max() <= steps, name


def test_stored_flow_is_in_pixels_of_the_stored_size(make_video, stages):
    make_video(num_frames=9, height_px=96, width_px=128)
    config = stages.config(store=StoreConfig(height_px=48, width_px=32))
    (row,) = (EstimateFlow(config, "cpu", 1)(row) for row in decoded(stages, config))
    assert row["flow_p1"].shape == (9, 2, 48, 32)
    flow = decode_flow(row["flow_p1"])[:-1]
    assert np.median(flow, axis=(0, 2, 3)) == pytest.approx([-2 / 4, -1 / 2], abs=0.05)


def test_store_width_follows_the_pictures_shape(make_video, stages):
    make_video(num_frames=9, height_px=96, width_px=128)
    config = stages.config(store=StoreConfig(height_px=24))
    (row,) = (EstimateFlow(config, "cpu", 1)(row) for row in decoded(stages, config))
    assert (row["stored_height_px"], row["stored_width_px"]) == (24, 32)


@pytest.mark.parametrize("size", [(24, 32), (96, 160), (48, 64)])
def test_resized_flow_points_to_the_same_place(size):
    height_px, width_px = size
    y, x = np.mgrid[0:48, 0:64].astype(np.float32) + 0.5
    flow = np.stack([0.1 * x, -0.2 * y])  # a zoom about the corner keeps its form at every size
    resized = resize_flow(flow, height_px, width_px)
    y, x = np.mgrid[0:height_px, 0:width_px].astype(np.float32) + 0.5
    inner = np.s_[:, 3:-3, 3:-3]
    assert np.allclose(resized[inner], np.stack([0.1 * x, -0.2 * y])[inner], atol=1e-3)


def test_flow_that_is_not_finite_is_no_flow(stages, make_video, monkeypatch):
    flow = np.full((2, 2, 4, 4), np.nan, np.float32)
    assert not stored_flow(flow, np.array([False, False]), 4, 4).any()
    make_video(num_frames=9)
    config = stages.config()
    estimate_flow = EstimateFlow(config, "cpu", 1)

    class Broken:
        weights_sha256 = None

        def __call__(self, frames, gaps, *, start, stop):
            return {gap: torch.full((stop - start, *frames[0, :2].shape), torch.nan) for gap in gaps}

    monkeypatch.setattr(estimate_flow, "_source", Broken())
    failed = estimate_flow(decoded(stages, config)[0])
    assert failed["status"] == "failed"
    assert json.loads(failed["failure"])["stage"] == "estimate_flow"


@pytest.mark.parametrize("content", [b"no weights at all", None])
def test_weights_that_do_not_fit_are_refused_with_one_sentence(tmp_path, content):
    path = tmp_path / "weights.pth"
    if content is None:
        torch.save({"wrong": torch.zeros(3)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(GwmError, match=r"^estimate_flow\.weights: .*weights\.pth"):
        load_estimator(EstimateFlowConfig(estimator="raft_small", weights=str(path)), "cpu")


def test_missing_weights_are_refused_with_one_sentence(tmp_path):
    with pytest.raises(GwmError, match=r"^estimate_flow\.weights: .*none\.pth"):
        load_estimator(EstimateFlowConfig(estimator="raft_small", weights=str(tmp_path / "none.pth")), "cpu")


def test_weights_of_a_relative_path_are_found_from_anywhere(stages, tmp_path, monkeypatch):
    (tmp_path / "raft.pth").touch()
    monkeypatch.chdir(tmp_path)
    for weights, expected in (
        ("raft.pth", str(tmp_path / "raft.pth")),
        ("pretrained", "pretrained"),
        ("s3://bucket/raft.pth", "s3://bucket/raft.pth"),
    ):
        config = stages.config(estimate_flow={"weights": weights})
        assert with_absolute_paths(config) == replace(
            config, estimate_flow=replace(config.estimate_flow, weights=expected)
        )


def test_weights_from_a_bucket(tmp_path, test_data):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe_file("/weights/raft-small.pth", (test_data / "weights/raft-small.pth").read_bytes())
    config = EstimateFlowConfig(estimator="raft_small", weights="memory://weights/raft-small.pth")
    local = EstimateFlowConfig(estimator="raft_small", weights=str(test_data / "weights/raft-small.pth"))
    assert load_estimator(config, "cpu").weights_sha256 == load_estimator(local, "cpu").weights_sha256
