import cv2
import numpy as np
import pytest

from gwm_model.labels import split_components, spread_labels
from gwm_model.objects import MIN_FRAMES, ObjectTracker
from gwm_model.optical_flow import load_flow_estimator
from pipeline.metrics import identity_switches, object_jaccards
from pipeline.scenes import Scene, render_crossing, render_scene


def follow(scene: Scene, masks: np.ndarray) -> np.ndarray:
    """Numbers [T, H, W] of the objects, with DIS flow; colours of a small picture stand for a network's features."""
    tracker = ObjectTracker(load_flow_estimator("dis"))
    labels = []
    for frame, mask in zip(scene.frames, masks, strict=True):
        small = cv2.resize(frame, (27, 15), interpolation=cv2.INTER_AREA).astype(np.float32)
        labels.append(tracker.step(frame.transpose(2, 0, 1), mask, small.transpose(2, 0, 1)))
    numbers = tracker.numbers()
    final = np.array([numbers[label] for label in range(max(numbers) + 1)])
    return final[np.stack(labels)]


def blob(labels: np.ndarray, number: int, top: int, left: int, side: int) -> None:
    labels[top : top + side, left : left + side] = number


def test_components_are_numbered_by_their_size_without_specks() -> None:
    mask = np.zeros((50, 60), bool)
    blob(mask, True, 2, 2, 6)
    blob(mask, True, 20, 20, 12)
    blob(mask, True, 40, 50, 1)
    labels = split_components(mask, min_area=4 / mask.size)
    assert labels.max() == 2
    assert (labels == 1).sum() == 144
    assert (labels == 2).sum() == 36
    assert not labels[40, 50]


def test_corners_connect_and_an_empty_mask_has_no_objects() -> None:
    assert split_components(np.eye(4, dtype=bool)).max() == 1
    assert split_components(np.zeros((4, 5), bool)).max() == 0


def test_labels_spread_over_the_mask_but_not_to_components_of_their_own() -> None:
    labels = np.zeros((10, 20), np.int32)
    blob(labels, 3, 2, 2, 3)
    blob(labels, 5, 2, 6, 3)
    mask = np.zeros((40, 80), bool)
    mask[6:24, 6:40] = True
    mask[30:38, 60:70] = True
    spread = spread_labels(labels, mask)
    assert not spread[~mask].any()
    assert not spread[30:38, 60:70].any()
    assert (spread[6:24, 6:20] == 3).all()
    assert (spread[6:24, 24:40] == 5).all()


@pytest.mark.parametrize(("seed", "num_objects"), [(6, 2), (9, 3)])
def test_objects_keep_their_numbers_through_a_video(seed: int, num_objects: int) -> None:
    """Seed 6 keeps its objects apart; in seed 9 all three touch from the 13th frame on."""
    scene = render_scene(seed, num_frames=22, num_objects=num_objects)
    numbers = follow(scene, scene.masks)
    assert set(np.unique(numbers)) == set(range(num_objects + 1))
    assert min(object_jaccards(numbers, scene.object_ids)) >= 0.9
    assert identity_switches(numbers, scene.object_ids) == 0


def test_an_object_that_another_hides_keeps_its_number() -> None:
    scene = render_crossing(2)
    assert not all((ids == 1).any() for ids in scene.object_ids)
    numbers = follow(scene, scene.masks)
    assert numbers.max() == 2
    assert min(object_jaccards(numbers, scene.object_ids)) >= 0.9
    assert identity_switches(numbers, scene.object_ids) == 0


def test_an_object_that_the_masks_miss_for_a_while_keeps_its_number_and_a_flicker_gets_none() -> None:
    scene = render_scene(6, num_frames=24, num_objects=2)
    masks = scene.masks.copy()
    masks[8:14] &= scene.object_ids[8:14] != 1
    apart = ~cv2.dilate(scene.masks.max(0).astype(np.uint8), np.ones((9, 9))).astype(bool)
    flicker = np.zeros_like(masks[0])
    top, left = np.argwhere(cv2.erode(apart.astype(np.uint8), np.ones((13, 13))))[0] - 5
    blob(flicker, True, int(top), int(left), 9)
    masks[18:20] |= flicker
    numbers = follow(scene, masks)
    assert numbers.max() == 2
    assert not numbers[8:14][scene.object_ids[8:14] == 1].any()
    assert identity_switches(numbers, scene.object_ids) == 0
    for number in (1, 2):
        assert len(np.unique(numbers[15:][scene.object_ids[15:] == number])) == 1


def test_an_object_that_a_pole_cuts_in_two_stays_one() -> None:
    scene = render_scene(1, num_frames=16, num_objects=2)
    middle = round(np.argwhere(scene.object_ids[8] == 2)[:, 1].mean())
    masks = scene.masks.copy()
    masks[:, :, middle - 2 : middle + 3] = False
    parts = [
        cv2.connectedComponents((mask & (ids == 2)).astype(np.uint8))[0] - 1
        for mask, ids in zip(masks, scene.object_ids, strict=True)
    ]
    assert (parts[0], max(parts)) == (1, 2)
    numbers = follow(scene, masks)
    assert numbers.max() == 2
    assert identity_switches(numbers, scene.object_ids) == 0


def test_an_object_that_comes_later_gets_the_next_number() -> None:
    scene = render_scene(6, num_frames=MIN_FRAMES + 6, num_objects=2)
    masks = scene.masks.copy()
    masks[:5] &= scene.object_ids[:5] != 1
    numbers = follow(scene, masks)
    assert set(np.unique(numbers[:5])) == {0, 1}
    assert set(np.unique(numbers[5:][scene.object_ids[5:] == 1])) == {2}


def test_a_video_without_objects_has_no_numbers() -> None:
    scene = render_scene(6, num_frames=2, height_px=32, width_px=48)
    assert not follow(scene, np.zeros_like(scene.masks)).any()
