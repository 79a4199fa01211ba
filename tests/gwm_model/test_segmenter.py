import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gwm_model.backbone import load_backbone
from gwm_model.checkpoint import load_segmenter, save_segmenter
from gwm_model.config import BackboneConfig, ObjectiveConfig, OptimizerConfig, SegmenterConfig
from gwm_model.segmenter import build_segmenter
from gwm_model.training import SegmenterLoss, TrainBatch, learning_rate_at, make_optimizer, train_step

TINY_VIT = BackboneConfig(name="vit_tiny_patch16_224", weights="none", blocks=(1, 2))
UNET = SegmenterConfig(architecture="unet", num_masks=3, height_px=64, width_px=96, hidden_channels=8)
MASKFORMER = SegmenterConfig(
    num_masks=3, height_px=64, width_px=96, backbone=TINY_VIT, hidden_channels=16, decoder_layers=2
)


def images(count: int = 2, height: int = 50, width: int = 70) -> torch.Tensor:
    return torch.randint(0, 255, (count, 3, height, width), dtype=torch.uint8)


@pytest.mark.parametrize(("config", "size"), [(UNET, (64, 96)), (MASKFORMER, (16, 24))])
def test_logits_and_features_of_images_of_any_size(config: SegmenterConfig, size: tuple[int, int]) -> None:
    segmenter = build_segmenter(config).eval()
    logits, features = segmenter.segment(images())
    assert logits.shape == (2, 3, *size)
    assert features.shape[0] == 2
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("config", [UNET, MASKFORMER])
def test_uint8_and_float_images_mean_the_same(config: SegmenterConfig) -> None:
    segmenter, batch = build_segmenter(config).eval(), images()
    with torch.no_grad():
        assert torch.allclose(segmenter(batch), segmenter(batch.float() / 255), atol=1e-5)


@pytest.mark.parametrize("config", [UNET, MASKFORMER])
def test_segment_and_forward_agree(config: SegmenterConfig) -> None:
    segmenter, batch = build_segmenter(config).eval(), images()
    with torch.no_grad():
        assert torch.allclose(segmenter(batch), segmenter.segment(batch)[0], atol=1e-6)


@pytest.mark.parametrize("config", [UNET, MASKFORMER])
def test_several_scales_are_the_mean_of_their_logits_on_the_largest_grid(config: SegmenterConfig) -> None:
    segmenter, batch = build_segmenter(config).eval(), images()
    assert segmenter.input_size(1.4) == (96, 128)  # 89.6 and 134.4 in whole patches of 16
    larger = build_segmenter(replace(config, height_px=96, width_px=128)).eval()
    larger.load_state_dict(segmenter.state_dict())
    with torch.no_grad():
        (small, features), (large, _) = segmenter.segment(batch), larger.segment(batch)
        logits, kept = segmenter.segment(batch, (1.0, 1.4))
    enlarged = torch.nn.functional.interpolate(small, large.shape[2:], mode="bilinear")
    torch.testing.assert_close(logits, (enlarged + large) / 2)
    assert torch.equal(kept, features)


@pytest.mark.parametrize("config", [UNET, MASKFORMER])
def test_saved_and_loaded_segmenters_agree_bit_for_bit(config: SegmenterConfig, tmp_path: Path) -> None:
    segmenter, batch = build_segmenter(config).eval(), images()
    save_segmenter(segmenter, tmp_path)
    loaded = load_segmenter(tmp_path)
    assert loaded.config == config
    with torch.no_grad():
        assert torch.equal(loaded(batch), segmenter(batch))


def test_a_damaged_checkpoint_is_one_clear_error(tmp_path: Path) -> None:
    save_segmenter(build_segmenter(UNET), tmp_path)
    weights = load_file(tmp_path / "segmenter.safetensors")
    weights.pop("head.output.bias")
    save_file(weights, tmp_path / "segmenter.safetensors")
    with pytest.raises(ValueError, match="does not fit"):
        load_segmenter(tmp_path)
    (tmp_path / "segmenter.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ValueError, match="does not fit"):
        load_segmenter(tmp_path)
    (tmp_path / "segmenter.json").write_text(json.dumps({"format_version": 99, "segmenter": {}}))
    with pytest.raises(ValueError, match="does not describe a segmenter"):
        load_segmenter(tmp_path)
    with pytest.raises(ValueError, match="holds no segmenter"):
        load_segmenter(tmp_path / "elsewhere")


def test_backbone_maps_of_blocks_tokens_and_keys() -> None:
    pixels = torch.rand(2, 3, 64, 96)
    tokens = load_backbone(TINY_VIT)(pixels)
    keys = load_backbone(replace(TINY_VIT, features="keys"))(pixels)
    assert [tuple(block.shape) for block in tokens] == [(2, 192, 4, 6)] * 2
    assert [tuple(block.shape) for block in keys] == [(2, 192, 4, 6)] * 2


def test_tokens_are_laid_out_row_by_row() -> None:
    backbone = load_backbone(replace(TINY_VIT, blocks=(0,)))
    for block in backbone.network.blocks:
        block.register_forward_hook(lambda _m, inputs, _o: inputs[0])  # the block passes its input
    backbone.network.norm = torch.nn.Identity()
    pixels = torch.full((1, 3, 64, 96), 0.2)
    changed = pixels.clone()
    changed[:, :, 16:32, 80:96] = 0.9  # the patch in row 1, column 5
    difference = (backbone(pixels)[0] - backbone(changed)[0]).abs().sum(1)[0]
    assert torch.nonzero(difference > 1e-3).tolist() == [[1, 5]]


def test_patch_stride_gives_a_finer_map_of_the_same_weights() -> None:
    pixels = torch.rand(1, 3, 64, 96)
    coarse = load_backbone(TINY_VIT)
    fine = load_backbone(replace(TINY_VIT, patch_stride_px=8))
    fine.load_state_dict(coarse.state_dict())
    assert fine(pixels)[0].shape == (1, 192, 7, 11)
    embed = coarse.network.patch_embed.proj(pixels), fine.network.patch_embed.proj(pixels)
    assert torch.allclose(embed[1][:, :, ::2, ::2], embed[0], atol=1e-5)


def test_a_frozen_backbone_has_no_gradient_and_a_trained_one_has() -> None:
    for frozen in (True, False):
        segmenter = build_segmenter(replace(MASKFORMER, backbone=replace(TINY_VIT, frozen=frozen))).train()
        segmenter(images()).sum().backward()
        assert segmenter.backbone is not None
        gradients = [p.grad is not None for p in segmenter.backbone.network.blocks.parameters()]
        assert any(gradients) is not frozen
        assert segmenter.backbone.training is not frozen


def test_a_convolutional_backbone_gives_maps_of_several_sizes() -> None:
    backbone = load_backbone(BackboneConfig(name="resnet18", weights="none", blocks=(1, 2, 3)))
    maps = backbone(torch.rand(1, 3, 64, 96))
    assert [tuple(each.shape) for each in maps] == [(1, 64, 16, 24), (1, 128, 8, 12), (1, 256, 4, 6)]
    segmenter = build_segmenter(replace(MASKFORMER, backbone=backbone.config))
    assert segmenter(images()).shape == (2, 3, 64, 96)


def test_wrong_weights_and_blocks_are_clear_errors(tmp_path: Path) -> None:
    save_file({"foreign": torch.zeros(3)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match="does not fit the backbone"):
        load_backbone(replace(TINY_VIT, weights=str(tmp_path / "foreign.safetensors")))
    (tmp_path / "text.pth").write_text("not a checkpoint")
    with pytest.raises(ValueError, match="is no checkpoint"):
        load_backbone(replace(TINY_VIT, weights=str(tmp_path / "text.pth")))
    with pytest.raises(ValueError, match="timm has no backbone"):
        load_backbone(replace(TINY_VIT, name="vit_of_nobody"))
    with pytest.raises(ValueError, match="No such weights file"):
        load_backbone(replace(TINY_VIT, weights=str(tmp_path / "missing.pth")))
    with pytest.raises(ValueError, match="has blocks 0 to 11"):
        load_backbone(replace(TINY_VIT, blocks=(3, 12)))


def test_dinov2_weights_load(test_data: Path) -> None:
    weights = test_data / "weights" / "dinov2_vits14_fp16.safetensors"
    backbone = load_backbone(BackboneConfig(weights=str(weights)))
    maps = backbone(torch.rand(1, 3, 56, 84))
    assert [tuple(each.shape) for each in maps] == [(1, 384, 4, 6)] * 2
    assert torch.equal(backbone.network.cls_token.half(), load_file(weights)["cls_token"].half())


def two_colours(count: int = 4) -> TrainBatch:
    """Red squares that move against a blue background: colour tells motion."""
    pixels, flow = torch.zeros(count, 3, 64, 96), torch.zeros(count, 2, 64, 96)
    pixels[:, 2] = 0.8
    for number in range(count):
        rows, columns = slice(8 + 8 * number, 32 + 8 * number), slice(10 + 12 * number, 40 + 12 * number)
        pixels[number, :, rows, columns] = torch.tensor([0.9, 0.1, 0.1]).view(3, 1, 1)
        flow[number, 0, rows, columns] = 6.0
    return TrainBatch(images=pixels, features=[], flow=flow)


def test_training_separates_what_moves() -> None:
    torch.manual_seed(0)
    module = SegmenterLoss(build_segmenter(replace(UNET, num_masks=2)), ObjectiveConfig())
    optimizer, batch = make_optimizer(module, OptimizerConfig()), two_colours()
    for _ in range(60):
        train_step(module, optimizer, batch, learning_rate=3e-3, max_gradient_norm=1.0)
    regions = module.segmenter(batch.images).argmax(1)
    inside = batch.flow[:, 0] > 0
    agreement = ((regions == 1) == inside).float().mean()
    assert max(agreement, 1 - agreement) > 0.97


def test_a_batch_that_is_not_finite_changes_nothing() -> None:
    module = SegmenterLoss(build_segmenter(UNET), ObjectiveConfig())
    optimizer, batch = make_optimizer(module, OptimizerConfig()), two_colours()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    batch.flow[0, 0, 0, 0] = float("nan")
    values = train_step(module, optimizer, batch, learning_rate=1e-3, max_gradient_norm=1.0)
    assert values["gradient_norm"] != values["gradient_norm"]
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name]), name


class InfiniteLoss(torch.nn.Module):
    """A loss that is not finite, with a gradient that would be."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))

    def forward(self, batch: TrainBatch) -> torch.Tensor:
        return self.weight.sum() + batch.images.sum() * float("inf")


def test_a_loss_that_is_not_finite_has_no_gradient_either() -> None:
    """So with several ranks all of them see it: their gradients are averaged, their losses are not."""
    module = InfiniteLoss()
    optimizer = make_optimizer(module, OptimizerConfig())
    values = train_step(module, optimizer, two_colours(), learning_rate=1e-3, max_gradient_norm=1.0)
    assert values["gradient_norm"] != values["gradient_norm"]
    assert torch.equal(module.weight, torch.ones(3))


def test_features_given_train_as_features_computed() -> None:
    module = SegmenterLoss(build_segmenter(replace(MASKFORMER, num_masks=2)), ObjectiveConfig()).eval()
    batch = two_colours()
    flow = torch.nn.functional.interpolate(batch.flow, (16, 24), mode="area")
    features = module.segmenter.features(batch.images)
    losses = [module(TrainBatch(batch.images, given, flow)).item() for given in ([], features)]
    assert losses[0] == losses[1]


def test_learning_rate_warms_up_and_decays_to_zero() -> None:
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=10, decay_fraction=0.5)
    rates = [learning_rate_at(step, 100, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:50] == [1.0] * 41
    assert rates[75] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(0.02)


def test_poly_is_warm_up_times_a_power_of_the_steps_left() -> None:
    """Closed form of detectron2's WarmupPolyLR with the values of the published code."""
    config = OptimizerConfig(learning_rate=1.5e-4, schedule="poly", warmup_steps=1500, poly_steps=160_000)
    rates = {step: learning_rate_at(step, 20_000, config) for step in (0, 750, 1500, 10_000, 19_999)}
    assert rates[0] == pytest.approx(1.5e-4 * 1e-6)
    assert rates[750] == pytest.approx(1.5e-4 * (0.5 + 0.5e-6) * (1 - 750 / 160_000) ** 0.9)
    assert rates[1500] == pytest.approx(1.5e-4 * (1 - 1500 / 160_000) ** 0.9)
    assert rates[19_999] == pytest.approx(0.887 * 1.5e-4, rel=1e-3)
    assert learning_rate_at(200_000, 200_001, config) == 0.0


def test_norms_biases_and_queries_are_not_decayed() -> None:
    module = SegmenterLoss(build_segmenter(MASKFORMER), ObjectiveConfig())
    decayed, plain = make_optimizer(module, OptimizerConfig(weight_decay=0.1)).param_groups
    assert decayed["weight_decay"] == 0.1
    assert plain["weight_decay"] == 0.0
    assert all(parameter.ndim > 1 for parameter in decayed["params"])
    assert any(parameter is module.segmenter.head.query_decoder.queries for parameter in plain["params"])
    frozen = {id(parameter) for parameter in module.segmenter.backbone.parameters()}
    assert not frozen & {id(parameter) for group in (decayed, plain) for parameter in group["params"]}
