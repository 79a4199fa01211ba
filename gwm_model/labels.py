"""Maps of numbers over an image: components of a mask, carried along the flow, spread and divided; 0 is background."""

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int32, Int64, UInt8

MIN_AREA = 1e-3
"""A component below this fraction of the image's area is a speck and no object."""
WINDOW = 0.05
"""Neighbourhood over which colours decide, as a fraction of the image's height."""
COLOUR_WEIGHT = 2.0
"""What the colours say against what the flow says."""
COLOUR_FLOOR, PRIOR_FLOOR = 1e-3, 0.05
"""Probability of a colour that an object has not shown, and of an object where the flow has not carried it."""
COLOURS_PER_CHANNEL = 6

Labels = Int32[np.ndarray, "h w"]
Colours = Int64[np.ndarray, "h w"]
"""Cells of colour space."""


def split_components(mask: Bool[np.ndarray, "H W"], min_area: float = MIN_AREA) -> Int32[np.ndarray, "H W"]:
    """Numbers the mask's 8-connected components from 1, the largest first, and leaves out specks.

    Args:
        mask: the foreground.
        min_area: the smallest component that counts, as a fraction of the image's area.
    """
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    area = stats[1:, cv2.CC_STAT_AREA]
    order = np.argsort(-area, kind="stable")
    kept = order[area[order] >= min_area * mask.size]
    number_of = np.zeros(count, np.int32)
    number_of[1 + kept] = np.arange(1, len(kept) + 1)
    return np.asarray(number_of[labels], np.int32)


def spread_labels(labels: Labels, mask: Bool[np.ndarray, "H W"]) -> Int32[np.ndarray, "H W"]:
    """Labels of the mask's pixels, of any size: the nearest label of the same place in `labels`.

    A component that no label touches keeps none.
    """
    resized = cv2.resize(labels, mask.shape[::-1], interpolation=cv2.INTER_NEAREST)
    seeds = np.where(mask, resized, 0)
    _, components = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    touched = np.isin(components, np.unique(components[seeds > 0]))
    return np.asarray(np.where(mask & touched, nearest_label(seeds), 0), np.int32)


def nearest_label(seeds: Int32[np.ndarray, "H W"]) -> Int32[np.ndarray, "H W"]:
    """Each pixel's nearest label that is not 0; 0 everywhere if there is none."""
    if not seeds.any():
        return seeds
    free = (seeds == 0).astype(np.uint8)
    _, index = cv2.distanceTransformWithLabels(
        free, cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    label_of = np.zeros(index.max() + 1, np.int32)
    label_of[index[seeds > 0]] = seeds[seeds > 0]
    return np.asarray(label_of[index], np.int32)


def carry_labels(labels: Labels, flow: Float[np.ndarray, "2 h w"]) -> Labels:
    """The last frame's labels at this frame: each pixel looks along its flow to where it was."""
    y, x = np.mgrid[: labels.shape[0], : labels.shape[1]].astype(np.float32)
    source = labels.astype(np.float32)  # remap takes no int32; numbers below 2^24 stay exact
    carried = cv2.remap(source, x + flow[0], y + flow[1], cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT)
    return np.asarray(carried, np.int32)


def divide_component(
    inside: Bool[np.ndarray, "h w"],
    nearest: Labels,
    colours: Colours,
    models: dict[int, Float64[np.ndarray, " N"]],
) -> Labels:
    """The object at each pixel of a component: where the flow says so, unless the colours around say otherwise.

    Args:
        inside: the component.
        nearest: the object that the flow carried to each pixel, or to the nearest pixel with one.
        colours: the cell of colour space of each pixel.
        models: each object's share of pixels in every cell.
    """
    size = 2 * round(inside.shape[0] * WINDOW / 2) + 1
    weight = _blurred(inside.astype(np.float32), size).clip(1e-6)
    scores = {}
    for number, model in models.items():
        likelihood = np.log(model + COLOUR_FLOOR).astype(np.float32)[colours]
        prior = _blurred((inside & (nearest == number)).astype(np.float32), size) / weight
        evidence = _blurred(np.where(inside, likelihood, 0), size) / weight
        scores[number] = COLOUR_WEIGHT * evidence + np.log(prior + PRIOR_FLOOR)
    while True:
        numbers = np.array(list(scores), np.int32)
        owner = np.where(inside, numbers[np.argmax(list(scores.values()), axis=0)], 0).astype(np.int32)
        area = {number: np.count_nonzero(owner == number) for number in scores}
        smallest = min(area, key=area.__getitem__)
        if len(scores) == 1 or area[smallest] >= MIN_AREA * inside.size:
            return owner
        del scores[smallest]


def _blurred(values: Float32[np.ndarray, "h w"], size: int) -> Float32[np.ndarray, "h w"]:
    return np.asarray(cv2.blur(values, (size, size), borderType=cv2.BORDER_CONSTANT), np.float32)


def colour_cells(frame: UInt8[np.ndarray, "3 h w"]) -> Colours:
    """The cell of colour space that each pixel lies in."""
    steps = frame.astype(np.int64) * COLOURS_PER_CHANNEL // 256
    cells = (steps[0] * COLOURS_PER_CHANNEL + steps[1]) * COLOURS_PER_CHANNEL + steps[2]
    return np.asarray(cells, np.int64)


def colour_histogram(colours: Int64[np.ndarray, " P"]) -> Float64[np.ndarray, " N"]:
    """Share of the pixels in each cell of colour space."""
    counts = np.bincount(colours, minlength=COLOURS_PER_CHANNEL**3)
    return np.asarray(counts / max(len(colours), 1), np.float64)
