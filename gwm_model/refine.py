"""Masks that follow the image's edges: the guided filter (He, Sun and Tang, TPAMI 2013) with a guide in colour.

As in the fast guided filter (He and Sun, 2015) the local models are fitted on the grid of the masks and applied to the
whole image, so that filtering and upsampling are one.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from gwm_model.config import RefineConfig


def guided_upsample(
    masks: Float[Tensor, "B K h w"], images: Float[Tensor, "B 3 H W"], config: RefineConfig
) -> Float[Tensor, "B K H W"]:
    """The masks at the images' size.

    Around every cell a mask is fitted by a linear function of the colour, in a window of `radius_cells` to each side
    (Eqs. 19 and 20); a pixel takes the mean of the functions that cover it (Eq. 21). The filter is linear in the masks
    and keeps constants, so that masks that sum to 1 still do; a value may lie a little outside [0, 1].

    Args:
        masks: region or object probabilities on the network's grid.
        images: RGB in [0, 1].
        config: the window, and how much colours must vary in it to count (`epsilon`).
    """
    radius = config.radius_cells
    guide = F.interpolate(images, masks.shape[-2:], mode="bilinear", antialias=True)
    mean_guide, mean_mask = _window_mean(guide, radius), _window_mean(masks, radius)
    variance = _window_mean(_products(guide, guide), radius) - _products(mean_guide, mean_guide)
    covariance = _window_mean(_products(masks, guide), radius) - _products(mean_mask, mean_guide)
    slope = torch.einsum("bijhw,bkjhw->bkihw", _inverse(variance, config.epsilon), covariance)
    offset = mean_mask - (slope * mean_guide[:, None]).sum(2)
    models = _window_mean(torch.cat([slope, offset[:, :, None]], dim=2), radius)
    at_pixels = F.interpolate(models.flatten(1, 2), images.shape[-2:], mode="bilinear")
    at_pixels = at_pixels.view(*masks.shape[:2], 4, *images.shape[-2:])
    return (at_pixels[:, :, :3] * images[:, None]).sum(2) + at_pixels[:, :, 3]


def _window_mean(maps: Float[Tensor, "B *C h w"], radius: int) -> Float[Tensor, "B *C h w"]:
    """Means over windows of (2 * radius + 1) squared cells; at the border over what is there of them."""
    planes = maps.flatten(1, -3)
    means = F.avg_pool2d(planes, 2 * radius + 1, stride=1, padding=radius, count_include_pad=False)
    return means.view_as(maps)


def _products(left: Float[Tensor, "B K h w"], right: Float[Tensor, "B C h w"]) -> Float[Tensor, "B K C h w"]:
    """Every plane of one times every plane of the other."""
    return left[:, :, None] * right[:, None]


def _inverse(variance: Float[Tensor, "B 3 3 h w"], epsilon: float) -> Float[Tensor, "B 3 3 h w"]:
    """The inverse of variance + epsilon in every cell: symmetric, so by the cross products of its rows."""
    matrix = variance + epsilon * torch.eye(3, device=variance.device)[:, :, None, None]
    first, second, third = matrix.unbind(1)
    cofactors = [
        torch.linalg.cross(left, right, dim=1)
        for left, right in ((second, third), (third, first), (first, second))
    ]
    determinant = (first * cofactors[0]).sum(1)
    inverse: Tensor = torch.stack(cofactors, 1) / determinant[:, None, None]
    return inverse
