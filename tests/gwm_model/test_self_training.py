from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from gwm_model.config import ObjectiveConfig, RefineConfig, SegmenterConfig
from gwm_model.flow_refine import explain_flow
from gwm_model.objective import training_loss
from gwm_model.refine import guided_upsample
from gwm_model.segmenter import build_segmenter
from gwm_model.self_training import self_training_loss, sharpened
from gwm_model.training import SegmenterLoss, TrainBatch

ROWS, COLUMNS = 24, 40
FINER = 3


def red_box():
    """A red box that moves right on a blue ground that moves left: image, flow, truth, and a mask beside the truth."""
    truth = torch.zeros(1, ROWS * FINER, COLUMNS * FINER)
    truth[:, 20:50, 31:82] = 1.0
    images = torch.stack([0.2 + 0.6 * truth, 0.3 + 0 * truth, 0.8 - 0.6 * truth], 1)
    covered = F.interpolate(truth[:, None], (ROWS, COLUMNS), mode="area")
    flow = torch.cat([6 * covered - 2, 0.1 * covered], 1)
    beside = F.interpolate(truth[:, None].roll((6, -9), (2, 3)), (ROWS, COLUMNS), mode="area")[:, 0]
    object_mask = 0.15 + 0.7 * beside
    return images, flow, truth[0] > 0.5, torch.stack([1 - object_mask, object_mask], 1)


def wrong_pixels(masks: torch.Tensor, truth: torch.Tensor) -> int:
    finer = F.interpolate(masks, truth.shape, mode="bilinear")
    return int(((finer[0, 1] > finer[0, 0]) != truth).sum())


def test_a_mask_becomes_what_its_frames_flow_and_edges_say():
    images, flow, truth, masks = red_box()
    target = sharpened(masks, flow, images)
    assert target.shape == (1, 2, *truth.shape)
    assert wrong_pixels(target, truth) < wrong_pixels(masks, truth) / 10
    torch.testing.assert_close(target.sum(1), torch.ones(1, *truth.shape), rtol=0, atol=0.02)


def test_two_regions_are_sharpened_as_an_object_is_at_test():
    images, flow, _, masks = red_box()
    given_flow = explain_flow(masks[:, 1], flow[:, None], torch.ones(1, 1, dtype=torch.bool))
    expected = guided_upsample(given_flow[:, None], images, RefineConfig()).clamp(0, 1)
    torch.testing.assert_close(sharpened(masks, flow, images)[:, 1:], expected, rtol=0, atol=2e-3)


def test_the_gradient_pulls_towards_the_target_and_not_the_target_along():
    images, flow, _, masks = red_box()
    images = F.interpolate(images, (ROWS, COLUMNS), mode="area")
    logits = masks.log().requires_grad_()
    self_training_loss(logits, flow, images).backward()
    expected = (masks - sharpened(masks, flow, images)) / (ROWS * COLUMNS)
    torch.testing.assert_close(logits.grad, expected, rtol=0, atol=1e-5)  # the target's sums are near 1


def test_three_regions_and_frames_without_flow_are_finite():
    images, flow, _, masks = red_box()
    three = torch.cat([masks, torch.full((1, 1, ROWS, COLUMNS), 1e-9)], 1)
    logits = three.log().requires_grad_()
    self_training_loss(logits, torch.zeros_like(flow), images).backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize(("progress", "learns"), [(0.0, False), (0.49, False), (0.5, True), (0.99, True)])
def test_masks_learn_from_themselves_in_the_second_half(progress: float, learns: bool):
    torch.manual_seed(0)
    config = SegmenterConfig(architecture="unet", height_px=48, width_px=80, hidden_channels=8)
    objective = ObjectiveConfig(self_training_weight=0.7)
    module = SegmenterLoss(build_segmenter(config), objective).eval()
    images, flow = (F.interpolate(maps, (48, 80), mode="bilinear") for maps in red_box()[:2])
    batch = TrainBatch(images, [], flow, progress).to("cpu")
    with torch.no_grad():
        logits = module.segmenter.logits([], images)
        expected = training_loss(logits.softmax(1), flow, objective)
        if learns:
            expected = expected + 0.7 * self_training_loss(logits, flow, images)
        torch.testing.assert_close(module(batch), expected)
        module.objective = replace(objective, self_training_weight=0.0)
        torch.testing.assert_close(module(batch), training_loss(logits.softmax(1), flow, objective))
