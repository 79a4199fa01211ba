"""Masks that follow the image's edges: the fully connected CRF of Kraehenbuehl and Koltun (NeurIPS 2011).

Every pixel of an image is a neighbour of every other: pixels near each other, and pixels of like colour even far from
each other, are drawn to the same region. Mean-field inference by pydensecrf (the extra `crf`), on one CPU.
"""

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

STEPS = 10
"""Of mean-field inference."""
SIDE_PX = 427
"""Longest side of the grid on which the CRF is solved, in whose pixels reaches are counted; half of DAVIS 480p."""
NEAR_REACH_PX = 1.0
NEAR_WEIGHT = 3.0
"""Of the smoothness kernel: likeness by place alone."""
COLOUR_REACH_PX = 67.0
COLOUR_REACH_LEVELS = 3.0
"""Colours in 0..255 that differ by more are unlike."""
COLOUR_WEIGHT = 4.0
"""Of the appearance kernel: likeness by place and colour."""
MIN_PROBABILITY = 1e-5
"""No region is impossible anywhere: a unary energy is finite."""


def crf_upsample(
    masks: Float[Tensor, "B K h w"], images: Float[Tensor, "B 3 H W"]
) -> Float[Tensor, "B K H W"]:
    """The masks at the images' size: the marginals of a CRF over K regions, bilinear from the grid it is solved on.

    They are probabilities again and sum to 1. The CRF's parameters are those in use for unsupervised segmentation by
    spectral methods (Melas-Kyriazi et al., CVPR 2022).

    Args:
        masks: region probabilities on the network's grid, summing to 1 over K.
        images: RGB in [0, 1].

    Raises:
        ModuleNotFoundError: pydensecrf is not installed.
    """
    scale = min(1.0, SIDE_PX / max(images.shape[-2:]))
    size = [max(1, round(side * scale)) for side in images.shape[-2:]]
    grounds = F.interpolate(images, size, mode="bilinear", antialias=True).permute(0, 2, 3, 1)
    colours = (255 * grounds).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    priors = F.interpolate(masks, size, mode="bilinear").cpu().numpy()
    marginals = np.stack([_marginals(*each) for each in zip(priors, colours, strict=True)])
    return F.interpolate(torch.from_numpy(marginals).to(masks), images.shape[-2:], mode="bilinear")


def _marginals(
    prior: Float[np.ndarray, "K h w"], colours: UInt8[np.ndarray, "h w 3"]
) -> Float[np.ndarray, "K h w"]:
    """Each pixel's region probabilities after inference."""
    from pydensecrf.densecrf import DenseCRF2D

    regions, height, width = prior.shape
    crf = DenseCRF2D(width, height, regions)
    energy = -np.log(prior.clip(MIN_PROBABILITY, 1.0))
    crf.setUnaryEnergy(np.ascontiguousarray(energy.reshape(regions, -1), np.float32))
    crf.addPairwiseGaussian(sxy=NEAR_REACH_PX, compat=NEAR_WEIGHT)
    crf.addPairwiseBilateral(
        sxy=COLOUR_REACH_PX,
        srgb=COLOUR_REACH_LEVELS,
        rgbim=np.ascontiguousarray(colours),
        compat=COLOUR_WEIGHT,
    )
    return np.asarray(crf.inference(STEPS), np.float32).reshape(prior.shape)
