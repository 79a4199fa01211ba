"""K regions into two: scikit-learn's spectral clustering, image by image, against our exact cut of the whole batch.

Both are given the same masks and features; ours may never have a higher normalised cut. The published code takes the
features to the masks' resolution first, which has a line of its own.
"""

import warnings

import numpy as np
import torch
from common import report, rounded, side_by_side
from sklearn.cluster import SpectralClustering
from torch.nn import functional

from gwm_model.merge import MIN_AFFINITY, bipartitions, merge_regions, normalized_cut

BATCH, REGIONS, CHANNELS = 64, 4, 384
ROUNDING = 1e-6
"""Cuts that differ by less are equal: descriptors are sums in float32."""


def affinities(masks: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """The paper's affinity of the regions [B, K, K]: the cosine of their mean features, not below 1e-6."""
    weights = functional.adaptive_avg_pool2d(masks, features.shape[-2:]).flatten(2)
    mean = functional.normalize(weights @ features.flatten(2).mT, dim=-1)
    return (mean @ mean.mT).clamp_min(MIN_AFFINITY)


def spectral(masks: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Labels [B, K] as the published code finds them."""
    labels = []
    for affinity in affinities(masks, features):
        clustering = SpectralClustering(n_clusters=2, affinity="precomputed", random_state=0)
        labels.append(clustering.fit_predict(affinity.numpy()))
    return torch.from_numpy(np.stack(labels)).long()


def published(masks: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """The same, from features at the masks' resolution."""
    size = masks.shape[-2:]
    each = zip(masks.split(1), features.split(1), strict=True)
    return torch.cat(
        [spectral(mask, functional.interpolate(map_, size, mode="bilinear")) for mask, map_ in each]
    )


def cost(affinity: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The normalised cut of each image's labels."""
    labels = torch.where(labels[:, :1] == 1, 1 - labels, labels)
    return torch.cat(
        [normalized_cut(one[None], label[None])[0] for one, label in zip(affinity, labels, strict=True)]
    )


def measure(height_px: int, width_px: int, whose: str) -> None:
    """Two lines for masks of one size."""
    logits = functional.interpolate(
        torch.randn(BATCH, REGIONS, 8, 14) * 3, (height_px, width_px), mode="bilinear"
    )
    masks = logits.softmax(1)
    features = functional.interpolate(torch.randn(BATCH, CHANNELS, 4, 7), (18, 32), mode="bilinear")
    compared = side_by_side(
        lambda: spectral(masks, features), lambda: merge_regions(masks, features), rounds=9
    )
    affinity = affinities(masks, features).double()
    excess = cost(affinity, compared.result) - cost(affinity, compared.expected)
    lowest = normalized_cut(affinity, bipartitions(REGIONS)).amin(1)
    assert torch.allclose(cost(affinity, compared.result), lowest, atol=ROUNDING)
    if excess.max() > ROUNDING:
        raise SystemExit(f"the cut is higher than scikit-learn's by {excess.max():.2g}")
    case = f"B = {BATCH}, K = {REGIONS}, masks of {height_px} x {width_px} ({whose})"
    report(
        "merge",
        case,
        "times scikit-learn's SpectralClustering on the patches' grid, per image",
        compared.ratio,
        at_least=50,
        lower_cut_than_sklearn=int((excess < -ROUNDING).sum()),
        **rounded(sklearn_s=compared.reference_s, ours_s=compared.ours_s),
    )
    slow = side_by_side(lambda: published(masks, features), lambda: merge_regions(masks, features), rounds=3)
    report(
        "merge",
        case,
        "times the published merging, per image",
        slow.ratio,
        at_least=50,
        **rounded(published_s=slow.reference_s, ours_s=slow.ours_s),
    )


def main() -> None:
    """Prints two JSON lines for each size of masks."""
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    measure(72, 128, "the default network's")
    measure(128, 224, "the paper's")


if __name__ == "__main__":
    main()
