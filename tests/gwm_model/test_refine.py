import numpy as np
import pytest
import torch
from torch.nn import functional as F

from gwm_model.config import RefineConfig
from gwm_model.refine import guided_upsample


def disk_scene(height=120, width=160):
    """An image of a textured disk on another colour, and its mask."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    mask = ((rows - 61) ** 2 + (columns - 83) ** 2 <= 37**2).float()
    generator = torch.Generator().manual_seed(0)
    noise = 0.03 * torch.randn(3, height, width, generator=generator)
    inside, outside = torch.tensor([0.8, 0.3, 0.2]), torch.tensor([0.3, 0.4, 0.6])
    image = torch.where(mask[None] > 0, inside[:, None, None], outside[:, None, None]) + noise
    return image.clamp(0, 1)[None], mask[None]


def jaccard(prediction, truth):
    return float((prediction & truth).sum() / (prediction | truth).sum())


def test_a_coarse_mask_moves_to_the_edges_of_the_image():
    image, mask = disk_scene()
    coarse = F.avg_pool2d(mask[:, None], 8)[:, 0].roll(1, 1) * 0.8 + 0.1  # one cell too low
    plain = F.interpolate(coarse[:, None], mask.shape[-2:], mode="bilinear")[:, 0]
    sharp = guided_upsample(coarse[:, None], image, RefineConfig(radius_cells=2))[:, 0]
    before, after = (jaccard(each > 0.5, mask > 0.5) for each in (plain, sharp))
    assert before < 0.85
    assert after > 0.95


def test_agrees_with_least_squares_in_every_window():
    torch.manual_seed(0)
    image, probability = (
        torch.rand(1, 3, 9, 11, dtype=torch.float64),
        torch.rand(1, 9, 11, dtype=torch.float64),
    )
    config = RefineConfig(radius_cells=1, epsilon=0.01)
    colours, values = image[0].permute(1, 2, 0).numpy(), probability[0].numpy()
    models = np.zeros((9, 11, 4))
    for row in range(9):
        for column in range(11):
            window = np.s_[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2]
            x, y = colours[window].reshape(-1, 3), values[window].ravel()
            spread = np.cov(x.T, bias=True) + 0.01 * np.eye(3)
            slope = np.linalg.solve(spread, (x - x.mean(0)).T @ (y - y.mean()) / len(y))
            models[row, column] = [*slope, y.mean() - slope @ x.mean(0)]
    expected = np.zeros((9, 11))
    for row in range(9):
        for column in range(11):
            window = np.s_[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2]
            model = models[window].reshape(-1, 4).mean(0)
            expected[row, column] = model[:3] @ colours[row, column] + model[3]
    found = guided_upsample(probability[:, None], image, config)
    assert found[0, 0].numpy() == pytest.approx(expected, abs=1e-9)


def test_a_flat_image_leaves_a_smoothed_mask():
    probability = torch.zeros(1, 8, 8)
    probability[:, :, 4:] = 1.0
    guide = torch.full((1, 3, 32, 32), 0.5)
    found = guided_upsample(probability[:, None], guide, RefineConfig(radius_cells=1))[:, 0]
    assert found[0, :, :5].max() == pytest.approx(0.0, abs=1e-6)
    assert found[0, :, -5:].min() == pytest.approx(1.0, abs=1e-6)
    assert found[0, 16].diff().min() >= -1e-6


def test_masks_that_sum_to_one_still_do_and_images_do_not_touch_each_other():
    torch.manual_seed(0)
    image, _ = disk_scene()
    masks, images = torch.randn(2, 3, 15, 20).softmax(1), torch.cat([image, image.flip(3)])
    together = guided_upsample(masks, images, RefineConfig())
    assert together.shape == (2, 3, 120, 160)
    assert torch.allclose(together.sum(1), torch.ones(2, 120, 160), atol=1e-4)
    alone = guided_upsample(masks[1:, 1:2], images[1:], RefineConfig())
    assert torch.allclose(together[1:, 1:2], alone, atol=1e-5)
