import pytest
import torch

from gwm_model.stray_parts import (
    MAX_PATCHES,
    drop_stray_parts,
    find_stray_parts,
    remove_stray_parts,
    split_in_two,
)

ROWS, COLUMNS = 12, 20
DIRECTIONS = torch.eye(8)


def video(*, wave_like_water: float, frames: int = 4, seed: int = 0):
    """A swan (4x4 patches) before its wave (4x6) on water: features, the swan, the swan with its wave.

    The swan's two halves are alike by 0.8; the wave is like the water by `wave_like_water`, and like the swan by 0.35.
    """
    generator = torch.Generator().manual_seed(seed)
    water, swan = DIRECTIONS[0], DIRECTIONS[1]
    rear = 0.8 * swan + 0.6 * DIRECTIONS[2]
    rest = (1 - wave_like_water**2 - 0.35**2) ** 0.5
    wave = wave_like_water * water + 0.35 * swan + rest * DIRECTIONS[3]
    features = water[:, None, None].expand(-1, ROWS, COLUMNS).repeat(frames, 1, 1, 1)
    swans, together = torch.zeros(2, frames, ROWS, COLUMNS)
    for t in range(frames):
        x = 7 + t
        features[t, :, 4:8, x : x + 2] = rear[:, None, None]
        features[t, :, 4:8, x + 2 : x + 4] = swan[:, None, None]
        features[t, :, 4:8, x - 6 : x] = wave[:, None, None]
        swans[t, 4:8, x : x + 4] = 1.0
        together[t, 4:8, x - 6 : x + 4] = 1.0
    noise = 0.02 * torch.randn(features.shape, generator=generator)
    return features + noise, swans, together


def test_a_part_that_looks_like_the_background_is_removed_in_every_frame():
    features, swan, with_wave = video(wave_like_water=0.8)
    parts = find_stray_parts(with_wave[:3], features[:3])
    assert parts is not None
    assert len(parts.object_patches) == 3 * 16
    assert len(parts.stray_patches) == 3 * 24
    left = remove_stray_parts(with_wave, features, parts)  # the last frame was not looked at before
    assert torch.equal(left > 0.5, swan > 0.5)


def test_an_object_whose_parts_look_alike_is_left_as_it_is():
    features, swan, _ = video(wave_like_water=0.8)
    assert find_stray_parts(swan, features) is None


def test_a_part_unlike_the_background_stays_even_if_it_is_unlike_the_rest():
    """A rider is not like his bicycle, but still less like the road."""
    features, _, with_rider = video(wave_like_water=0.2)
    assert find_stray_parts(with_rider, features) is None


def test_images_lose_their_own_stray_parts_whatever_is_beside_them():
    features, swan, with_wave = video(wave_like_water=0.8)
    others, _, with_rider = video(wave_like_water=0.2)
    masks, maps = torch.cat([with_wave, with_rider]), torch.cat([features, others])
    together = drop_stray_parts(masks, maps)
    assert torch.equal(together[:4] > 0.5, swan > 0.5)
    assert torch.equal(together[4:], with_rider)
    for image in range(8):
        one = slice(image, image + 1)
        parts = find_stray_parts(masks[one], maps[one])
        alone = masks[one] if parts is None else remove_stray_parts(masks[one], maps[one], parts)
        torch.testing.assert_close(together[one], alone, rtol=0, atol=1e-4)


def test_masks_on_a_finer_grid_lose_the_same_part():
    features, swan, with_wave = video(wave_like_water=0.8)
    finer = with_wave.repeat_interleave(4, 1).repeat_interleave(4, 2)
    parts = find_stray_parts(finer, features)
    assert parts is not None
    left = remove_stray_parts(finer, features, parts) > 0.5
    expected = swan.repeat_interleave(4, 1).repeat_interleave(4, 2) > 0.5
    assert (left != expected).sum() <= 4 * 4 * 16  # the seam between swan and wave, interpolated


def test_a_probability_never_grows():
    features, _, with_wave = video(wave_like_water=0.8)
    soft = 0.9 * with_wave + 0.05
    parts = find_stray_parts(soft, features)
    assert parts is not None
    left = remove_stray_parts(soft, features, parts)
    assert (left <= soft).all()
    assert (left >= 0).all()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_nothing_or_everything_has_no_stray_parts(share):
    features, *_ = video(wave_like_water=0.8)
    assert find_stray_parts(torch.full((4, ROWS, COLUMNS), share), features) is None


def test_features_without_any_likeness_split_nothing():
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, 256, ROWS, COLUMNS, generator=generator)  # nearly orthogonal
    masks = torch.zeros(2, ROWS, COLUMNS)
    masks[:, 3:9, 3:9] = 1.0
    parts = find_stray_parts(masks, features)
    left = masks if parts is None else remove_stray_parts(masks, features, parts)
    assert torch.isfinite(left).all()


def test_many_patches_are_thinned_out_and_give_the_same_answer():
    features, swan, with_wave = video(wave_like_water=0.8)
    fine = features.repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert fine[:, 0].numel() > MAX_PATCHES
    wide = with_wave.repeat_interleave(4, 1).repeat_interleave(4, 2)
    parts = find_stray_parts(wide, fine)
    assert parts is not None
    assert len(parts.object_patches) + len(parts.stray_patches) < MAX_PATCHES
    left = remove_stray_parts(wide, fine, parts)
    assert torch.equal(left > 0.5, swan.repeat_interleave(4, 1).repeat_interleave(4, 2) > 0.5)


def test_the_split_is_the_normalised_cut():
    """Against the exact minimum over all bipartitions of a small graph."""
    generator = torch.Generator().manual_seed(2)
    points = torch.cat([torch.randn(5, 2, generator=generator), torch.randn(7, 2, generator=generator) + 3])
    affinity = torch.exp(-torch.cdist(points, points).square() / 4)
    degree = affinity.sum(1)

    def cost(side):
        cut = affinity[side][:, ~side].sum()
        return float(cut / degree[side].sum() + cut / degree[~side].sum())

    codes = torch.arange(1, 2**11)
    sides = ((codes[:, None] >> torch.arange(12)) & 1).bool()
    best = min(cost(side) for side in sides)
    absent = torch.zeros(2, 15, 15)  # another graph beside it is larger
    absent[0, :12, :12], absent[1] = affinity, torch.rand(15, 15, generator=generator)
    found = split_in_two(absent, torch.arange(15) < torch.tensor([[12], [15]]))
    assert not found[0, 12:].any()
    assert cost(found[0, :12]) == pytest.approx(best, rel=0.05)
