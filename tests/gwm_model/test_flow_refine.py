import pytest
import torch

from gwm_model.flow_refine import explain_flow

ROWS, COLUMNS = 36, 64


def moving_box():
    """A box that moves by (3, -1) px on a background that moves by (-1, 0.5) px."""
    truth = torch.zeros(1, ROWS, COLUMNS)
    truth[:, 10:26, 20:44] = 1.0
    motion = torch.tensor([3.0, -1.0])[:, None, None]
    background = torch.tensor([-1.0, 0.5])[:, None, None]
    flow = torch.where(truth[:, None] > 0.5, motion, background)
    return truth, flow[:, None] + 0.05 * torch.randn(
        1, 2, 2, 1, 1, generator=torch.Generator().manual_seed(0)
    )


def test_a_coarse_mask_takes_the_shape_of_what_moves():
    truth, flow = moving_box()
    coarse = torch.full_like(truth, 0.1)
    coarse[:, 7:23, 24:48] = 0.8  # moved by 3 rows and 4 columns
    refined = explain_flow(coarse, flow, torch.ones(1, 2, dtype=torch.bool))
    wrong = [int(((masks > 0.5) != (truth > 0.5)).sum()) for masks in (coarse, refined)]
    assert wrong[0] > 200
    assert wrong[1] < wrong[0] / 4


def test_frames_without_flow_keep_their_masks_to_the_bit():
    truth, flow = moving_box()
    masks = torch.rand(truth.shape, generator=torch.Generator().manual_seed(1))
    assert torch.equal(explain_flow(masks, flow, torch.zeros(1, 2, dtype=torch.bool)), masks)


def test_only_flows_that_exist_have_a_say():
    truth, flow = moving_box()
    coarse = 0.1 + 0.7 * truth.roll(3, -1)
    spoiled = flow.clone()
    spoiled[:, 1] = 1e3 * torch.randn(flow[:, 1].shape, generator=torch.Generator().manual_seed(2))
    first_only = torch.tensor([[True, False]])
    assert torch.equal(explain_flow(coarse, flow, first_only), explain_flow(coarse, spoiled, first_only))


@pytest.mark.parametrize("motion", [(0.0, 0.0), (5.0, 5.0)])
def test_flow_that_one_motion_explains_changes_no_decision(motion):
    """A camera that pans tells nothing about the object."""
    truth, flow = moving_box()
    pan = torch.tensor(motion)[:, None, None].expand_as(flow[0, 0])[None, None]
    masks = 0.2 + 0.6 * truth
    refined = explain_flow(masks, pan, torch.ones(1, 1, dtype=torch.bool))
    assert torch.equal(refined > 0.5, truth > 0.5)


def test_the_answer_is_finite_and_a_probability_for_empty_and_full_masks():
    _, flow = moving_box()
    for value in (0.0, 1.0):
        refined = explain_flow(
            torch.full((1, ROWS, COLUMNS), value), flow, torch.ones(1, 2, dtype=torch.bool)
        )
        assert torch.isfinite(refined).all()
        assert (refined >= 0).all()
        assert (refined <= 1).all()
