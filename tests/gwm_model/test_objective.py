import pytest
import torch

from gwm_model.config import ObjectiveConfig
from gwm_model.conventions import pixel_grid
from gwm_model.motion import Basis, motion_basis
from gwm_model.objective import (
    ExpectedResidual,
    appearance_cut,
    motion_loss,
    normalize_flow,
    training_loss,
)

OBJECTIVES = ["expected", "composite"]


def random_case(
    batch: int = 2, regions: int = 3, height: int = 24, width: int = 40
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.nn.functional.interpolate(
        torch.randn(batch, regions, 4, 6, generator=generator) * 2, (height, width), mode="bilinear"
    )
    flow = torch.nn.functional.interpolate(
        torch.randn(batch, 2, 5, 7, generator=generator) * 5, (height, width), mode="bicubic"
    )
    return logits, flow


def published_loss(masks: torch.Tensor, flow: torch.Tensor, objective: str) -> torch.Tensor:
    """Per-pixel least squares by QR: method of the published code for `composite`, Eq. 3 literally for `expected`."""
    height, width = flow.shape[2:]
    rows, columns = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    terms = [rows, columns, rows**2, columns**2, rows * columns, torch.ones_like(rows)]
    phi = torch.stack(terms, -1).view(1, -1, 6).to(flow)
    target, total = flow.flatten(2).mT, torch.zeros_like(flow.flatten(2).mT)
    expected = flow.new_zeros(())
    for k in range(masks.shape[1]):
        mask = masks[:, k].flatten(1)[..., None]
        weight = mask if objective == "composite" else mask.sqrt()
        q, r = torch.linalg.qr(weight * phi)
        theta = torch.linalg.solve_triangular(r, q.mT @ (weight * target), upper=True)
        total = total + mask * (phi @ theta)
        expected = expected + (mask * (target - phi @ theta).square()).sum()
    return (target - total).square().mean() if objective == "composite" else expected / flow.numel()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_value_and_gradient_agree_with_float64_least_squares(objective: str) -> None:
    logits, flow = random_case()
    masks = logits.softmax(1).requires_grad_()
    motion_loss(masks, flow, objective=objective).backward()
    reference = logits.double().softmax(1).requires_grad_()
    expected = published_loss(reference, flow.double(), objective)
    expected.backward()
    loss = motion_loss(masks, flow, objective=objective)
    assert abs(loss.item() / expected.item() - 1) < 1e-4
    assert (masks.grad.double() - reference.grad).norm() / reference.grad.norm() < 1e-4


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("motion", ["constant", "affine", "quadratic"])
def test_gradcheck(objective: str, motion: str) -> None:
    logits, flow = random_case(1, 2, 6, 7)
    masks = logits.double().softmax(1).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda m: motion_loss(m, flow.double(), motion=motion, objective=objective), masks, atol=1e-5
    )


def test_gradcheck_of_the_root_residual_through_the_composite_fit() -> None:
    logits, flow = random_case(1, 2, 6, 7)
    masks = logits.double().softmax(1).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda m: motion_loss(m, flow.double(), objective="composite", residual="root"), masks, atol=1e-5
    )


@pytest.mark.parametrize("residual", ["squared", "root"])
def test_objectives_agree_for_one_hot_masks(residual: str) -> None:
    logits, flow = random_case()
    masks = torch.nn.functional.one_hot(logits.argmax(1), 3).movedim(-1, 1).float()
    losses = [motion_loss(masks, flow, objective=objective, residual=residual) for objective in OBJECTIVES]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)


def test_composite_is_at_most_expected() -> None:
    logits, flow = random_case()
    masks = logits.softmax(1)
    assert motion_loss(masks, flow, objective="composite") < motion_loss(masks, flow, objective="expected")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_two_true_motions_are_fully_explained(objective: str) -> None:
    x, y = (axis.float() for axis in pixel_grid(30, 40))
    inside = (x.square() + y.square() < 0.3).float()
    motions = torch.stack([torch.stack([3 + x, y * x]), torch.stack([-5 + y, 2 * y.square()])])
    flow = (inside * motions[0] + (1 - inside) * motions[1])[None]
    right = torch.stack([inside, 1 - inside])[None]
    wrong = torch.stack([(x > 0).float(), (x <= 0).float()])[None]
    assert motion_loss(right, flow, objective=objective) < 1e-6
    assert motion_loss(wrong, flow, objective=objective) > 0.5


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("residual", ["squared", "root"])
@pytest.mark.parametrize("gap", [1e2, 1e4])
def test_saturated_logits_and_empty_regions_stay_finite(objective: str, residual: str, gap: float) -> None:
    _, flow = random_case(1, 3)
    logits = torch.zeros(1, 3, 24, 40)
    logits[:, 0, :12], logits[:, 1, 12:] = gap, gap  # region 2 is empty, the others one-hot
    logits.requires_grad_()
    loss = motion_loss(logits.softmax(1), flow, objective=objective, residual=residual)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_exactly_empty_region_has_finite_gradient(objective: str) -> None:
    _, flow = random_case(1, 2)
    masks = torch.stack([torch.ones(24, 40), torch.zeros(24, 40)])[None].requires_grad_()
    motion_loss(masks, flow, objective=objective).backward()
    assert torch.isfinite(masks.grad).all()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_order_of_regions_does_not_matter(objective: str) -> None:
    logits, flow = random_case()
    masks = logits.softmax(1)
    permuted = motion_loss(masks[:, [2, 0, 1]], flow, objective=objective)
    assert permuted.item() == pytest.approx(motion_loss(masks, flow, objective=objective).item(), rel=1e-5)


def test_invariant_to_affine_change_of_coordinates() -> None:
    logits, flow = random_case()
    masks = logits.softmax(1).flatten(2)
    basis = motion_basis("quadratic", 24, 40, torch.device("cpu"), torch.float32)
    _, x, y = basis.phi[:3]
    u, v = 0.3 * x - 0.4 * y + 0.7, 0.2 * x + 0.9 * y - 0.1
    terms = torch.stack([torch.ones_like(u), u, v, u * u, u * v, v * v])
    rows, columns = torch.triu_indices(6, 6)
    changed = Basis(terms, (terms[rows] * terms[columns]).T.contiguous(), basis.unpack)
    losses = [
        ExpectedResidual.apply(masks, flow.flatten(2), chosen, False).item() for chosen in (basis, changed)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_bfloat16_masks_are_computed_in_float32() -> None:
    logits, flow = random_case()
    with torch.autocast("cpu", torch.bfloat16):
        loss = motion_loss(logits.softmax(1).bfloat16(), flow)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(motion_loss(logits.softmax(1), flow).item(), rel=2e-2)


def test_normalized_flow_ignores_global_motion_and_scale() -> None:
    _, flow = random_case(2)
    x, y = (axis.float() for axis in pixel_grid(24, 40))
    moved = flow * 10 + torch.stack([40 + 9 * x * y, 7 * y.square() - 20])
    masks = random_case(2)[0].softmax(1)
    losses = [motion_loss(masks, normalize_flow(each)).item() for each in (flow * 10, moved)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert 0.1 < losses[0] <= 1  # what one motion leaves is one by definition


def test_normalized_noise_is_not_blown_up() -> None:
    noise = torch.randn(1, 2, 24, 40, generator=torch.Generator().manual_seed(0)) * 0.05
    assert normalize_flow(noise).abs().max() < 0.5


def test_shapes_and_names_are_checked() -> None:
    masks, flow = torch.ones(1, 2, 8, 8), torch.ones(1, 2, 8, 9)
    with pytest.raises(ValueError, match="do not match"):
        motion_loss(masks, flow)
    with pytest.raises(ValueError, match="No such objective"):
        motion_loss(masks, masks, objective="mixed")  # type: ignore[arg-type]


def appearance_case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Near and far ground that look alike, a thing that does not; features, and the masks of thing and near ground."""
    thing, near = torch.zeros(36, 64), torch.zeros(36, 64)
    thing[12:24, 16:32] = 1.0
    near[20:] = 1.0
    look = torch.stack([1 - thing, thing, 0.1 * torch.ones_like(thing)])[None]
    return torch.nn.functional.avg_pool2d(look, 4), thing, near


def split(mask: torch.Tensor) -> torch.Tensor:
    return torch.stack([mask, 1 - mask])[None]


def test_appearance_cut_is_least_for_what_looks_different() -> None:
    features, thing, near = appearance_case()
    assert appearance_cut(split(thing), features) < 0.2
    assert appearance_cut(split(near), features) > 0.8
    assert appearance_cut(torch.full((1, 4, 36, 64), 0.25), features).item() == pytest.approx(3.0, abs=0.02)


def test_appearance_cut_is_the_normalised_cut_of_hard_regions() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 5, 4, 6, generator=generator) + 1
    labels = torch.randint(3, (2, 4, 6), generator=generator)
    masks = torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).float()
    expected = 0.0
    for image in range(2):
        patches = torch.nn.functional.normalize(features[image].flatten(1), dim=0)
        affinity = (patches.T @ patches - 0.3).clamp_min(0)
        for k in range(3):
            inside = masks[image, k].flatten().bool()
            expected += float(affinity[inside][:, ~inside].sum() / affinity[inside].sum()) / 2
    fine = masks.repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert appearance_cut(fine, features).item() == pytest.approx(expected, abs=0.02)


def test_appearance_decides_between_parallax_and_the_object() -> None:
    features, thing, near = appearance_case()
    flow = torch.stack([4.0 * near + 3 * thing, -2 * thing])[None]
    losses = {
        name: training_loss(split(mask), flow, ObjectiveConfig())
        for name, mask in (("thing", thing), ("near", near))
    }
    cuts = {name: appearance_cut(split(mask), features) for name, mask in (("thing", thing), ("near", near))}
    assert losses["near"] < losses["thing"]
    assert losses["near"] + cuts["near"] > losses["thing"] + cuts["thing"]


def test_appearance_cut_has_a_finite_gradient_for_empty_and_one_hot_regions() -> None:
    features, _, _ = appearance_case()
    logits = torch.zeros(1, 3, 36, 64)
    logits[:, 0] = 1e4
    logits.requires_grad_()
    appearance_cut(logits.softmax(1), features).backward()
    assert torch.isfinite(logits.grad).all()


def test_the_motion_weight_scales_loss_and_gradient() -> None:
    logits, flow = random_case()
    found = []
    for weight in (1.0, 0.03):
        leaf = logits.clone().requires_grad_()
        loss = training_loss(leaf.softmax(1), flow, ObjectiveConfig(motion_weight=weight))
        loss.backward()
        found.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(found[1][0], 0.03 * found[0][0])
    torch.testing.assert_close(found[1][1], 0.03 * found[0][1])


def test_masks_meet_a_finer_flow_enlarged_between_pixel_centres() -> None:
    """The published code: probabilities, not logits, enlarged with align_corners False."""
    masks = random_case()[0].softmax(1)
    _, flow = random_case(height=60, width=90)
    config = ObjectiveConfig(kind="composite", residual="squared", flow_normalization="none")
    fine = torch.nn.functional.interpolate(masks, (60, 90), mode="bilinear", align_corners=False)
    expected = motion_loss(fine, flow.clamp(-20, 20), objective="composite")
    torch.testing.assert_close(training_loss(masks, flow, config), expected)


@pytest.mark.parametrize("values", [{"height_px": 480}, {"width_px": 854}, {"motion_weight": 0.0}])
def test_impossible_values_of_the_objective_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"height_px and width_px|motion_weight"):
        ObjectiveConfig(**values)
