import itertools
import warnings

import numpy as np
import pytest
import torch
from sklearn.cluster import SpectralClustering
from torch.nn import functional as F

from gwm_model.merge import (
    bipartitions,
    choose_foreground,
    foreground_probability,
    merge_by_border,
    merge_regions,
    normalized_cut,
)


def random_case(seed: int, images: int = 6, regions: int = 4, channels: int = 5):
    """Soft masks with distinct appearances behind them: affinities that are neither all 0 nor all 1."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.softmax(4 * torch.randn(images, regions, 12, 20, generator=generator), 1)
    appearance = torch.randn(images, regions, channels, generator=generator)
    features = torch.einsum("bkhw,bkc->bchw", masks, appearance)
    return masks, features + 0.3 * torch.randn(features.shape, generator=generator)


def affinity_in_numpy(masks: np.ndarray, features: np.ndarray) -> np.ndarray:
    """One image's affinity, written from the paper: weighted mean descriptors, cosine, floor 1e-6."""
    num = masks.shape[0]
    weight = masks.reshape(num, -1)
    mean = weight @ features.reshape(features.shape[0], -1).T / weight.sum(1, keepdims=True)
    unit = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    return np.maximum(unit @ unit.T, 1e-6)


def ncut_in_numpy(affinity: np.ndarray, side: np.ndarray) -> float:
    a, b = np.flatnonzero(side == 0), np.flatnonzero(side == 1)
    cut = affinity[np.ix_(a, b)].sum()
    return cut / affinity[a].sum() + cut / affinity[b].sum()


def same_partition(left: np.ndarray, right: np.ndarray) -> bool:
    return bool((left == right).all() or (left == 1 - right).all())


@pytest.mark.parametrize("regions", [2, 3, 4, 5, 6])
def test_bipartitions_are_all_of_them_once(regions):
    rows = {tuple(row) for row in bipartitions(regions).tolist()}
    expected = {(0, *rest) for rest in itertools.product((0, 1), repeat=regions - 1)} - {(0,) * regions}
    assert rows == expected
    assert len(bipartitions(regions)) == 2 ** (regions - 1) - 1


@pytest.mark.parametrize("regions", [1, 17])
def test_a_number_of_regions_out_of_range_is_refused(regions):
    with pytest.raises(ValueError, match="regions can be merged"):
        bipartitions(regions)


@pytest.mark.parametrize("regions", [3, 4, 5, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_cut_is_the_brute_force_minimum(regions, dtype):
    masks, features = random_case(regions, images=20, regions=regions)
    labels = merge_regions(masks.to(dtype), features.to(dtype)).numpy()
    for image in range(len(masks)):
        affinity = affinity_in_numpy(masks[image].double().numpy(), features[image].double().numpy())
        sides = [np.array((0, *rest)) for rest in itertools.product((0, 1), repeat=regions - 1)][1:]
        best = min(ncut_in_numpy(affinity, side) for side in sides)
        assert ncut_in_numpy(affinity, labels[image]) == pytest.approx(best, rel=1e-6)


def test_normalized_cut_agrees_with_its_definition():
    affinity = torch.rand(3, 5, 5, dtype=torch.float64)
    affinity = affinity + affinity.transpose(1, 2)
    splits = bipartitions(5)
    costs = normalized_cut(affinity, splits)
    for video, split in itertools.product(range(3), range(len(splits))):
        expected = ncut_in_numpy(affinity[video].numpy(), splits[split].numpy())
        assert costs[video, split].item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("regions", [3, 4, 5])
def test_never_a_worse_cut_than_spectral_clustering(regions):
    masks, features = random_case(10 + regions, images=25, regions=regions)
    ours = merge_regions(masks, features).numpy()
    agreements = 0
    for image in range(len(masks)):
        affinity = affinity_in_numpy(masks[image].double().numpy(), features[image].double().numpy())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = SpectralClustering(2, affinity="precomputed", random_state=0).fit_predict(affinity)
        agreements += same_partition(ours[image], theirs)
        assert ncut_in_numpy(affinity, ours[image]) <= ncut_in_numpy(affinity, theirs) + 1e-7
    assert agreements >= 15


@pytest.mark.parametrize("regions", [3, 4, 5])
def test_scikit_learns_labels_are_its_own_with_region_0_on_side_0(regions):
    masks, features = random_case(20 + regions, images=8, regions=regions)
    labels = merge_regions(masks, features, method="scikit_learn").numpy()
    assert (labels[:, 0] == 0).all()
    for image in range(len(masks)):
        affinity = affinity_in_numpy(masks[image].double().numpy(), features[image].double().numpy())
        theirs = SpectralClustering(2, affinity="precomputed", random_state=0).fit_predict(affinity)
        assert same_partition(labels[image], theirs)


def test_scikit_learn_agrees_with_the_exact_cut_where_it_is_clear():
    """Two groups of regions, alike within and orthogonal between."""
    members = torch.tensor([0, 1, 1, 0, 1])
    masks = torch.eye(5).repeat_interleave(4, 1).view(1, 5, 1, 20).expand(3, 5, 6, 20)
    features = torch.einsum("bkhw,kc->bchw", masks, torch.eye(2)[members] + 0.05)
    for method in ("exact", "scikit_learn"):
        assert merge_regions(masks, features, method=method).tolist() == [members.tolist()] * 3


def test_scikit_learn_gives_two_regions_and_videos_what_the_exact_cut_gives():
    masks, features = random_case(30, images=4, regions=2)
    assert merge_regions(masks, features, method="scikit_learn").tolist() == [[0, 1]] * 4
    masks, features = random_case(31, images=4)
    labels = merge_regions(masks, features, torch.zeros(4, dtype=torch.int64), "scikit_learn")
    assert (labels == labels[0]).all()


@pytest.mark.parametrize("regions", [3, 4, 6])
def test_permuting_the_regions_permutes_the_labels(regions):
    masks, features = random_case(3, images=10, regions=regions)
    features = features.abs()  # no two affinities at the floor, so no ties
    order = torch.randperm(regions, generator=torch.Generator().manual_seed(0))
    labels, permuted = merge_regions(masks, features)[:, order], merge_regions(masks[:, order], features)
    assert all(same_partition(a, b) for a, b in zip(labels.numpy(), permuted.numpy(), strict=True))


def test_each_image_of_a_batch_is_decided_for_itself():
    masks, features = random_case(4, images=5)
    alone = torch.cat([merge_regions(masks[i : i + 1], features[i : i + 1]) for i in range(5)])
    assert torch.equal(merge_regions(masks, features), alone)


def test_two_regions_are_the_identity():
    masks, features = random_case(5, regions=2)
    assert merge_regions(masks, features).tolist() == [[0, 1]] * 6
    masks[:, 1] = 0
    assert merge_regions(masks, features).tolist() == [[0, 1]] * 6


@pytest.mark.parametrize("empty", [0, 2, 3])
def test_an_empty_region_does_not_change_the_others_cut(empty):
    masks, features = random_case(6, images=12, regions=3)
    without = merge_regions(masks, features).numpy()
    wider = torch.cat([masks[:, :empty], torch.zeros(12, 1, 12, 20), masks[:, empty:]], 1)
    labels = merge_regions(wider, features)
    others = labels[:, [k for k in range(4) if k != empty]].numpy()
    assert all(same_partition(a, b) for a, b in zip(without, others, strict=True))


def test_one_region_that_holds_everything_still_gives_labels():
    masks = torch.zeros(2, 4, 12, 20)
    masks[:, 1] = 1
    labels = merge_regions(masks, torch.randn(2, 5, 6, 10))
    assert labels.shape == (2, 4)
    assert set(labels.unique().tolist()) <= {0, 1}


def test_equal_affinities_always_take_the_first_bipartition():
    masks = torch.full((3, 4, 8, 8), 0.25)
    labels = merge_regions(masks, torch.ones(3, 5, 8, 8))
    assert (labels == labels[0]).all()
    assert labels[0].tolist() in bipartitions(4).tolist()


def test_frames_of_a_video_share_the_labels_of_their_pooled_descriptors():
    masks, features = random_case(7, images=8)
    videos = torch.tensor([5, 2, 5, 2, 5, 9, 9, 9])
    labels = merge_regions(masks, features, videos)
    for video in (2, 5, 9):
        member = videos == video
        assert (labels[member] == labels[member][0]).all()
        side_by_side_masks = torch.cat(list(masks[member]), -1)[None]
        side_by_side_features = torch.cat(list(features[member]), -1)[None]
        assert torch.equal(labels[member][0], merge_regions(side_by_side_masks, side_by_side_features)[0])


def test_masks_and_features_may_have_different_sizes():
    masks, features = random_case(8)
    finer = torch.nn.functional.interpolate(masks, scale_factor=3, mode="nearest")
    assert torch.equal(merge_regions(finer, features), merge_regions(masks, features))


def box_masks(*boxes, height=20, width=30):
    """Two regions for each box (top, bottom, left, right): region 1 inside the box, region 0 outside."""
    masks = torch.zeros(len(boxes), 2, height, width)
    for mask, (top, bottom, left, right) in zip(masks, boxes, strict=True):
        mask[1, top:bottom, left:right] = 1
        mask[0] = 1 - mask[1]
    return masks


IDENTITY = torch.tensor([[0, 1]])


def test_convention_the_object_is_away_from_the_border():
    masks = box_masks((5, 15, 8, 20))
    assert choose_foreground(masks, IDENTITY).tolist() == [1]
    assert choose_foreground(masks.flip(1), IDENTITY).tolist() == [0]
    assert choose_foreground(masks, 1 - IDENTITY).tolist() == [0]


def test_convention_the_strips_are_two_pixels_wide_on_all_four_sides():
    assert choose_foreground(box_masks((2, 18, 2, 28)), IDENTITY).tolist() == [1]
    ring = box_masks((2, 18, 2, 28)).flip(1)
    assert choose_foreground(ring, IDENTITY).tolist() == [0]


@pytest.mark.parametrize("columns", [(0, 8), (0, 12)])
def test_convention_a_side_covered_by_more_than_three_tenths_counts_fully(columns):
    """An object standing on the lower side: 8 of 30 px give 0.27, 12 of 30 px count as 1."""
    masks = box_masks((10, 20, *columns))
    masks[:, :, :, 0] = torch.tensor([1.0, 0.0])[:, None]
    assert choose_foreground(masks, IDENTITY).tolist() == [1]


def test_tied_sides_are_decided_by_the_plain_strip_means():
    """Both labels cover each side by more than 0.3; the one that covers more of them is the background."""
    masks = torch.zeros(1, 2, 20, 30)
    masks[:, 0], masks[:, 1] = 0.6, 0.4
    assert choose_foreground(masks, IDENTITY).tolist() == [1]
    assert choose_foreground(masks.flip(1), IDENTITY).tolist() == [0]


def test_tied_strips_are_decided_by_the_area_and_then_by_label_zero():
    masks = torch.full((1, 2, 20, 30), 0.5)
    assert choose_foreground(masks, IDENTITY).tolist() == [1]
    masks[:, 0, 8:12, 8:12], masks[:, 1, 8:12, 8:12] = 0.1, 0.9
    assert choose_foreground(masks, IDENTITY).tolist() == [0]


def test_the_frames_of_a_video_share_one_choice():
    """Most frames show the object inside; in the last it fills the view and alone would be background."""
    masks = box_masks((5, 15, 8, 20), (5, 15, 8, 20), (5, 15, 8, 20), (0, 20, 0, 29))
    labels = IDENTITY.expand(4, 2)
    assert choose_foreground(masks, labels).tolist() == [1, 1, 1, 0]
    assert choose_foreground(masks, labels, torch.tensor([3, 3, 3, 3])).tolist() == [1, 1, 1, 1]
    assert choose_foreground(masks, labels, torch.tensor([3, 3, 3, 4])).tolist() == [1, 1, 1, 0]


def test_the_objects_probability_is_the_sum_of_its_regions():
    masks, _ = random_case(9, images=3)
    labels = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 1], [0, 1, 0, 1]])
    object_is = torch.tensor([1, 0, 1])
    probability = foreground_probability(masks, labels, object_is)
    expected = torch.stack([masks[0, [1, 2]].sum(0), masks[1, :3].sum(0), masks[2, [1, 3]].sum(0)])
    torch.testing.assert_close(probability, expected)
    rest = foreground_probability(masks, labels, 1 - object_is)
    torch.testing.assert_close(probability + rest, torch.ones_like(rest))


def test_choices_do_not_depend_on_how_a_video_is_numbered():
    masks, features = random_case(11, images=6)
    left, right = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([70, 70, 3, 3, 51, 51])
    labels = merge_regions(masks, features, left)
    assert torch.equal(labels, merge_regions(masks, features, right))
    assert torch.equal(choose_foreground(masks, labels, left), choose_foreground(masks, labels, right))


def two_grounds_and_a_disc(shift: int = 0) -> torch.Tensor:
    """Near and far ground, each at the border, and an object that is not: [1, 3, 24, 32], one-hot."""
    owner = torch.zeros(24, 32, dtype=torch.int64)
    owner[14:] = 1
    owner[9:19, 8 + shift : 18 + shift] = 2
    return F.one_hot(owner).permute(2, 0, 1)[None].float()


def test_without_appearance_what_shuns_the_border_is_the_object() -> None:
    masks, cut = two_grounds_and_a_disc(), torch.tensor([[0, 1, 1]])
    labels = merge_by_border(masks, cut)
    assert labels.tolist() == [[0, 0, 1]]
    assert choose_foreground(masks, labels).tolist() == [1]
    twice = merge_by_border(masks.repeat(1, 2, 1, 1) / 2, cut.repeat(1, 2))  # an object in two halves
    assert twice.tolist() == [[0, 0, 1, 0, 0, 1]]


def test_where_no_region_shuns_the_border_the_cut_decides() -> None:
    cut = torch.tensor([[0, 1, 1]])
    masks = two_grounds_and_a_disc()
    masks[:, 0] += masks[:, 2]
    masks[:, 2] = 0  # an empty region is no object, though it is not at the border
    assert torch.equal(merge_by_border(masks, cut), cut)


def test_the_border_decides_once_for_a_video() -> None:
    """An object that leaves the image in one frame is still the object there."""
    masks = torch.cat([two_grounds_and_a_disc(shift) for shift in (0, 3, 14)])
    assert merge_by_border(masks[2:], torch.zeros(1, 3, dtype=torch.int64)).sum() == 0
    labels = merge_by_border(masks, torch.zeros(3, 3, dtype=torch.int64), torch.tensor([7, 7, 7]))
    assert labels.tolist() == [[0, 0, 1]] * 3
