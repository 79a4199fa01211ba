from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gwm_model import load_segmenter
from gwm_model.config import BackboneConfig, MergeConfig
from pipeline.config import EvaluateConfig, SegmentConfig
from pipeline.errors import GwmError
from pipeline.inference import (
    RegionModel,
    open_segmenter,
    read_model_card,
    upsample,
)
from pipeline.load_config import fingerprint
from pipeline.model_card import anchor_positions, pin, with_absolute_paths


@pytest.mark.parametrize(("frames", "anchors"), [(1, 16), (5, 16), (16, 16), (17, 16), (1000, 16), (7, 3)])
def test_anchors_are_spread_evenly_over_the_whole_video(frames, anchors):
    positions = anchor_positions(frames, anchors)
    assert len(positions) == len(set(positions)) == min(frames, anchors)
    assert positions == sorted(positions)
    share = frames / len(positions)
    assert all(
        number * share - 1 < position < (number + 1) * share for number, position in enumerate(positions)
    )


def test_the_card_tells_the_input_size_and_the_content(tiny_model):
    card = read_model_card(tiny_model)
    assert (card.height_px, card.width_px, card.num_masks) == (32, 48, 3)
    assert card == read_model_card(tiny_model)
    assert card == read_model_card(f"file://{tiny_model}")


def test_another_model_under_the_same_name_is_another_configuration(tiny_model, tmp_path):
    def changed(name: str, byte: int) -> str:
        folder = tmp_path / name
        folder.mkdir()
        for file in Path(tiny_model).iterdir():
            data = bytearray(file.read_bytes())
            if file.suffix == ".safetensors":
                data[-1] ^= byte
            (folder / file.name).write_bytes(data)
        return str(folder)

    config = SegmentConfig(images="in", model="model", output="out")
    prints = [
        fingerprint(pin(config, read_model_card(url)))
        for url in (tiny_model, changed("same", 0), changed("other", 1))
    ]
    assert prints[0] == prints[1] != prints[2]


def test_models_that_are_missing_or_wrong_are_one_sentence(tiny_model, tmp_path):
    with pytest.raises(GwmError, match="no folder"):
        open_segmenter(str(tmp_path / "nothing"), "cpu")
    (tmp_path / "empty").mkdir()
    with pytest.raises(GwmError, match=r"model=.*empty cannot be used: .*segmenter.json is missing"):
        open_segmenter(str(tmp_path / "empty"), "cpu")
    (tmp_path / "half").mkdir()
    for file in Path(tiny_model).iterdir():
        (tmp_path / "half" / file.name).write_bytes(file.read_bytes()[:200])
    with pytest.raises(GwmError, match=r"model=.*half cannot be used"):
        open_segmenter(str(tmp_path / "half"), "cpu")


def test_regions_are_probabilities_and_do_not_depend_on_the_batch(tiny_model):
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (7, 3, 32, 48), np.uint8))
    found = [
        RegionModel(tiny_model, MergeConfig(), batch_size=size, device="cpu").regions(images)
        for size in (3, 7)
    ]
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-5, rtol=0)
    regions, features = found[0]
    assert regions.shape[:2] == (7, 3)
    assert features.shape[0] == 7
    torch.testing.assert_close(regions.sum(1), torch.ones(7, *regions.shape[2:]))
    with torch.inference_mode():
        torch.testing.assert_close(regions[:1], load_segmenter(tiny_model)(images[:1]).softmax(1))


def test_images_are_loaded_at_the_largest_scale_and_seen_at_each(tiny_model):
    card = read_model_card(tiny_model, (1.0, 1.5))
    assert (card.height_px, card.width_px) == (48, 64)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (3, 3, 48, 64), np.uint8))
    model = RegionModel(tiny_model, MergeConfig(), batch_size=2, device="cpu", scales=(1.0, 1.5))
    regions, _ = model.regions(images)
    assert model.card == card
    with torch.inference_mode():
        logits, _ = load_segmenter(tiny_model).segment(images, (1.0, 1.5))
    torch.testing.assert_close(regions, logits.softmax(1))


@pytest.mark.parametrize("scales", [(), (0.0,), (1.0, 5.0)])
def test_scales_that_mean_nothing_are_refused(scales):
    with pytest.raises(ValueError, match=r"input_scales must be numbers above 0 and up to 4, not \["):
        SegmentConfig(images="i", model="m", output="o", input_scales=scales)


def test_regions_can_be_merged_by_another_backbones_features(tiny_model):
    backbone = BackboneConfig(name="vit_tiny_patch16_224", weights="none", blocks=(1,))
    merge = MergeConfig(features="backbone", backbone=backbone)
    images = torch.zeros(2, 3, 32, 48, dtype=torch.uint8)
    _, features = RegionModel(tiny_model, merge, batch_size=2, device="cpu").regions(images)
    assert features.shape == (2, 192, 16, 24)  # enlarged to 252 px, in patches of 16


def test_a_merge_backbone_that_is_missing_is_one_sentence(tiny_model):
    merge = MergeConfig(features="backbone", backbone=BackboneConfig(weights="/nowhere.safetensors"))
    with pytest.raises(GwmError, match=r"merge.backbone cannot be used"):
        RegionModel(tiny_model, merge, batch_size=2, device="cpu")


def test_a_video_is_one_decision_and_images_are_many(tiny_model):
    model = RegionModel(tiny_model, MergeConfig(), batch_size=4, device="cpu")
    generator = torch.Generator().manual_seed(0)
    masks = torch.softmax(3 * torch.randn(6, 4, 10, 12, generator=generator), 1)
    features = torch.randn(6, 5, 5, 6, generator=generator)
    rule = model.rule(masks, features)
    video = model.object_probability(masks, features, rule)
    assert torch.equal(video, masks[:, rule.labels == rule.object_is].sum(1))
    alone = model.object_probability(masks, features, None)
    decided = [model.rule(*image) for image in zip(masks.split(1), features.split(1), strict=True)]
    assert len({tuple(rule.labels.tolist()) for rule in decided}) > 1
    for image, own in enumerate(decided):
        assert torch.equal(alone[image], masks[image, own.labels == own.object_is].sum(0))


def swan_and_wave():
    """A swan on water with a wave that looks like water, both in region 1; frames [2, 2, 12, 16] and features."""
    masks = torch.zeros(2, 2, 12, 16)
    masks[:, 1, 3:9, 2:13] = 1.0
    masks[:, 0] = 1.0 - masks[:, 1]
    water, swan = torch.eye(4)[0], torch.eye(4)[1]
    features = water[:, None, None].expand(-1, 12, 16).repeat(2, 1, 1, 1)
    features[:, :, 3:9, 2:7] = (0.9 * water + 0.4 * torch.eye(4)[2])[:, None, None]
    features[:, :, 3:9, 7:13] = swan[:, None, None]
    return masks, features


def test_stray_parts_are_dropped_by_a_pretrained_backbones_features_alone(tiny_model):
    masks, features = swan_and_wave()
    backbone = BackboneConfig(name="vit_tiny_patch16_224", weights="none", blocks=(1,))
    with_backbone = MergeConfig(features="backbone", backbone=backbone)
    kept = {
        name: RegionModel(tiny_model, merge, batch_size=2, device="cpu").rule(masks, features)
        for name, merge in (
            ("dropped", with_backbone),
            ("asked not to", replace(with_backbone, drop_stray_parts=False)),
            ("its own U-Net", MergeConfig()),
        )
    }
    objects = {name: rule.probability(masks, features) > 0.5 for name, rule in kept.items()}
    assert objects["dropped"][:, 3:9, 8:13].all()
    assert not objects["dropped"][:, :, :6].any()
    assert torch.equal(objects["asked not to"], masks[:, 1] > 0.5)
    assert torch.equal(objects["its own U-Net"], masks[:, 1] > 0.5)


def test_a_network_that_knows_motion_alone_merges_by_the_border(tiny_model):
    """The features say that the object and the near ground belong together: they move alike."""
    owner = torch.zeros(12, 16, dtype=torch.int64)
    owner[8:], owner[3:9, 4:11] = 1, 2
    masks = torch.nn.functional.one_hot(owner).permute(2, 0, 1)[None].float().repeat(2, 1, 1, 1)
    features = torch.where(owner == 0, 1.0, 0.0)
    features = torch.stack([features, 1 - features]).repeat(2, 1, 1, 1)
    backbone = BackboneConfig(name="vit_tiny_patch16_224", weights="none", blocks=(1,))
    alone = RegionModel(tiny_model, MergeConfig(), batch_size=2, device="cpu")
    helped = RegionModel(
        tiny_model, MergeConfig(features="backbone", backbone=backbone), batch_size=2, device="cpu"
    )
    for model, wanted in ((alone, owner == 2), (helped, owner > 0)):
        rule = model.rule(masks, features)
        assert torch.equal(rule.probability(masks, features)[0] > 0.5, wanted)
        assert torch.equal(model.object_probability(masks, features, None)[0] > 0.5, wanted)
    assert alone.labels(masks, features).tolist() == [[0, 1, 1]] * 2  # protocols of the paper: the cut


def test_convention_upsampling_is_bilinear_between_pixel_centres():
    """The published code upsamples with align_corners False: the corner pixels of a doubled map keep their value."""
    small = torch.tensor([[[[0.0, 1.0]]]])
    assert upsample(small, 1, 4).flatten().tolist() == [0.0, 0.25, 0.75, 1.0]


def test_workers_get_absolute_paths_and_urls_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.safetensors").write_bytes(b"")
    merge = MergeConfig(backbone=BackboneConfig(weights="weights.safetensors"))
    config = with_absolute_paths(SegmentConfig(images="in", model="model", output="out", merge=merge))
    assert config.model == f"{tmp_path}/model"
    assert config.merge.backbone.weights == f"{tmp_path}/weights.safetensors"
    remote = SegmentConfig(images="in", model="s3://bucket/model", output="out")
    assert with_absolute_paths(remote) == remote
    scores = EvaluateConfig(dataset="images", data="d", masks="m", output="o")
    assert with_absolute_paths(scores) == scores


def test_units_are_named_alike_wherever_inputs_and_model_lie(tiny_model):
    card = read_model_card(tiny_model)
    prints = [
        pin(SegmentConfig(images=where, model=where, output=where, batch_size=size), card).unit_fingerprint()
        for where, size in (("a", 8), ("s3://b/c", 8), ("a", 4))
    ]
    assert prints[0] == prints[1] != prints[2]
