import cv2
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, fbeta_score, jaccard_score, precision_recall_curve

from pipeline.metrics import (
    THRESHOLDS,
    binary_mask,
    boundary_f,
    decay,
    f_beta,
    f_beta_curve,
    identity_switches,
    image_scores,
    jaccard,
    mask_scores,
    object_jaccards,
    pixel_accuracy,
    recall,
    soft_mask,
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
    assert binary_mask(np.array([[100, 127, 128, 255]], np.uint8)).tolist() == [[False, False, True, True]]
    assert not binary_mask(np.zeros((2, 2), np.uint8)).any()


def agrees_with_scikit_learn(grey, truth):
    """Scores of an 8-bit map. scikit-learn cuts at >= a value that occurs, we at > k/255: that is >= (k + 1)/255."""
    soft = grey / np.float32(255)
    scores, labels, cut = image_scores(soft, truth), truth.ravel(), (soft > 0.5).ravel()
    assert scores["accuracy"] == pytest.approx(accuracy_score(labels, cut), abs=1e-12)
    assert scores["j"] == pytest.approx(jaccard_score(labels, cut), abs=1e-12)
    assert scores["f_beta"] == pytest.approx(fbeta_score(labels, cut, beta=0.3**0.5), abs=1e-12)
    precision, recalled, levels = precision_recall_curve(labels, grey.ravel())
    place = np.searchsorted(levels, np.arange(1, 255) + 1)
    precision, recalled = precision[place], recalled[place]
    expected = 1.3 * precision * recalled / np.maximum(0.3 * precision + recalled, 1e-300)
    assert scores["f_beta_curve"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_scores_of_random_maps_are_scikit_learns(seed):
    generator = np.random.default_rng(seed)
    truth = generator.random((37, 53)) > 0.7
    grey = np.clip(120 * truth + generator.normal(60, 50, truth.shape), 0, 255).astype(np.uint8)
    agrees_with_scikit_learn(grey, truth)


def test_scores_of_real_masks_are_scikit_learns(test_data):
    """A soft and shifted copy of a real mask, as a network's answer may be."""
    for path in sorted((test_data / "ECSSD/masks").iterdir())[::6]:
        truth = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        agrees_with_scikit_learn(np.roll(cv2.GaussianBlur(truth, (0, 0), 9), 11, axis=1), binary_mask(truth))


def test_the_curve_is_f_beta_above_every_threshold():
    generator = np.random.default_rng(0)
    soft, truth = generator.random((20, 30)).astype(np.float32), generator.random((20, 30)) > 0.5
    found = f_beta_curve(soft, truth)
    assert len(found) == 254
    assert found == pytest.approx([f_beta(soft > threshold, truth) for threshold in THRESHOLDS])


def test_convention_a_grey_value_is_not_above_its_own_threshold():
    levels = np.arange(256, dtype=np.uint8)[None]
    above = soft_mask(levels)[0] > THRESHOLDS[:, None]
    assert (above.sum(1) == 255 - np.arange(1, 255)).all()


def test_convention_of_empty_masks_in_f_beta():
    empty, full = np.zeros((4, 5), bool), np.ones((4, 5), bool)
    assert f_beta(empty, empty) == 1.0  # precision and recall are 1
    assert f_beta(empty, full) == 0.0  # recall is 0
    assert f_beta(full, empty) == 0.0  # precision is 0
    assert (f_beta_curve(empty, empty) == 1.0).all()
    assert image_scores(empty, empty)["j"] == 0.0
    assert mask_scores(empty, empty)["j"] == 1.0


def test_f_beta_prefers_precision():
    truth = box(0, 4, 0, 6)
    too_small, too_large = box(0, 2, 0, 6), box(0, 8, 0, 6)
    assert f_beta(too_small, truth) == pytest.approx(1.3 * 0.5 / (0.3 + 0.5))
    assert f_beta(too_large, truth) == pytest.approx(1.3 * 0.5 / (0.15 + 1.0))
    assert pixel_accuracy(too_small, truth) == pytest.approx(0.9)


def test_a_binary_mask_has_one_f_beta_at_all_thresholds():
    found, truth = box(0, 5, 0, 5), box(2, 7, 1, 6)
    assert (f_beta_curve(found, truth) == f_beta(found, truth)).all()


def test_a_stored_prediction_is_soft_where_it_is_grey():
    assert soft_mask(np.array([[0, 51, 255]], np.uint8)) == pytest.approx(np.array([[0, 0.2, 1]]))
    assert soft_mask(np.array([[0, 51, 102]], np.uint8)) == pytest.approx(np.array([[0, 0.2, 0.4]]))
    assert soft_mask(np.array([[0, 1]], np.uint8)).tolist() == [[False, True]]
    assert soft_mask(np.array([[0, 255]], np.uint8)).tolist() == [[False, True]]


def test_maps_and_masks_of_different_sizes_are_refused():
    for score in (pixel_accuracy, f_beta, f_beta_curve):
        with pytest.raises(ValueError, match="cannot be compared"):
            score(np.zeros((2, 2), bool), np.zeros((2, 3), bool))


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
