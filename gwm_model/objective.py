"""The objective: how well K regions, each with one simple motion, explain the optical flow.

`expected` is the paper's Eq. 3 and 4: the mean over pixels of sum_k m_k |F - f_k|^2, each f_k fitted with
weights m_k. The fit minimises the same sum, so by the envelope theorem the gradient with respect to m_k is |F
- f_k|^2 itself.

`composite` is what the published code trains: the mean of |F - sum_k m_k f_k|^2, each f_k fitted with weights
m_k^2 (its design matrix and its target are both multiplied by m_k). Here the gradient passes through the fit.

Both agree for one-hot masks. Both are custom autograd functions: two matrix products over the pixels forward
and at most two backward, no buffer larger than [B, K, 2, H, W].
"""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from gwm_model.config import Motion, Objective, ObjectiveConfig
from gwm_model.motion import Basis, as_float, fit_motion, fit_parameters, motion_basis, reconstruct_flow

Residual = Literal["squared", "root"]
SOFTENING = 0.1
"""Residuals below this, in units of the flow given, count as squares in the `root` residual."""
LEAST_COSINE = 0.3
"""Patches less alike than this have nothing to do with each other in `appearance_cut`."""
NOISE_PX = 0.5
"""Unexplained motion that `normalize_flow` takes for noise: a frame with less than this is not blown up."""


def motion_loss(
    masks: Float[Tensor, "B K H W"],
    flow: Float[Tensor, "B 2 H W"],
    *,
    motion: Motion = "quadratic",
    objective: Objective = "expected",
    residual: Residual = "squared",
) -> Float[Tensor, ""]:
    """Mean residual of the flow over B, H, W and the two components, as a scalar with a gradient for the masks.

    Args:
        masks: region probabilities, 0 to 1, summing to one over K.
        flow: observed flow, px; no gradient is computed for it.
        motion: the model fitted to each region.
        objective: `expected` (Eq. 3 and 4) or `composite` (the published code).
        residual: `squared`, or `root`, sqrt(|F - f|^2 + 0.1^2), which outliers do not rule. The fit stays
            least squares; for `expected` its parameters then count as constants.

    Raises:
        ValueError: unknown names, or shapes that do not match.
    """
    if masks.ndim != 4 or flow.shape != (len(masks), 2, *masks.shape[2:]):
        raise ValueError(
            f"masks [B,K,H,W] and flow [B,2,H,W] do not match: {list(masks.shape)} and {list(flow.shape)}."
        )
    if objective not in ("expected", "composite") or residual not in ("squared", "root"):
        raise ValueError(f"No such objective: {objective!r} with residual {residual!r}.")
    with torch.autocast(masks.device.type, enabled=False):
        flow = as_float(flow.detach())
        masks = as_float(masks).to(torch.promote_types(masks.dtype, torch.float32))
        flow = flow.to(masks.dtype)
        basis = motion_basis(motion, *flow.shape[2:], flow.device, flow.dtype)
        function = ExpectedResidual if objective == "expected" else CompositeResidual
        loss: Tensor = function.apply(masks.flatten(2), flow.flatten(2), basis, residual == "root")
        return loss


class ExpectedResidual(torch.autograd.Function):
    """mean over pixels of sum_k m_k rho(|F - f_k|^2), f_k fitted with weights m_k."""

    @staticmethod
    def forward(ctx: Any, masks: Tensor, flow: Tensor, basis: Basis, root: bool) -> Tensor:  # noqa: D102
        parameters, _ = fit_parameters(masks, flow, basis)
        energy = torch.empty_like(masks)
        for k in range(masks.shape[1]):  # region by region, so that the buffers stay in the processor's cache
            difference = reconstruct_flow(parameters[:, k : k + 1], basis)[:, 0].sub_(flow)
            torch.mul(difference[:, 0], difference[:, 0], out=energy[:, k])
            energy[:, k].addcmul_(difference[:, 1], difference[:, 1])
        if root:
            energy.add_(SOFTENING**2).sqrt_()
        energy.mul_(1.0 / flow.numel())
        ctx.save_for_backward(energy)
        return torch.dot(masks.flatten(), energy.flatten())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # noqa: D102
        (energy,) = ctx.saved_tensors
        return gradient * energy, None, None, None


class CompositeResidual(torch.autograd.Function):
    """mean over pixels of rho(|F - sum_k m_k f_k|^2), f_k fitted with weights m_k^2."""

    @staticmethod
    def forward(ctx: Any, masks: Tensor, flow: Tensor, basis: Basis, root: bool) -> Tensor:  # noqa: D102
        parameters, gram = fit_parameters(masks.square(), flow, basis)
        region_flow = reconstruct_flow(parameters, basis)
        difference = flow.neg()
        for k in range(masks.shape[1]):
            difference.addcmul_(masks[:, k, None], region_flow[:, k])
        energy = difference.square().sum(1)
        if root:
            energy = energy.add_(SOFTENING**2).sqrt_()
            slope = difference.div_(energy[:, None])
        else:
            slope = difference.mul_(2.0)
        ctx.basis, ctx.scale = basis, 1.0 / flow.numel()
        ctx.save_for_backward(masks, flow, region_flow, slope, gram)
        loss: Tensor = energy.sum() * ctx.scale
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # noqa: D102
        masks, flow, region_flow, slope, gram = ctx.saved_tensors
        basis: Basis = ctx.basis
        # Through the fit: G theta = b, so a cost dL/dtheta weighs on the moments as lambda = G^-1 dL/dtheta.
        cost = (masks[:, :, None] * slope[:, None]).flatten(0, 2) @ basis.phi.T
        adjoint = torch.linalg.solve(gram, cost.double().view(*region_flow.shape[:3], -1).mT)
        mask_gradient = torch.empty_like(masks)
        for k in range(masks.shape[1]):
            unexplained = (flow - region_flow[:, k]).mul_(
                reconstruct_flow(adjoint[:, k : k + 1], basis)[:, 0]
            )
            through_fit = unexplained.sum(1).mul_(masks[:, k]).mul_(2.0)
            mask_gradient[:, k] = through_fit.add_((region_flow[:, k] * slope).sum(1))
        return mask_gradient.mul_(gradient * ctx.scale), None, None, None


def normalize_flow(flow: Float[Tensor, "B 2 H W"]) -> Float[Tensor, "B 2 H W"]:
    """Each frame's flow in units of what one quadratic motion of the whole frame leaves unexplained (root mean square).

    Fast and parallax-rich frames would otherwise rule the loss; a global motion does not count. Independent
    of frame size.
    """
    whole_frame = flow.new_ones(len(flow), 1, *flow.shape[2:])
    unexplained = flow - fit_motion(whole_frame, flow)[:, 0]
    energy = unexplained.square().mean(dim=(1, 2, 3), keepdim=True)
    return flow / (energy + NOISE_PX**2).sqrt()


def appearance_cut(masks: Float[Tensor, "B K H W"], features: Float[Tensor, "B C h w"]) -> Float[Tensor, ""]:
    """How much the regions cut apart what looks alike: the mean over B of their soft normalised cut, 0 to K - 1.

    sum_k cut(k, rest) / assoc(k, all) over the patches of the feature map, with the masks averaged on each patch (Shi
    and Malik, PAMI 2000). Two patches are as alike as their cosine is above 0.3, a threshold as in TokenCut
    (CVPR 2022). Two motion models explain parallax, near ground before far ground, as well as an object
    before its background; only appearance says that the grounds belong together. No gradient for the features.
    """
    with torch.autocast(masks.device.type, enabled=False):
        patches = functional.normalize(as_float(features.detach()), dim=1).flatten(2)
        affinity = (patches.mT @ patches - LEAST_COSINE).clamp_min_(0.0)
        shares = functional.adaptive_avg_pool2d(
            as_float(masks), (features.shape[2], features.shape[3])
        ).flatten(2)
        degree = affinity.sum(2)
        within = ((shares @ affinity) * shares).sum(2)
        total = (shares @ degree[..., None])[..., 0]
        floor = 1e-3 * degree.sum(1, keepdim=True)  # an empty region has no cut to speak of
        return (1.0 - within / (total + floor)).sum(1).mean()


def training_loss(
    masks: Float[Tensor, "B K h w"], flow: Float[Tensor, "B 2 H W"], config: ObjectiveConfig
) -> Float[Tensor, ""]:
    """The objective as configured: masks enlarged to the flow, flow clipped and normalised, then `motion_loss`."""
    if masks.shape[2:] != flow.shape[2:]:
        masks = functional.interpolate(masks, size=flow.shape[2:], mode="bilinear", align_corners=False)
    flow = flow.clamp(-config.flow_clip_px, config.flow_clip_px)
    if config.flow_normalization == "relative":
        flow = normalize_flow(flow)
    loss = motion_loss(masks, flow, motion=config.motion, objective=config.kind, residual=config.residual)
    return config.motion_weight * loss
