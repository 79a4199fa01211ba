import av
import cv2
import numpy as np
import pytest
import torch

from gwm_model.optical_flow import load_flow_estimator
from pipeline.scenes import Scene, render_crossing, render_scene, write_davis_layout, write_video

SEEDS = (0, 3, 4)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [render_scene(seed, num_frames=10, num_objects=1 + seed // 4) for seed in SEEDS]


def test_same_seed_gives_the_same_scene_and_another_seed_another() -> None:
    first, again, other = (render_scene(seed, num_frames=3, height_px=64, width_px=96) for seed in (5, 5, 6))
    for name in ("frames", "masks", "object_ids", "flow"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    assert not np.array_equal(first.frames, other.frames)


def test_shapes_and_types() -> None:
    scene = render_scene(1, num_frames=4, height_px=48, width_px=64, num_objects=2)
    assert (scene.frames.shape, scene.frames.dtype) == ((4, 48, 64, 3), np.uint8)
    assert (scene.flow.shape, scene.flow.dtype) == ((3, 2, 48, 64), np.float32)
    assert scene.object_ids.dtype == np.uint8
    assert np.array_equal(scene.masks, scene.object_ids > 0)
    assert set(np.unique(scene.object_ids)) == {0, 1, 2}


def test_one_frame_has_no_flow() -> None:
    assert render_scene(0, num_frames=1, height_px=32, width_px=48).flow.shape == (0, 2, 32, 48)


def test_objects_cover_a_sensible_part_of_each_frame(scenes: list[Scene]) -> None:
    for scene in scenes:
        area = scene.masks.mean((1, 2))
        assert area.min() > 0.04
        assert area.max() < 0.35


def test_flow_carries_each_frame_onto_the_next(scenes: list[Scene]) -> None:
    for scene in scenes:
        for t in range(len(scene.flow)):
            back, visible = warp_back(scene, t)
            error = np.abs(back.astype(float) - scene.frames[t].astype(float)).mean(-1)[visible]
            unmoved = np.abs(scene.frames[t + 1].astype(float) - scene.frames[t].astype(float)).mean(-1)[
                visible
            ]
            assert error.mean() < 3.0
            assert error.mean() < 0.3 * unmoved.mean()


def test_flow_carries_masks_onto_the_next_masks(scenes: list[Scene]) -> None:
    for scene in scenes:
        mask, flow = scene.object_ids[0] == scene.object_ids.max(), scene.flow[0]
        rows, columns = np.nonzero(mask)
        x, y = columns + flow[0, rows, columns], rows + flow[1, rows, columns]
        inside = (x >= 0) & (x <= mask.shape[1] - 1) & (y >= 0) & (y <= mask.shape[0] - 1)
        target = scene.object_ids[1][np.rint(y[inside]).astype(int), np.rint(x[inside]).astype(int)]
        assert (target == scene.object_ids.max()).mean() > 0.97


def test_objects_move_relative_to_the_background(scenes: list[Scene]) -> None:
    for scene in scenes:
        for flow, mask in zip(scene.flow, scene.masks, strict=False):
            relative = flow[:, mask].mean(1) - flow[:, ~mask].mean(1)
            assert np.hypot(*relative) > 1.0


def test_background_moves(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert np.hypot(*scene.flow[0][:, ~scene.masks[0]].mean(1)) > 0.2


def test_estimated_flow_agrees_with_the_truth(scenes: list[Scene]) -> None:
    estimator = load_flow_estimator("dis")
    scene = scenes[0]
    estimated = estimator(as_tensor(scene.frames), gaps=(1,))[1].numpy()[: len(scene.flow)]
    assert np.median(np.linalg.norm(estimated - scene.flow, axis=1)) < 0.3


def test_edges_are_antialiased(scenes: list[Scene], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.scenes.SUPERSAMPLING", 1)
    jagged = render_scene(SEEDS[0], num_frames=10)
    assert np.array_equal(jagged.masks, scenes[0].masks)
    mask = jagged.masks[0].astype(np.uint8)
    edge = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    mixed = np.abs(jagged.frames[0].astype(int) - scenes[0].frames[0]).mean(-1)
    assert mixed[edge].mean() > 3 * mixed[~edge].mean()


def test_video_keeps_frames_and_rate(tmp_path, scenes: list[Scene]) -> None:
    write_video(tmp_path / "scene.mp4", scenes[0].frames, fps=12)
    with av.open(str(tmp_path / "scene.mp4")) as container:
        assert container.streams.video[0].average_rate == 12
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(decoded) == len(scenes[0].frames)
    assert np.abs(np.stack(decoded).astype(int) - scenes[0].frames).mean() < 8


def test_davis_layout_holds_frames_and_binary_masks(tmp_path, scenes: list[Scene]) -> None:
    write_davis_layout(tmp_path, {"blob": scenes[0]})
    frames = sorted((tmp_path / "JPEGImages/480p/blob").iterdir())
    masks = sorted((tmp_path / "Annotations/480p/blob").iterdir())
    assert [path.name for path in masks][:2] == ["00000.png", "00001.png"]
    assert len(frames) == len(masks) == len(scenes[0].frames)
    mask = cv2.imread(str(masks[2]), cv2.IMREAD_UNCHANGED)
    assert set(np.unique(mask)) == {0, 255}
    assert np.array_equal(mask > 0, scenes[0].masks[2])


def warp_back(scene: Scene, t: int) -> tuple[np.ndarray, np.ndarray]:
    """Frame t + 1 seen from frame t, and the pixels whose surroundings show the same object in both."""
    height, width = scene.masks.shape[1:]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x, y = x + scene.flow[t, 0], y + scene.flow[t, 1]
    back = cv2.remap(scene.frames[t + 1], x, y, cv2.INTER_CUBIC)
    ids = cv2.remap(scene.object_ids[t + 1], x, y, cv2.INTER_NEAREST, borderValue=255)
    same = (ids == scene.object_ids[t]) & (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return back, cv2.erode(same.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0


def as_tensor(frames: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2)))


def test_crossing_objects_begin_and_end_apart_and_one_hides_the_other() -> None:
    scene = render_crossing(1, num_frames=24)
    components = [cv2.connectedComponents(mask.astype(np.uint8))[0] - 1 for mask in scene.masks]
    assert components[:4] == components[-4:] == [2] * 4
    assert 1 in components
    area = [(ids == 1).sum() for ids in scene.object_ids]
    assert min(area) < 0.1 * area[0]
    assert min((ids == 2).sum() for ids in scene.object_ids) > area[0]
    centre = [np.argwhere(ids == 1)[:, 1].mean() for ids in (scene.object_ids[0], scene.object_ids[-1])]
    assert centre[1] - centre[0] > 0.5 * scene.masks.shape[2]
