import io
from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from gwm_model import choose_foreground, merge_regions
from gwm_model.config import BackboneConfig, SegmenterConfig
from gwm_model.export import export_onnx, export_program
from gwm_model.merge import foreground_probability
from gwm_model.segmenter import Segmenter, build_segmenter

UNET = SegmenterConfig(architecture="unet", num_masks=3, height_px=32, width_px=48, hidden_channels=8)
MASKFORMER = SegmenterConfig(
    height_px=48,
    width_px=80,
    hidden_channels=16,
    decoder_layers=1,
    backbone=BackboneConfig(name="vit_tiny_patch16_224", weights="none", blocks=(0, 1)),
)
KEYS = replace(
    MASKFORMER, num_masks=4, image_skip=False, backbone=replace(MASKFORMER.backbone, features="keys")
)
TOLERANCE = 1e-5


def expected(segmenter: Segmenter, images: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        logits, features = segmenter.segment(images)
    masks = logits.softmax(1)
    labels = merge_regions(masks, features)
    return [masks, foreground_probability(masks, labels, choose_foreground(masks, labels))]


def images_of(config: SegmenterConfig, count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, config.height_px, config.width_px), dtype=torch.uint8)


@pytest.mark.parametrize("config", [UNET, MASKFORMER, KEYS], ids=["unet", "maskformer", "keys"])
def test_an_exported_program_computes_what_the_segmenter_computes(config: SegmenterConfig) -> None:
    segmenter = build_segmenter(config).eval()
    file = io.BytesIO()
    torch.export.save(export_program(segmenter), file)
    file.seek(0)
    program = torch.export.load(file).module()
    for count in (1, 5):
        images = images_of(config, count)
        for found, wanted in zip(program(images), expected(segmenter, images), strict=True):
            assert (found - wanted).abs().max() <= TOLERANCE


@pytest.mark.parametrize("config", [UNET, MASKFORMER], ids=["unet", "maskformer"])
def test_an_onnx_model_computes_what_the_segmenter_computes(config: SegmenterConfig) -> None:
    segmenter = build_segmenter(config).eval()
    session: Any = onnxruntime.InferenceSession(export_onnx(segmenter), providers=["CPUExecutionProvider"])
    assert [entry.name for entry in session.get_outputs()] == ["masks", "object"]
    for count in (1, 5):
        images = images_of(config, count)
        found = session.run(None, {"images": images.numpy()})
        for values, wanted in zip(found, expected(segmenter, images), strict=True):
            assert np.abs(values - wanted.numpy()).max() <= TOLERANCE
