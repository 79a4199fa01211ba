import numpy as np
import pytest

from pipeline.metrics import binary_mask, jaccard


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


def test_stored_masks_may_be_0_255_or_0_1_or_labels():
    expected = [[False, True]]
    assert binary_mask(np.array([[0, 255]], np.uint8)).tolist() == expected
    assert binary_mask(np.array([[0, 1]], np.uint8)).tolist() == expected
    assert binary_mask(np.array([[0, 3]], np.uint8)).tolist() == expected
    assert binary_mask(np.array([[100, 200, 255]], np.uint8)).tolist() == [[False, True, True]]
    assert not binary_mask(np.zeros((2, 2), np.uint8)).any()
