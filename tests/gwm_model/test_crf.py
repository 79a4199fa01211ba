import pytest
import torch
from torch.nn import functional as F

from gwm_model.crf import SIDE_PX, crf_upsample

pytest.importorskip("pydensecrf", reason="the extra crf is not installed")


def two_colours(height=120, width=160):
    """A disk of one colour on another, with a little noise, and its mask [1, 1, H, W]."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    mask = ((rows - 61) ** 2 + (columns - 83) ** 2 <= 37**2).float()
    inside, outside = torch.tensor([0.8, 0.3, 0.2]), torch.tensor([0.3, 0.4, 0.6])
    image = torch.where(mask > 0, inside[:, None, None], outside[:, None, None])
    return (image + 0.005 * torch.randn(3, height, width)).clamp(0, 1)[None], mask[None, None]


def two_regions(probability):
    return torch.cat([1 - probability, probability], 1)


def jaccard(prediction, truth):
    return float((prediction & truth).sum() / (prediction | truth).sum())


def coarse(mask):
    """The mask on a grid of 8 px, one cell too low."""
    return F.avg_pool2d(mask, 8).roll(1, 2) * 0.8 + 0.1


def noisy(mask):
    """One pixel in five of the mask is wrong."""
    return torch.where(torch.rand(mask.shape) < 0.2, 1 - mask, mask) * 0.4 + 0.3


@pytest.mark.parametrize("spoiled", [coarse, noisy])
def test_a_spoiled_mask_gets_its_edges_back(spoiled):
    image, mask = two_colours()
    probability = spoiled(mask)
    plain = F.interpolate(probability, mask.shape[-2:], mode="bilinear")
    found = crf_upsample(two_regions(probability), image)[:, 1:]
    assert jaccard(plain > 0.5, mask > 0.5) < 0.85
    assert jaccard(found > 0.5, mask > 0.5) > 0.98


def test_marginals_sum_to_one_at_the_images_size_and_images_do_not_touch_each_other():
    image, _ = two_colours()
    images, masks = torch.cat([image, image.flip(3)]), torch.randn(2, 3, 15, 20).softmax(1)
    together = crf_upsample(masks, images)
    assert together.shape == (2, 3, 120, 160)
    assert together.min() >= 0
    assert torch.allclose(together.sum(1), torch.ones(2, 120, 160), atol=1e-5)
    assert torch.equal(together[1:], crf_upsample(masks[1:], images[1:]))


def test_a_uniform_image_leaves_a_sure_mask_nearly_as_it_is():
    probability = torch.full((1, 1, 60, 80), 0.02)
    probability[:, :, 20:, :] = 0.98
    found = crf_upsample(two_regions(probability), torch.full((1, 3, 60, 80), 0.5))[:, 1:]
    assert jaccard(found > 0.5, probability > 0.5) > 0.98


def test_an_image_larger_than_the_crfs_grid_has_the_mask_of_its_smaller_self():
    image, mask = two_colours()
    large = F.interpolate(image, scale_factor=6, mode="nearest")
    assert large.shape[-1] > SIDE_PX
    found = crf_upsample(two_regions(coarse(mask)), large)[:, 1:]
    assert found.shape[-2:] == large.shape[-2:]
    assert jaccard(found > 0.5, F.interpolate(mask, scale_factor=6) > 0.5) > 0.97


def test_no_region_is_lost_to_a_probability_of_zero():
    image, mask = two_colours()
    found = crf_upsample(two_regions(mask), image)
    assert torch.isfinite(found).all()
    assert jaccard(found[:, 1:] > 0.5, mask > 0.5) > 0.98
