"""Parts of an object that only move with it: a bow wave, or leaves that hang nearer to the camera than the rest.

Motion alone cannot tell them apart from the object. Appearance can, over a whole video: split the object's patches in
two by the normalised cut of their features (Shi and Malik, PAMI 2000); a part that looks twice as much like the
background as like the rest of the object is stray. What is left is split again until no part is.

G graphs are split at once, each of P patches: the images of a batch, or the frames of one video together.
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
    """The stray parts of one object in frames of one video; none if there are none.

    Args:
        masks: the object's probability.
        features: appearance features on any grid over the same frames.
    """
    patches, in_mask = _thinned(
        _patches(features).flatten(0, 1)[None], _shares(masks, features).flatten()[None] > 0.5
    )
    stray = _stray(patches, in_mask)
    kept = in_mask & ~stray
    return StrayParts(patches[kept], patches[stray]) if stray.any() else None


def remove_stray_parts(
    masks: Float[Tensor, "B H W"], features: Float[Tensor, "B C h w"], parts: StrayParts
) -> Float[Tensor, "B H W"]:
    """The object's probability without its stray parts: times a² / (a² + b²) in every patch.

    a and b are how much the patch looks like the object and like its stray parts: mean affinity with its 64 nearest.
    """
    patches = _patches(features)
    to_object, to_stray = (
        _nearest(_affinity(patches, some), torch.ones(1, len(some), dtype=torch.bool, device=some.device))
        for some in (parts.object_patches, parts.stray_patches)
    )
    return _less_likely(masks, features, to_object, to_stray)


def drop_stray_parts(
    masks: Float[Tensor, "B H W"], features: Float[Tensor, "B C h w"]
) -> Float[Tensor, "B H W"]:
    """The object's probability in images that have nothing to do with each other, each without its own stray parts."""
    patches = _patches(features)
    some, in_mask = _thinned(patches, _shares(masks, features) > 0.5)
    stray = _stray(some, in_mask)
    of = stray.any(1).nonzero()[:, 0]
    if not len(of):
        return masks
    affinity = _affinity(patches[of], some[of])
    to_object, to_stray = (_nearest(affinity, member[of]) for member in (in_mask & ~stray, stray))
    left = masks.clone()
    left[of] = _less_likely(masks[of], features[of], to_object, to_stray)
    return left


def _less_likely(
    masks: Float[Tensor, "B H W"],
    features: Float[Tensor, "B C h w"],
    to_object: Float[Tensor, "B P"],
    to_stray: Float[Tensor, "B P"],
) -> Float[Tensor, "B H W"]:
    to_object, to_stray = to_object.square(), to_stray.square()
    likely = to_object / (to_object + to_stray).clamp_min(1e-9)
    likely = likely.where(to_object + to_stray > 0, 1.0)
    on_patches = likely.view(len(masks), 1, *features.shape[-2:])
    return masks * F.interpolate(on_patches, masks.shape[-2:], mode="bilinear")[:, 0]


def _stray(patches: Float[Tensor, "G P C"], in_mask: Bool[Tensor, "G P"]) -> Bool[Tensor, "G P"]:
    """The patches of each object that belong to its stray parts."""
    kept = in_mask.clone()
    for _ in range(MAX_SPLITS):
        stray = _stray_half(patches, kept)
        if not stray.any():
            break
        kept &= ~stray
    return in_mask & ~kept


def _stray_half(patches: Float[Tensor, "G P C"], kept: Bool[Tensor, "G P"]) -> Bool[Tensor, "G P"]:
    """The half of the kept patches that looks twice as much like the others as like the other half."""
    stray = torch.zeros_like(kept)
    count = kept.sum(1)
    graphs = ((count >= FEWEST_PATCHES) & (count < kept.shape[1])).nonzero()[:, 0]
    if not len(graphs):
        return stray
    patches, kept, count = patches[graphs], kept[graphs], count[graphs]
    places = kept.long().argsort(dim=1, descending=True, stable=True)[:, : int(count.max())]
    present = kept.gather(1, places)
    inside = patches.gather(1, places[..., None].expand(-1, -1, patches.shape[2]))
    affinity = _affinity(inside, inside) * (present[:, :, None] & present[:, None])
    half = split_in_two(affinity, present)
    sides = torch.stack([half, present & ~half], 1).to(affinity.dtype)
    size = sides.sum(2)
    between = ((sides[:, :1] @ affinity) * sides[:, 1:]).sum((1, 2)) / size.prod(1)
    outside = (~kept)[:, None].to(affinity.dtype)
    to_background = outside @ _affinity(patches, inside) / outside.sum(2, keepdim=True)
    likeness = (sides * to_background).sum(2) / size
    is_stray = half.any(1) & (likeness.amax(1) > MORE * between)
    chosen = torch.where((likeness[:, 0] >= likeness[:, 1])[:, None], half, present & ~half)
    stray[graphs] = torch.zeros_like(kept).scatter_(1, places, chosen & is_stray[:, None])
    return stray


def split_in_two(affinity: Float[Tensor, "G N N"], present: Bool[Tensor, "G N"]) -> Bool[Tensor, "G N"]:
    """One side of the approximate minimal normalised cut of each graph; empty where no threshold splits.

    The second eigenvector of the normalised affinity, by power iteration without the first, cut at the best of its 5 %,
    10 %, … 95 % quantiles. A graph has the nodes that are `present`; the others have no affinity.
    """
    degree = affinity.sum(2).clamp_min(1e-6)
    scale = torch.where(present, degree.rsqrt(), 0.0)
    first = F.normalize(torch.where(present, degree.sqrt(), 0.0), dim=1)
    start = torch.randn(MAX_PATCHES, generator=torch.Generator().manual_seed(0))[: affinity.shape[1]]
    vector = torch.where(present, start.to(affinity), 0.0)
    for _ in range(ITERATIONS):
        vector = F.normalize(vector - (vector * first).sum(1, keepdim=True) * first, dim=1)
        vector = vector + scale * ((scale * vector)[:, None] @ affinity)[:, 0]  # eigenvalues 0 to 2
    vector = scale * vector
    levels = torch.linspace(0.05, 0.95, 19).to(affinity)
    thresholds = torch.nanquantile(vector.where(present, torch.nan), levels, dim=1).T
    sides = (vector[:, None] > thresholds[..., None]) & present[:, None]
    member = sides.to(affinity.dtype)
    others = present[:, None].to(affinity.dtype) - member
    cut = ((member @ affinity) * others).sum(2)
    cost = cut / (member * degree[:, None]).sum(2) + cut / (others * degree[:, None]).sum(2)
    cost, best = cost.nan_to_num(torch.inf).min(1)
    return sides[torch.arange(len(sides), device=sides.device), best] & cost.isfinite()[:, None]


def _thinned(
    patches: Float[Tensor, "G P C"], in_mask: Bool[Tensor, "G P"]
) -> tuple[Float[Tensor, "G N C"], Bool[Tensor, "G N"]]:
    step = -(-patches.shape[1] // MAX_PATCHES)
    return patches[:, ::step], in_mask[:, ::step]


def _shares(masks: Float[Tensor, "B H W"], features: Float[Tensor, "B C h w"]) -> Float[Tensor, "B P"]:
    """How much of each patch the object covers."""
    grid = (features.shape[-2], features.shape[-1])
    return F.adaptive_avg_pool2d(masks[:, None].float(), grid).flatten(1)


def _patches(features: Float[Tensor, "B C h w"]) -> Float[Tensor, "B P C"]:
    return F.normalize(features.float(), dim=1).flatten(2).mT


def _affinity(left: Float[Tensor, "*B N C"], right: Float[Tensor, "*G M C"]) -> Float[Tensor, "*B N M"]:
    """How alike patches are: their cosine above 0.3, as in the objective."""
    return (left @ right.mT - LEAST_COSINE).clamp_min_(0.0)


def _nearest(affinity: Float[Tensor, "B P N"], member: Bool[Tensor, "#B N"]) -> Float[Tensor, "B P"]:
    """Every patch's mean affinity with the 64 members most like it, or with all if there are fewer."""
    most = affinity.where(member[:, None], 0.0).topk(min(NEIGHBOURS, affinity.shape[2]), dim=2).values
    return most.sum(2) / member.sum(1, keepdim=True).clamp(1, NEIGHBOURS)
