"""Parts of an object that only move with it: a bow wave, or leaves that hang nearer to the camera than the rest.

Motion alone cannot tell them apart from the object. Appearance can, over a whole video: split the object's patches in
two by the normalised cut of their features (Shi and Malik, PAMI 2000); a part that looks twice as much like the
background as like the rest of the object is stray. What is left is split again until no part is.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from gwm_model.objective import LEAST_COSINE

MAX_PATCHES = 4096
"""More patches than this are thinned out evenly: the affinity of all pairs is held at once."""
FEWEST_PATCHES = 8
"""An object of fewer patches is not split."""
MAX_SPLITS = 4
ITERATIONS = 60
MORE = 2.0
"""How many times more a stray part looks like the background."""
NEIGHBOURS = 64
"""A patch is compared with as many of the patches most like it, of the object and of the stray parts."""


@dataclass(frozen=True, slots=True)
class StrayParts:
    """What an object and its stray parts look like: unit features of patches."""

    object_patches: Float[Tensor, "N C"]
    stray_patches: Float[Tensor, "M C"]


def find_stray_parts(masks: Float[Tensor, "B H W"], features: Float[Tensor, "B C h w"]) -> StrayParts | None:
    """The stray parts of one object in frames of one video, or in one image; none if there are none.

    Args:
        masks: the object's probability.
        features: appearance features on any grid over the same frames.
    """
    patches = _patches(features).flatten(0, 1)
    shares = F.adaptive_avg_pool2d(masks[:, None].float(), (features.shape[-2], features.shape[-1])).flatten()
    step = -(-len(patches) // MAX_PATCHES)
    patches, in_mask = patches[::step], shares[::step] > 0.5
    kept = in_mask.clone()
    for _ in range(MAX_SPLITS):
        stray = _stray_part(patches, kept)
        if stray is None:
            break
        kept &= ~stray
    stray = in_mask & ~kept
    return StrayParts(patches[kept], patches[stray]) if stray.any() else None


def remove_stray_parts(
    masks: Float[Tensor, "B H W"], features: Float[Tensor, "B C h w"], parts: StrayParts
) -> Float[Tensor, "B H W"]:
    """The object's probability without its stray parts: times a² / (a² + b²) in every patch.

    a and b are how much the patch looks like the object and like its stray parts: mean affinity with its 64 nearest.
    """
    patches = _patches(features)
    to_object, to_stray = (
        _affinity(patches, some).topk(min(NEIGHBOURS, len(some)), dim=-1).values.mean(-1).square()
        for some in (parts.object_patches, parts.stray_patches)
    )
    likely = to_object / (to_object + to_stray).clamp_min(1e-9)
    likely = likely.where(to_object + to_stray > 0, 1.0)
    on_patches = likely.view(len(masks), 1, *features.shape[-2:])
    return masks * F.interpolate(on_patches, masks.shape[-2:], mode="bilinear")[:, 0]


def _stray_part(patches: Float[Tensor, "P C"], kept: Bool[Tensor, " P"]) -> Bool[Tensor, " P"] | None:
    """The half of the kept patches that looks twice as much like the others as like the other half."""
    if int(kept.sum()) < FEWEST_PATCHES or bool(kept.all()):
        return None
    inside = patches[kept]
    affinity = _affinity(inside, inside)
    half = split_in_two(affinity)
    if half is None:
        return None
    between = affinity[half][:, ~half].mean()
    to_background = _affinity(inside, patches[~kept]).mean(1)
    likeness = torch.stack([to_background[half].mean(), to_background[~half].mean()])
    if likeness.max() <= MORE * between:
        return None
    stray = torch.zeros_like(kept)
    stray[kept] = half if likeness[0] >= likeness[1] else ~half
    return stray


def split_in_two(affinity: Float[Tensor, "N N"]) -> Bool[Tensor, " N"] | None:
    """One side of the approximate minimal normalised cut; none where no threshold splits.

    The second eigenvector of the normalised affinity, by power iteration without the first, cut at the best of its 5 %,
    10 %, … 95 % quantiles.
    """
    degree = affinity.sum(1).clamp_min(1e-6)
    first = F.normalize(degree.sqrt(), dim=0)
    vector = torch.randn(len(degree), generator=torch.Generator().manual_seed(0)).to(affinity)
    for _ in range(ITERATIONS):
        vector = F.normalize(vector - (vector @ first) * first, dim=0)
        vector = vector + degree.rsqrt() * (affinity @ (degree.rsqrt() * vector))  # eigenvalues 0 to 2
    vector = degree.rsqrt() * vector
    thresholds = torch.quantile(vector, torch.linspace(0.05, 0.95, 19).to(affinity))
    sides = vector > thresholds[:, None]
    member = sides.to(affinity.dtype)
    cut = ((member @ affinity) * (1 - member)).sum(1)
    cost = cut / (member @ degree) + cut / ((1 - member) @ degree)
    cost = cost.nan_to_num(torch.inf)
    best = int(cost.argmin())
    return sides[best] if bool(cost[best].isfinite()) else None


def _patches(features: Float[Tensor, "B C h w"]) -> Float[Tensor, "B P C"]:
    return F.normalize(features.float(), dim=1).flatten(2).mT


def _affinity(left: Float[Tensor, "*B N C"], right: Float[Tensor, "M C"]) -> Float[Tensor, "*B N M"]:
    """How alike patches are: their cosine above 0.3, as in the objective."""
    return (left @ right.mT - LEAST_COSINE).clamp_min_(0.0)
