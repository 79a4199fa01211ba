import numpy as np
import pytest

from pipeline.metrics import (
    binary_mask,
    boundary_f,
    decay,
    identity_switches,
    jaccard,
    object_jaccards,
    recall,
)


def box(top, bottom, left, right, shape=(10, 12)):
    mask = np.zeros(shape, bool)
    mask[top:bottom, left:right] = True
    return mask


def test_jaccard_counts_pixels():
    assert jaccard(box(0, 4, 0, 4), box(0, 4, 2, 6)) == pytest.approx(8 / 24)
    assert jaccard(box(0, 4, 0, 4), box(0, 4, 0, 4)) == 1.0
    assert jaccard(box(0, 2, 0, 2), box(5, 7, 5, 7)) == 0.0


def test_jaccard_is_symmetric():
    generator = np.random.default_rng(0)
    left, right = generator.random((2, 30, 40)) > 0.5
    assert jaccard(left, right) == jaccard(right, left)


def test_one_empty_mask_scores_nothing_and_two_score_by_convention():
    empty = np.zeros((10, 12), bool)
    assert jaccard(empty, box(0, 2, 0, 2)) == 0.0
    assert jaccard(box(0, 2, 0, 2), empty) == 0.0
    assert jaccard(empty, empty) == 1.0
    assert jaccard(empty, empty, both_empty=0.0) == 0.0


def test_masks_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match="cannot be compared"):
        jaccard(np.zeros((2, 2), bool), np.zeros((2, 3), bool))


def test_a_contour_may_be_off_by_less_than_a_hundredth_of_the_diagonal():
    shape = (300, 400)  # 0.8 % of the diagonal of 500 px: 4 px
    truth = box(100, 200, 100, 200, shape)
    assert boundary_f(truth, truth) == 1.0
    assert boundary_f(box(104, 204, 100, 200, shape), truth) == 1.0
    assert boundary_f(box(112, 212, 100, 200, shape), truth) < 0.6
    assert boundary_f(box(0, 20, 300, 320, shape), truth) == 0.0


def test_half_of_a_contour_is_a_recall_of_half():
    shape = (300, 400)
    both = box(20, 80, 20, 80, shape) | box(200, 260, 300, 360, shape)
    assert boundary_f(box(20, 80, 20, 80, shape), both) == pytest.approx(2 / 3, abs=1e-6)


def test_masks_without_a_contour_score_by_whether_both_have_none():
    empty = np.zeros((30, 40), bool)
    assert boundary_f(empty, empty) == 1.0
    assert boundary_f(empty, box(5, 15, 5, 15, (30, 40))) == 0.0
    assert boundary_f(box(5, 15, 5, 15, (30, 40)), empty) == 0.0
    with pytest.raises(ValueError, match="cannot be compared"):
        boundary_f(np.zeros((2, 2), bool), np.zeros((2, 3), bool))


def test_recall_counts_found_frames_and_decay_compares_the_quarters():
    assert recall([0.5, 0.6, 0.7, 0.1]) == 0.5
    assert decay([1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.0, 0.0]) == pytest.approx((2.5 / 3) - (0.5 / 3))
    assert decay([0.4]) == 0.0


def test_stored_masks_may_be_0_255_or_0_1_or_labels():
    expected = [[False, True]]
    assert binary_mask(np.array([[0, 255]], np.uint8)).tolist() == expected
    assert binary_mask(np.array([[0, 1]], np.uint8)).tolist() == expected
    assert binary_mask(np.array([[0, 3]], np.uint8)).tolist() == expected
    assert binary_mask(np.array([[100, 200, 255]], np.uint8)).tolist() == [[False, True, True]]
    assert not binary_mask(np.zeros((2, 2), np.uint8)).any()


def test_objects_are_matched_once_for_the_whole_video():
    truth = np.stack([box(0, 4, 0, 4) + 2 * box(5, 9, 0, 4)] * 4)
    swapped = np.stack(
        [box(0, 4, 0, 4) * (2 if t < 3 else 1) + box(5, 9, 0, 4) * (1 if t < 3 else 2) for t in range(4)]
    )
    assert object_jaccards(truth, truth) == [1.0, 1.0]
    assert object_jaccards(swapped, truth) == [0.75, 0.75]
    assert identity_switches(truth, truth) == 0
    assert identity_switches(swapped, truth) == 2


def test_objects_that_are_not_found_have_no_score_and_no_switches():
    truth = np.stack([box(0, 4, 0, 4) + 2 * box(5, 9, 0, 4)] * 2)
    one = np.where(truth == 2, 1, 0)
    assert object_jaccards(one, truth) == [0.0, 1.0]
    assert object_jaccards(np.zeros_like(truth), truth) == [0.0, 0.0]
    assert object_jaccards(one, np.zeros_like(truth)) == []
    assert identity_switches(one, truth) == 0
