"""Masks that follow a frame's own flow, where it is at hand: one step of expectation-maximisation.

A mask's regions are the components of a mixture, each a motion with unit noise in normalised flow (as in the
objective). The M-step fits the motions, the E-step weighs every pixel by how well they explain its flow.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gwm_model.config import ObjectiveConfig
from gwm_model.motion import fit_motion
from gwm_model.objective import normalize_flow

LEAST_PROBABILITY = 1e-3
"""Masks are taken as no surer than this: flow must be able to change them."""


def explain_flow(
    masks: Float[Tensor, "B H W"], flow: Float[Tensor, "B G 2 H W"], has_flow: Bool[Tensor, "B G"]
) -> Float[Tensor, "B H W"]:
    """The object's probability given the flow too; unchanged in frames that have none.

    The log odds of a pixel rise by |F - f_background|² - |F - f_object|², the mean over the frame's gaps; quadratic
    motions f fitted to either side of the mask, F normalised flow.

    Args:
        masks: the object's probability.
        flow: to other frames, pixels of any size of the frame.
        has_flow: which of a frame's flows exist.
    """
    prior = masks.clamp(LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
    sides = torch.stack([1 - prior, prior], 1)
    evidence = torch.zeros_like(prior)
    for gap in range(flow.shape[1]):
        likelihood = flow_likelihood(sides, flow[:, gap])
        evidence += torch.where(has_flow[:, gap, None, None], likelihood[:, 1] - likelihood[:, 0], 0.0)
    evidence /= has_flow.sum(1).clamp_min(1)[:, None, None]
    given_flow = torch.sigmoid(torch.logit(prior) + evidence)
    return torch.where(has_flow.any(1)[:, None, None], given_flow, masks)


def flow_likelihood(
    masks: Float[Tensor, "B K H W"], flow: Float[Tensor, "B 2 H W"]
) -> Float[Tensor, "B K H W"]:
    """The log-likelihood of every pixel's flow under each region's motion, -|F - f_k|² without its constant."""
    clip = ObjectiveConfig().flow_clip_px
    observed = normalize_flow(flow.clamp(-clip, clip))
    return -(observed[:, None] - fit_motion(masks, observed)).square().sum(2)
