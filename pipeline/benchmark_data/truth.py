"""Pixels of a download's ground truth -> one mask of all objects."""

from pathlib import PurePosixPath

import cv2
import numpy as np

from pipeline.benchmark_data.plan import Item
from pipeline.benchmark_data.table import GreyLevels
from pipeline.errors import GwmError
from pipeline.images import Image, read_image
from pipeline.metrics import Mask, binary_mask


def read_truth(item: Item, levels: GreyLevels | None) -> Mask:
    """The mask [H, W] of all objects of an item; UnitError or GwmError names a file that cannot be used."""
    masks = [_read_object(item, url, levels) for url in item.truth]
    if len({mask.shape for mask in masks}) > 1:
        raise GwmError(f"The objects of {item.truth[0]} have masks of several sizes.")
    return np.asarray(np.any(masks, axis=0), np.bool_)


def centre_square(image: Image) -> Image:
    """The largest square in the middle of an image [H, W, ...], placed as torchvision's CenterCrop places it."""
    side = min(image.shape[:2])
    top, left = (round((length - side) / 2) for length in image.shape[:2])
    return image[top : top + side, left : left + side]


def _read_object(item: Item, url: str, levels: GreyLevels | None) -> Mask:
    # From colours, and not by a decoder's own conversion to grey: the published levels were read so.
    grey = np.asarray(cv2.cvtColor(read_image(url), cv2.COLOR_RGB2GRAY), np.uint8)
    if levels is None:
        return binary_mask(grey)
    level = grey / 255
    sequence = item.name.partition("/")[0]
    mask = level > levels.above_in.get(sequence, levels.above)
    if PurePosixPath(url).suffix.lower() == ".ppm":
        mask &= level <= levels.ppm_background_above
    return np.asarray(mask)
