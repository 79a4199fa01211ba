"""Masks that learn from what they become: a frame's own flow and edges sharpen them, and they are trained towards that.

Flow teaches motion, and is smooth where objects end; the image's edges are sharp, and say nothing of objects. A mask
that has followed both is better than before, and costs little: the network learns to give it at once, from the image
alone.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from gwm_model.config import RefineConfig
from gwm_model.flow_refine import LEAST_PROBABILITY, flow_likelihood
from gwm_model.refine import guided_upsample


def self_training_loss(
    logits: Float[Tensor, "B K h w"], flow: Float[Tensor, "B 2 H W"], images: Float[Tensor, "B 3 I J"]
) -> Float[Tensor, ""]:
    """Cross entropy of the masks with what they themselves become, which has no gradient; the mean over pixels.

    Args:
        logits: of the regions.
        flow: observed flow, pixels of any size of the frame.
        images: RGB in [0, 1]; the masks meet at their size.
    """
    with torch.autocast(logits.device.type, enabled=False):
        target = sharpened(logits.detach().float().softmax(1), flow.float(), images.float())
        at_images = F.interpolate(logits.float(), images.shape[-2:], mode="bilinear", align_corners=False)
        return -(target * at_images.log_softmax(1)).sum(1).mean()


@torch.no_grad()
def sharpened(
    masks: Float[Tensor, "B K h w"], flow: Float[Tensor, "B 2 H W"], images: Float[Tensor, "B 3 I J"]
) -> Float[Tensor, "B K I J"]:
    """The masks after one step of expectation-maximisation on the flow, along the images' edges, at their size."""
    masks = F.interpolate(masks, flow.shape[-2:], mode="bilinear", align_corners=False)
    prior = masks.clamp_min(LEAST_PROBABILITY)
    given_flow = (prior.log() + flow_likelihood(prior, flow)).softmax(1)
    return guided_upsample(given_flow, images, RefineConfig()).clamp(0.0, 1.0)
