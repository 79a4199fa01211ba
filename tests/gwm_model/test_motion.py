import pytest
import torch

from gwm_model.conventions import pixel_grid
from gwm_model.motion import NUM_TERMS, fit_motion, motion_basis


def smooth_masks(batch: int, regions: int, height: int, width: int) -> torch.Tensor:
    coarse = torch.randn(batch, regions, 4, 6, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse * 2, (height, width), mode="bilinear").softmax(1)


def polynomial_flow(motion: str, height: int, width: int, seed: int) -> torch.Tensor:
    basis = motion_basis(motion, height, width, torch.device("cpu"), torch.float64)
    coefficients = (
        torch.randn(2, NUM_TERMS[motion], generator=torch.Generator().manual_seed(seed)).double() * 3
    )
    return (coefficients @ basis.phi).view(2, height, width)


def test_convention_x_is_right_and_y_is_down() -> None:
    x, y = pixel_grid(4, 8)
    assert torch.equal(x[0], x[3])
    assert torch.all(x[0].diff() > 0)
    assert torch.all(y[:, 0].diff() > 0)


def test_convention_pixel_centres_within_minus_one_and_one() -> None:
    x, y = pixel_grid(5, 4)
    assert x[0].tolist() == [-0.75, -0.25, 0.25, 0.75]
    assert y[2, 0] == 0
    assert x.sum().abs() < 1e-12


@pytest.mark.parametrize("motion", ["constant", "affine", "quadratic"])
def test_each_region_recovers_its_own_motion(motion: str) -> None:
    left = torch.zeros(24, 40)
    left[:, :18] = 1
    masks = torch.stack([left, 1 - left])[None]
    flows = [polynomial_flow(motion, 24, 40, seed).float() for seed in (1, 2)]
    flow = torch.where(left.bool(), flows[0], flows[1])[None]
    fitted = fit_motion(masks, flow, motion=motion)
    for region, truth in enumerate(flows):  # the fit extends over the whole frame, outside the region too
        assert (fitted[0, region] - truth).abs().max() < 2e-3


def test_agrees_with_float64_least_squares() -> None:
    masks, flow = (
        smooth_masks(2, 3, 30, 50),
        torch.randn(2, 2, 30, 50, generator=torch.Generator().manual_seed(1)) * 5,
    )
    fitted = fit_motion(masks, flow)
    phi = motion_basis("quadratic", 30, 50, torch.device("cpu"), torch.float64).phi
    for image in range(2):
        for region in range(3):
            weight = masks[image, region].double().flatten().sqrt()[:, None]
            solved = torch.linalg.lstsq(weight * phi.T, weight * flow[image].double().flatten(1).T).solution
            expected = (solved.T @ phi).view(2, 30, 50)
            error = (fitted[image, region].double() - expected).norm() / expected.norm()
            assert error < 1e-4


def test_a_higher_motion_contains_the_lower_ones() -> None:
    masks, flow = smooth_masks(1, 2, 20, 30), polynomial_flow("affine", 20, 30, 3).float()[None]
    assert (fit_motion(masks, flow, motion="quadratic") - flow[:, None]).abs().max() < 1e-3
    assert (fit_motion(masks, flow, motion="affine") - flow[:, None]).abs().max() < 1e-3
    assert (fit_motion(masks, flow, motion="constant") - flow[:, None]).abs().max() > 1


def test_hflip_negates_dx() -> None:
    masks, flow = (
        smooth_masks(1, 2, 20, 30),
        torch.randn(1, 2, 20, 30, generator=torch.Generator().manual_seed(1)),
    )
    fitted = fit_motion(masks, flow)
    flipped_flow = flow.flip(-1) * torch.tensor([-1.0, 1.0]).view(1, 2, 1, 1)
    flipped = fit_motion(masks.flip(-1), flipped_flow)
    expected = fitted.flip(-1) * torch.tensor([-1.0, 1.0]).view(1, 1, 2, 1, 1)
    assert torch.allclose(flipped, expected, atol=1e-4)


def test_empty_and_one_pixel_regions_are_finite() -> None:
    masks = torch.zeros(1, 3, 16, 16)
    masks[0, 0] = 1
    masks[0, 0, 5, 5], masks[0, 1, 5, 5] = 0, 1
    flow = torch.full((1, 2, 16, 16), 3.0)
    fitted = fit_motion(masks, flow)
    assert torch.isfinite(fitted).all()
    assert (fitted[0, 0] - 3).abs().max() < 1e-3
    assert (fitted[0, 1, :, 5, 5] - 3).abs().max() < 1e-3
    assert fitted[0, 2].abs().max() == 0


def test_unknown_motion_is_refused() -> None:
    with pytest.raises(ValueError, match="motion is one of"):
        fit_motion(torch.ones(1, 1, 8, 8), torch.ones(1, 2, 8, 8), motion="cubic")  # type: ignore[arg-type]
