"""Scores of masks against ground truth."""

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]


def jaccard(prediction: Mask, truth: Mask, *, both_empty: float = 1.0) -> float:
    """J: intersection over union of two masks [H, W], in [0, 1].

    Args:
        prediction: the segmentation.
        truth: the ground truth, of the same size.
        both_empty: the score where neither mask has a pixel: 1 in the DAVIS toolkit, 0 in the paper's code.

    Raises:
        ValueError: the sizes differ.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"a mask of {prediction.shape} pixels cannot be compared with one of {truth.shape}")
    union = np.count_nonzero(prediction | truth)
    if union == 0:
        return both_empty
    return np.count_nonzero(prediction & truth) / union


def binary_mask(image: npt.NDArray[np.uint8]) -> Mask:
    """The foreground of a stored mask: above 128 where 255 occurs (antialiased 0/255), else above 0 (0/1)."""
    return image > 128 if image.max(initial=0) == 255 else image > 0
