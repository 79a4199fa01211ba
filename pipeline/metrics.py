"""Scores of masks against ground truth."""

import math
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
Map = npt.NDArray[np.bool_] | npt.NDArray[np.float32]
"""A mask, or foreground probabilities."""
Counts = npt.NDArray[np.intp]
Scores = dict[str, float | npt.NDArray[np.float64]]
Numbers = npt.NDArray[np.integer]

BETA_SQUARED = 0.3
"""Weight of precision in F_beta, as usual for salient objects (Achanta et al., CVPR 2009)."""
THRESHOLDS = np.divide(np.arange(1, 255), 255, dtype=np.float32)
"""At which probabilities are cut for the maximum of F_beta; as exact as they are, so that equal is not above."""
RECALLED = 0.5
"""A frame above this score counts as found."""
CONTOUR_REACH = 0.008
"""Share of the image's diagonal by which a contour may be off."""


def jaccard(prediction: Mask, truth: Mask, *, both_empty: float = 1.0) -> float:
    """J: intersection over union of two masks [H, W], in [0, 1].

    Args:
        prediction: the segmentation.
        truth: the ground truth, of the same size.
        both_empty: the score where neither mask has a pixel: 1 in the DAVIS toolkit, 0 in the paper's code.

    Raises:
        ValueError: the sizes differ.
    """
    _check_size(prediction, truth)
    union = np.count_nonzero(prediction | truth)
    if union == 0:
        return both_empty
    return np.count_nonzero(prediction & truth) / union


def boundary_f(prediction: Mask, truth: Mask) -> float:
    """F: precision and recall of the contours' pixels [H, W], harmonic mean in [0, 1] (Perazzi, CVPR 2016).

    A contour's pixel is found where the other contour has one within 0.8 % of the image's diagonal.

    Raises:
        ValueError: the sizes differ.
    """
    _check_size(prediction, truth)
    found, wanted = _contour(prediction), _contour(truth)
    if not found.any() or not wanted.any():
        return float(found.any() == wanted.any())
    reach_px = math.ceil(CONTOUR_REACH * math.hypot(*truth.shape))
    precision = np.count_nonzero(found & _dilated(wanted, reach_px)) / np.count_nonzero(found)
    recall = np.count_nonzero(wanted & _dilated(found, reach_px)) / np.count_nonzero(wanted)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def pixel_accuracy(prediction: Mask, truth: Mask) -> float:
    """The share of pixels [H, W] on which two masks agree.

    Raises:
        ValueError: the sizes differ.
    """
    _check_size(prediction, truth)
    return float(np.mean(prediction == truth))


def f_beta(prediction: Mask, truth: Mask) -> float:
    """F_beta: precision and recall of the pixels [H, W], weighted harmonic mean in [0, 1] with beta^2 = 0.3.

    An empty prediction has precision 1, an empty ground truth recall 1.

    Raises:
        ValueError: the sizes differ.
    """
    _check_size(prediction, truth)
    both, found = (np.array([np.count_nonzero(mask)]) for mask in (prediction & truth, prediction))
    return float(_f_beta(both, found, int(np.count_nonzero(truth)))[0])


def f_beta_curve(probability: Map, truth: Mask) -> npt.NDArray[np.float64]:
    """F_beta of what lies above each of the 254 thresholds, of foreground probabilities [H, W].

    The maximum of F_beta over a data set is that of the mean of its images' curves.

    Raises:
        ValueError: the sizes differ.
    """
    _check_size(probability, truth)
    passed = np.searchsorted(THRESHOLDS, probability.ravel(), side="left")  # thresholds that a pixel is above
    both, found = (
        np.bincount(pixels, minlength=len(THRESHOLDS) + 1)[:0:-1].cumsum()[::-1]
        for pixels in (passed[truth.ravel()], passed)
    )
    return _f_beta(both, found, int(np.count_nonzero(truth)))


def mask_scores(found: Map, truth: Mask) -> Scores:
    """`j` and `f` of a mask, or of foreground probabilities cut at one half."""
    mask = found > 0.5
    return {"j": jaccard(mask, truth), "f": boundary_f(mask, truth)}


def image_scores(found: Map, truth: Mask) -> Scores:
    """`j`, `f`, `accuracy`, `f_beta` and `f_beta_curve`, as benchmarks of single images have them.

    There two empty masks have J 0.
    """
    mask = found > 0.5
    return {
        "j": jaccard(mask, truth, both_empty=0.0),
        "f": boundary_f(mask, truth),
        "accuracy": pixel_accuracy(mask, truth),
        "f_beta": f_beta(mask, truth),
        "f_beta_curve": f_beta_curve(found, truth),
    }


def recall(scores: Sequence[float]) -> float:
    """The share of a sequence's frames with a score above 0.5."""
    return float(np.mean(np.asarray(scores) > RECALLED))


def decay(scores: Sequence[float]) -> float:
    """How much a sequence loses: the mean of its first quarter less that of its last.

    Quarters as in the DAVIS toolkit, which share the frame between them; 0 for a single frame.
    """
    ends = np.round(np.linspace(1, len(scores), 5) + 1e-10).astype(int) - 1
    first, last = scores[ends[0] : ends[1] + 1], scores[ends[3] : ends[4] + 1]
    return float(np.mean(first) - np.mean(last))


def object_jaccards(numbers: Numbers, truth: Numbers) -> list[float]:
    """J of each true object in a video, from 1 on: the mean over its frames, objects matched one to one for the video.

    As in DAVIS 2017, unsupervised: the matching with the highest sum; an object that is matched with none has 0.

    Args:
        numbers: objects found, [T, H, W], 0 for none.
        truth: true objects, of the same size.
    """
    found, wanted = (range(1, int(labels.max(initial=0)) + 1) for labels in (numbers, truth))
    scores = np.array(
        [
            [np.mean([jaccard(a == n, b == m) for a, b in zip(numbers, truth, strict=True)]) for n in found]
            for m in wanted
        ]
    ).reshape(len(wanted), len(found))
    from scipy.optimize import linear_sum_assignment  # takes a second to import

    rows, columns = linear_sum_assignment(scores, maximize=True)
    best = dict(zip(rows.tolist(), scores[rows, columns].tolist(), strict=True))
    return [best.get(row, 0.0) for row in range(len(wanted))]


def identity_switches(numbers: Numbers, truth: Numbers) -> int:
    """How often a true object's number changes, over the frames in which some object covers it with J above 0.5."""
    switches = 0
    for wanted in range(1, int(truth.max(initial=0)) + 1):
        last = 0
        for labels, objects in zip(numbers, truth, strict=True):
            inside = objects == wanted
            number = int(np.bincount(labels[inside]).argmax()) if inside.any() else 0
            if number and jaccard(labels == number, inside) > RECALLED:
                switches += last not in (0, number)
                last = number
    return switches


def binary_mask(image: npt.NDArray[np.uint8]) -> Mask:
    """The foreground of a stored mask: above one half where 255 occurs (antialiased 0/255), else above 0 (0/1)."""
    return image > 127 if image.max(initial=0) == 255 else image > 0


def soft_mask(image: npt.NDArray[np.uint8]) -> Map:
    """A stored prediction: grey values are shares of 255, for probabilities; at most two values are a mask's."""
    return np.divide(image, 255, dtype=np.float32) if len(np.unique(image)) > 2 else binary_mask(image)


def _f_beta(both: Counts, found: Counts, num_true: int) -> npt.NDArray[np.float64]:
    """F_beta from numbers of pixels: found and true, found, true."""
    precision = np.where(found > 0, both / np.maximum(found, 1), 1.0)
    recalled = both / num_true if num_true else np.ones(both.shape)
    weighted = BETA_SQUARED * precision + recalled
    f: npt.NDArray[np.float64] = (
        (1 + BETA_SQUARED) * precision * recalled / np.where(weighted > 0, weighted, 1.0)
    )
    return f


def _check_size(prediction: Map, truth: Mask) -> None:
    if prediction.shape != truth.shape:
        raise ValueError(f"a mask of {prediction.shape} pixels cannot be compared with one of {truth.shape}")


def _contour(mask: Mask) -> Mask:
    """Pixels that differ from their right, lower or lower right neighbour."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    here = padded[:-1, :-1]
    contour: Mask = (here != padded[:-1, 1:]) | (here != padded[1:, :-1]) | (here != padded[1:, 1:])
    return contour


def _dilated(mask: Mask, radius_px: int) -> Mask:
    """Pixels within a distance of the mask's."""
    offsets = np.arange(-radius_px, radius_px + 1)
    disk = (offsets[:, None] ** 2 + offsets**2 <= radius_px**2).astype(np.uint8)
    dilated: Mask = cv2.dilate(mask.astype(np.uint8), disk).astype(np.bool_)
    return dilated
