"""From K regions to object and background, without ground truth.

Appearance decides which regions belong together (an exact normalised cut of the paper's affinity), and the
image border decides which side is the background. Both take one decision for each image, or for each video.
"""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from gwm_model.config import MergeMethod

MIN_AFFINITY = 1e-6
EMPTY_AREA = 1e-4
"""A region below this fraction of the image's area has no say in the cut."""
OBJECT_AREA = 1e-3
"""A region below this fraction of the image's area is no object."""
SPARSE = 0.5
"""How much less dense a region that shuns the border is there."""
MAX_REGIONS = 16
BORDER_PX = 2
BORDER_SHARE = 0.3
"""A side whose strip holds more than this mean probability counts as fully covered."""
TIE = 1e-9
CUT_TIE = 1e-6
"""Cuts closer than this are equal: what is above lies within the rounding of float32 sums."""


def bipartitions(num_regions: int, device: torch.device | str = "cpu") -> Int64[Tensor, "P K"]:
    """All P = 2^(K-1) - 1 ways to split K regions into two non-empty sides, region 0 on side 0.

    Row p holds the binary digits of p + 1, so that the order, and with it every tie rule, is fixed.

    Raises:
        ValueError: fewer than 2 or more than 16 regions.
    """
    if not 2 <= num_regions <= MAX_REGIONS:
        raise ValueError(f"between 2 and {MAX_REGIONS} regions can be merged, not {num_regions}")
    codes = torch.arange(1, 2 ** (num_regions - 1), device=device)
    digits = torch.arange(num_regions - 2, -1, -1, device=device)
    others = codes[:, None].bitwise_right_shift(digits[None, :]) & 1
    return F.pad(others, (1, 0))


def merge_regions(
    masks: Float[Tensor, "B K H W"],
    features: Float[Tensor, "B C h w"],
    video_ids: Int64[Tensor, " B"] | None = None,
    method: MergeMethod = "exact",
) -> Int64[Tensor, "B K"]:
    """Side 0 or 1 of every region: the bipartition of lowest normalised cut; region 0 is always on side 0.

    Two regions are as alike as the cosine of their descriptors (probability-weighted mean features), clamped
    from below at 1e-6. All bipartitions are compared, so the minimum is exact; of equal ones the first in
    `bipartitions` is taken. A region of almost no area joins side 0 without weight. K = 2 has one
    bipartition, the identity [0, 1].

    Args:
        masks: region probabilities, summing to 1 over K.
        features: appearance features on any grid over the same images.
        video_ids: images with the same id are one video: described together, they share their labels.
        method: `exact`, or `scikit_learn`, whose spectral clustering the published code uses: an approximation of the
            same cut, in which empty regions have a say. Needs scikit-learn.
    """
    splits = bipartitions(masks.shape[1], masks.device)
    descriptors, area = _describe(masks, features)
    group = _groups(video_ids)
    descriptors, area = _pool(descriptors, group), _pool(area, group)
    present = area > EMPTY_AREA
    direction = descriptors / descriptors.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    affinity = (direction @ direction.transpose(1, 2)).clamp_min(MIN_AFFINITY)
    if method == "scikit_learn" and len(splits) > 1:
        return _spread(_clustered(affinity), group)
    affinity = affinity * (present[:, :, None] & present[:, None, :])
    costs = normalized_cut(affinity, splits)
    moves_empty = (splits[None].bool() & ~present[:, None, :]).any(-1)
    costs = costs.masked_fill(moves_empty, torch.inf)
    return _spread(splits[_first_minimum(costs)], group)


def normalized_cut(affinity: Float[Tensor, "V K K"], splits: Int64[Tensor, "P K"]) -> Float[Tensor, "V P"]:
    """The normalised cut of every bipartition, in [0, 2]: cut / assoc(side 0) + cut / assoc(side 1).

    Infinite where a side has no association at all, i.e. holds empty regions only.
    """
    side = splits.to(affinity.dtype)
    degree = affinity.sum(-1)
    cut = ((side @ affinity) * (1 - side)).sum(-1)
    assoc1 = degree @ side.T
    assoc0 = degree @ (1 - side).T
    valid = (assoc0 > 0) & (assoc1 > 0)
    cost = cut / assoc0.where(valid, 1) + cut / assoc1.where(valid, 1)
    return cost.where(valid, torch.inf)


def _clustered(affinity: Float[Tensor, "V K K"]) -> Int64[Tensor, "V K"]:
    """Sides by spectral clustering as the published code calls it, region 0 on side 0."""
    from sklearn.cluster import SpectralClustering  # optional: an extra of the package

    clustering = SpectralClustering(n_clusters=2, affinity="precomputed", random_state=0)
    labels = np.stack([clustering.fit_predict(matrix) for matrix in affinity.cpu().numpy()])
    sides = torch.as_tensor(labels, dtype=torch.int64, device=affinity.device)
    return sides ^ sides[:, :1]


def choose_foreground(
    masks: Float[Tensor, "B K H W"],
    labels: Int64[Tensor, "B K"],
    video_ids: Int64[Tensor, " B"] | None = None,
) -> Int64[Tensor, " B"]:
    """Which of the two labels is the object: the one that covers less of the image border.

    For each of the four sides the mean probability in a strip of 2 px counts as 1 above 0.3 and as itself
    below; the label with the larger sum is the background. Of equals it is the one with the larger plain
    strip means, then with the larger area, then label 0.

    Args:
        masks: region probabilities.
        labels: sides of the regions, from `merge_regions`.
        video_ids: the sums run over all frames of a video, so that its frames agree.
    """
    side1 = foreground_probability(masks, labels, torch.ones_like(labels[:, 0])).double()
    total = masks.sum(1).double()
    group = _groups(video_ids)
    decided = _pool(_border_evidence(side1) - _border_evidence(total - side1), group)
    decided = torch.where(decided.abs() > TIE, decided, 0)
    first, second, third = decided.unbind(-1)
    lead = torch.where(first != 0, first, torch.where(second != 0, second, third))
    background = (lead > 0).long()
    return _spread(1 - background, group)


def merge_by_border(
    masks: Float[Tensor, "B K H W"],
    labels: Int64[Tensor, "B K"],
    video_ids: Int64[Tensor, " B"] | None = None,
) -> Int64[Tensor, "B K"]:
    """Sides without any appearance: the regions that shun the image border, and the others; else the `labels` given.

    A background goes on beyond the image, so that it is as dense in the strip of 2 px along the border as anywhere. A
    region shuns the border if its mean probability there is below half of its mean over the image. For networks that
    have learned from motion alone: their features tell regions apart that move apart, whatever they look like.

    Args:
        masks: region probabilities.
        labels: sides by `merge_regions`, for images in which no region shuns the border.
        video_ids: the means run over all frames of a video, so that its frames agree.
    """
    group = _groups(video_ids)
    n = BORDER_PX
    strips = (masks[..., :n, :], masks[..., -n:, :], masks[..., :n], masks[..., -n:])
    border = torch.cat([strip.flatten(2) for strip in strips], dim=2).double().mean(2)
    image = masks.double().mean((2, 3))
    border, image = _pool(border, group), _pool(image, group)
    shuns = _spread(((border < SPARSE * image) & (image > OBJECT_AREA)).long(), group)
    return torch.where(shuns.any(1, keepdim=True), shuns, labels)


def foreground_probability(
    masks: Float[Tensor, "B K H W"], labels: Int64[Tensor, "B K"], object_is: Int64[Tensor, " B"]
) -> Float[Tensor, "B H W"]:
    """The object's probability: the sum over the regions whose label is `object_is`."""
    member = (labels == object_is[:, None]).to(masks.dtype)
    return torch.einsum("bk,bkhw->bhw", member, masks)


def _describe(
    masks: Float[Tensor, "B K H W"], features: Float[Tensor, "B C h w"]
) -> tuple[Float[Tensor, "B K C"], Float[Tensor, "B K"]]:
    """Probability-weighted sums of the features (only the direction matters) and area fractions, in float64.

    The sums themselves are taken in float32: in float64 they are nearly all of the time that merging takes.
    """
    rows, columns = (
        F.adaptive_avg_pool1d(torch.eye(size, device=masks.device), cells)
        for size, cells in zip(masks.shape[-2:], features.shape[-2:], strict=True)
    )
    weights = (rows.T @ masks.float() @ columns).flatten(2)  # adaptive_avg_pool2d, in half of its time
    sums = weights @ features.float().flatten(2).transpose(1, 2)
    return sums.double(), weights.double().mean(-1)


def _border_evidence(probability: Float[Tensor, "B H W"]) -> Float[Tensor, "B 3"]:
    """The border rule's three criteria: thresholded sides, plain sides, area."""
    n = BORDER_PX
    sides = (probability[:, :n], probability[:, -n:], probability[:, :, :n], probability[:, :, -n:])
    means = torch.stack([side.mean((1, 2)) for side in sides], dim=-1)
    covered = torch.where(means > BORDER_SHARE, 1.0, means)
    return torch.stack([covered.sum(-1), means.sum(-1), probability.mean((1, 2))], dim=-1)


def _groups(video_ids: Int64[Tensor, " B"] | None) -> Int64[Tensor, " B"] | None:
    """The number of the decision, from 0 on, that each image belongs to; none if each has its own."""
    return None if video_ids is None else torch.unique(video_ids, return_inverse=True)[1]


def _pool(values: Float[Tensor, "B *rest"], group: Int64[Tensor, " B"] | None) -> Float[Tensor, "V *rest"]:
    """Means over the images of each group, as a matrix product: always added in the same order."""
    if group is None:
        return values
    member = F.one_hot(group).to(values)
    return ((member / member.sum(0)).T @ values.flatten(1)).view(-1, *values.shape[1:])


def _spread(decided: Int64[Tensor, "V *rest"], group: Int64[Tensor, " B"] | None) -> Int64[Tensor, "B *rest"]:
    """Each image's row of its group's decision."""
    return decided if group is None else decided[group]


def _first_minimum(costs: Float[Tensor, "V P"]) -> Int64[Tensor, " V"]:
    """Index of the lowest cost; of costs equal up to rounding, the first."""
    lowest = costs.amin(1, keepdim=True)
    is_lowest = (costs <= lowest + CUT_TIE) | (costs == lowest)
    index = torch.arange(costs.shape[1], device=costs.device)
    return torch.where(is_lowest, index, costs.shape[1]).amin(1)
