"""Parametric motion: weighted least squares of flow on a polynomial of the pixel coordinates.

A region's flow is modelled as `f(x, y) = theta @ phi(x, y)` with phi = (1), (1, x, y) or (1, x, y, x^2, x*y, y^2):
2, 6 or 12 parameters over the two flow components (Guess What Moves, Eq. 2). The normal equations need only
the moments `G = sum m phi phi^T` and `b = sum m phi F^T` of a region, so one pass over the pixels serves all of them,
where the published code factorises a matrix of P rows for each region.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gwm_model.config import Motion
from gwm_model.conventions import pixel_grid

NUM_TERMS = {"constant": 1, "affine": 3, "quadratic": 6}
PIXEL_RUNS = 8
"""Runs of pixels that are summed one by one, where their number divides the pixels'."""
RELATIVE_RIDGE = 1e-7
"""Ridge as a fraction of the mean diagonal of G: far below what changes a fit, enough for a one-pixel region."""
ABSOLUTE_RIDGE = 1e-9
"""Keeps the system of an empty region solvable; its parameters are then zero."""


class Basis(NamedTuple):
    """The motion model's terms at every pixel of one grid."""

    phi: Float[Tensor, "M P"]
    products: Float[Tensor, "P N"]
    """The N = M (M + 1) / 2 different products of two terms at every pixel."""
    unpack: Int64[Tensor, "MM"]
    """Which product stands at each place of the flattened matrix phi phi^T, MM = M * M."""


@lru_cache(maxsize=8)
def motion_basis(motion: Motion, height: int, width: int, device: torch.device, dtype: torch.dtype) -> Basis:
    """Terms of `motion` on a pixel grid, made once for each size and device. ValueError for an unknown motion."""
    if motion not in NUM_TERMS:
        raise ValueError(f"motion is one of {', '.join(NUM_TERMS)}, not {motion!r}.")
    x, y = pixel_grid(height, width, device=device).flatten(1)
    terms = torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y])[: NUM_TERMS[motion]]
    rows, columns = torch.triu_indices(len(terms), len(terms), device=device)
    products = (terms[rows] * terms[columns]).T.contiguous()
    unpack = torch.empty(len(terms), len(terms), dtype=torch.int64, device=device)
    unpack[rows, columns] = unpack[columns, rows] = torch.arange(len(rows), device=device)
    return Basis(terms.to(dtype).contiguous(), products.to(dtype), unpack.flatten())


def fit_parameters(
    weights: Float[Tensor, "B K P"], flow: Float[Tensor, "B 2 P"], basis: Basis
) -> tuple[Float[Tensor, "B K M 2"], Float[Tensor, "B K M M"]]:
    """Least-squares parameters of every region, float64, and the system matrices that gave them.

    Accumulates in the dtype of the input, solves in float64 with a ridge: an empty region gives zeros, never an error.
    """
    (num_images, num_regions, _), num_terms = weights.shape, len(basis.phi)
    moments = _sum_over_pixels(weights.flatten(0, 1), basis.products).double()
    gram = moments[:, basis.unpack].view(num_images, num_regions, num_terms, num_terms)
    terms_by_flow = (flow[:, :, None] * basis.phi).flatten(1, 2)
    right_side = (weights @ terms_by_flow.mT).double().view(num_images, num_regions, 2, num_terms)
    mean_diagonal = gram.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    eye = torch.eye(num_terms, dtype=torch.float64, device=gram.device)
    gram = gram + (RELATIVE_RIDGE * mean_diagonal + ABSOLUTE_RIDGE) * eye
    return torch.linalg.solve(gram, right_side.mT), gram


def _sum_over_pixels(weights: Float[Tensor, "R P"], products: Float[Tensor, "P N"]) -> Float[Tensor, "R N"]:
    """The product, in a few runs of pixels: one product of so long and thin matrices keeps one core busy."""
    (num_rows, num_pixels), runs = weights.shape, math.gcd(weights.shape[1], PIXEL_RUNS)
    left = weights.view(num_rows, runs, num_pixels // runs).transpose(0, 1)
    return torch.bmm(left, products.view(runs, num_pixels // runs, -1)).sum(0)


def reconstruct_flow(parameters: Float[Tensor, "B K M 2"], basis: Basis) -> Float[Tensor, "B K 2 P"]:
    """Flow of every region's motion at every pixel, in the dtype of the basis."""
    return parameters.mT.to(basis.phi.dtype) @ basis.phi


def as_float(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in float64 if it is that already: mathematics of the objective never runs in less."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def fit_motion(
    masks: Float[Tensor, "B K H W"], flow: Float[Tensor, "B 2 H W"], *, motion: Motion = "quadratic"
) -> Float[Tensor, "B K 2 H W"]:
    """Each region's fitted flow at every pixel, in pixels; the masks (0 to 1) are the weights of the fit (Eq. 2).

    No gradient flows through the fit. An empty region's flow is zero.
    """
    height, width = flow.shape[-2:]
    with torch.no_grad(), torch.autocast(flow.device.type, enabled=False):
        masks, flow = as_float(masks).flatten(2), as_float(flow).flatten(2)
        basis = motion_basis(motion, height, width, flow.device, flow.dtype)
        parameters, _ = fit_parameters(masks.to(flow.dtype), flow, basis)
        return reconstruct_flow(parameters, basis).view(*masks.shape[:2], 2, height, width)
