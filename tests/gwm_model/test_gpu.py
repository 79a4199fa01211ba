"""The algorithm on a GPU gives what it gives on a CPU; skipped where there is none."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from gwm_model import (
    choose_foreground,
    fit_motion,
    load_flow_estimator,
    load_segmenter,
    merge_regions,
    motion_loss,
)
from gwm_model.checkpoint import save_segmenter
from gwm_model.config import (
    BackboneConfig,
    ObjectiveConfig,
    OptimizerConfig,
    RefineConfig,
    SegmenterConfig,
)
from gwm_model.export import export_program
from gwm_model.flow_refine import explain_flow
from gwm_model.merge import foreground_probability
from gwm_model.objective import appearance_cut, training_loss
from gwm_model.refine import guided_upsample
from gwm_model.segmenter import Segmenter, build_segmenter
from gwm_model.stray_parts import drop_stray_parts, find_stray_parts, remove_stray_parts
from gwm_model.training import SegmenterLoss, TrainBatch, make_optimizer, train_step

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

DATA = Path(os.environ.get("GWM_TEST_DATA", Path(__file__).parents[2] / "../shared/data"))
LARGE_WEIGHTS = DATA / "weights/raft-sintel-fp16.pth"
needs_weights = pytest.mark.skipif(not LARGE_WEIGHTS.is_file(), reason=f"{LARGE_WEIGHTS} not found")
MASKFORMER = SegmenterConfig(
    height_px=64,
    width_px=96,
    backbone=BackboneConfig(name="vit_tiny_patch16_224", weights="none", blocks=(1, 2)),
    hidden_channels=16,
    decoder_layers=2,
)
UNET = SegmenterConfig(architecture="unet", height_px=64, width_px=96, hidden_channels=8)
GAPS = (1, -1)


def smooth(*shape: int) -> torch.Tensor:
    """A random field that varies slowly along its last two axes."""
    coarse = torch.randn(*shape[:-2], 5, 7)
    return F.interpolate(coarse, shape[-2:], mode="bicubic")


def moving_texture(num_frames: int = 4, height: int = 128, width: int = 176) -> torch.Tensor:
    """Frames [T,3,H,W], uint8, of a texture that moves by 3 px to the right each."""
    wide = smooth(1, 3, height, width + 3 * num_frames).sub_(-3).mul_(42).clamp_(0, 255).byte()[0]
    fine = torch.randint(0, 40, wide.shape, dtype=torch.uint8)
    return torch.stack([(wide // 2 + fine)[..., 3 * t :][..., :width] for t in reversed(range(num_frames))])


@pytest.mark.parametrize("residual", ["squared", "root"])
@pytest.mark.parametrize("objective", ["expected", "composite"])
def test_objective_and_its_gradient(objective: str, residual: str) -> None:
    masks, flow = (smooth(3, 4, 60, 90) * 3).softmax(1), smooth(3, 2, 60, 90) * 5
    values = {}
    for device in ("cpu", "cuda"):
        given = masks.clone().to(device).requires_grad_()
        loss = motion_loss(given, flow.to(device), objective=objective, residual=residual)
        loss.backward()
        values[device] = loss.detach().cpu(), given.grad.cpu()
    torch.testing.assert_close(values["cuda"], values["cpu"], rtol=1e-4, atol=1e-6)


def test_fit_of_a_region_without_pixels() -> None:
    masks = torch.zeros(1, 2, 20, 30, device="cuda")
    masks[:, 0] = 1
    fitted = fit_motion(masks, smooth(1, 2, 20, 30).cuda())
    assert fitted.isfinite().all()
    assert not fitted[:, 1].any()


def test_configured_loss_and_appearance_cut() -> None:
    masks, flow, features = (
        (smooth(2, 2, 48, 72) * 3).softmax(1),
        smooth(2, 2, 48, 72) * 9,
        torch.randn(2, 9, 6, 9),
    )

    def losses(device: str) -> list[torch.Tensor]:
        moved = masks.to(device)
        return [
            training_loss(moved, flow.to(device), ObjectiveConfig()).cpu(),
            training_loss(moved, flow.to(device), ObjectiveConfig(kind="composite", residual="root")).cpu(),
            appearance_cut(moved, features.to(device)).cpu(),
        ]

    torch.testing.assert_close(losses("cuda"), losses("cpu"), rtol=1e-4, atol=1e-6)


def batch(device: str) -> TrainBatch:
    """Two frames whose left halves move otherwise than their right halves."""
    generator = torch.Generator().manual_seed(0)
    flow = torch.zeros(2, 2, 16, 24)
    flow[..., :12] = 4
    images = torch.rand(2, 3, 64, 96, generator=generator)
    return TrainBatch(images, [], flow).to(device)


def trained(config: SegmenterConfig, device: str, precision: str = "float32", steps: int = 6) -> list[float]:
    """Losses of some steps, without dropout, whose random numbers differ between devices."""
    torch.manual_seed(0)
    module = SegmenterLoss(build_segmenter(config), ObjectiveConfig()).to(device).eval()
    optimizer = make_optimizer(module, OptimizerConfig())
    taken = [
        train_step(
            module, optimizer, batch(device), learning_rate=1e-3, max_gradient_norm=1.0, precision=precision
        )
        for _ in range(steps)
    ]
    return [values["loss"] for values in taken]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("config", [MASKFORMER, UNET])
def test_training_steps(config: SegmenterConfig, precision: str) -> None:
    expected = trained(config, "cpu")
    assert expected[-1] < expected[0]
    np.testing.assert_allclose(trained(config, "cuda", precision), expected, rtol=0.05)


def test_a_bad_batch_changes_nothing() -> None:
    module = SegmenterLoss(build_segmenter(UNET), ObjectiveConfig()).cuda()
    before = [parameter.clone() for parameter in module.parameters()]
    bad = batch("cuda")
    bad.flow[0] = torch.nan
    values = train_step(
        module, make_optimizer(module, OptimizerConfig()), bad, learning_rate=1e-3, max_gradient_norm=1.0
    )
    assert not np.isfinite(values["gradient_norm"])
    assert all(torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True))


@torch.no_grad()
def test_regions_become_the_same_mask() -> None:
    regions, features = (smooth(6, 4, 36, 64) * 3).softmax(1), smooth(6, 32, 9, 16)
    images, flow = torch.rand(6, 3, 144, 256), smooth(12, 2, 36, 64).view(6, 2, 2, 36, 64) * 4
    has_flow = torch.rand(6, 2) > 0.3
    video_ids = torch.tensor([0, 0, 0, 1, 1, 1])

    def mask(device: str) -> torch.Tensor:
        given, appearance, ids = (tensor.to(device) for tensor in (regions, features, video_ids))
        labels = merge_regions(given, appearance, ids)
        side = choose_foreground(given, labels, ids)
        found = foreground_probability(given, labels, side)
        found = explain_flow(found, flow.to(device), has_flow.to(device))
        stray = find_stray_parts(found[:3], appearance[:3])
        assert stray is None or stray.stray_patches.device.type == device
        if stray is not None:
            found = torch.cat([remove_stray_parts(found[:3], appearance[:3], stray), found[3:]])
        found = drop_stray_parts(found, appearance)
        return guided_upsample(found[:, None], images.to(device), RefineConfig())[:, 0].cpu()

    on_cpu, on_gpu = mask("cpu"), mask("cuda")
    assert ((on_cpu > 0.5) != (on_gpu > 0.5)).float().mean() < 1e-3


@torch.no_grad()
@pytest.mark.parametrize("config", [MASKFORMER, UNET])
def test_a_segmenter_moves_between_devices(config: SegmenterConfig, tmp_path: Path) -> None:
    segmenter = build_segmenter(config).eval()
    save_segmenter(segmenter.cuda(), tmp_path)
    images = moving_texture(2)
    expected = load_segmenter(tmp_path)(images)
    torch.testing.assert_close(
        load_segmenter(tmp_path, device="cuda")(images.cuda()).cpu(), expected, rtol=0.02, atol=0.02
    )


@torch.no_grad()
def test_an_exported_program_runs_on_the_gpu() -> None:
    segmenter: Segmenter = build_segmenter(UNET).eval().cuda()
    images = moving_texture(3, 64, 96).cuda()
    masks, _ = export_program(segmenter).module()(images)
    torch.testing.assert_close(masks, segmenter(images).softmax(1), rtol=1e-3, atol=1e-3)


@needs_weights
@pytest.mark.parametrize(("precision", "mean_px"), [("float32", 0.01), ("bfloat16", 0.1)])
def test_flow(precision: str, mean_px: float) -> None:
    frames = moving_texture()
    expected = load_flow_estimator("raft_large", str(LARGE_WEIGHTS), 8)(frames, GAPS)
    found = load_flow_estimator("raft_large", str(LARGE_WEIGHTS), 8, "cuda", precision)(frames, GAPS)
    for gap in GAPS:
        there = ~expected[gap].isnan()
        assert torch.equal(there, ~found[gap].isnan())
        assert (found[gap] - expected[gap])[there].abs().mean() < mean_px
        assert abs(found[gap][there.nonzero()[:, 0].unique(), 0].mean() - 3 * gap) < 0.3


@needs_weights
def test_flow_in_less_memory_than_a_batch_takes() -> None:
    frames = moving_texture(12, 480, 640)
    estimator = load_flow_estimator("raft_large", str(LARGE_WEIGHTS), 2, "cuda", pairs_per_batch=16)
    expected = estimator(frames, GAPS)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(2.5e9 / total)
    try:
        found = estimator(frames, GAPS)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert estimator._pair_flow.pairs_per_batch < 16
    for gap in GAPS:
        assert (found[gap] - expected[gap]).nan_to_num().abs().mean() < 0.01
