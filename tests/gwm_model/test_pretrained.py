import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save

from gwm_model import Segmenter, save_segmenter
from gwm_model.config import SegmenterConfig
from gwm_model.segmenter import build_segmenter
from tests.hub_server import hub_server


@pytest.fixture
def segmenter() -> Segmenter:
    return build_segmenter(
        SegmenterConfig(architecture="unet", height_px=32, width_px=48, hidden_channels=8)
    ).eval()


def test_a_saved_segmenter_is_loaded_again(segmenter: Segmenter, tmp_path: Path) -> None:
    segmenter.save_pretrained(tmp_path / "model")
    loaded = Segmenter.from_pretrained(tmp_path / "model")
    images = torch.randint(0, 256, (2, 3, 40, 60), dtype=torch.uint8)
    assert torch.equal(loaded(images), segmenter(images))
    assert {path.name for path in (tmp_path / "model").iterdir()} == {
        "segmenter.json",
        "segmenter.safetensors",
    }


SUM_OF_WEIGHTS = """
import sys
from gwm_model import Segmenter
try:
    print(sum(float(p.double().sum()) for p in Segmenter.from_pretrained(sys.argv[1]).parameters()))
except ValueError as error:
    print(error)
"""

BACKBONE = """
from gwm_model.backbone import load_backbone
from gwm_model.config import BackboneConfig
try:
    backbone = load_backbone(BackboneConfig(name="vit_tiny_patch16_224", blocks=(1,)))
    print(float(backbone.network.cls_token.sum()))
except ValueError as error:
    print(error)
"""


def hub_python(code: str, *words: str, **environment: str) -> list[str]:
    """Lines that a fresh Python prints."""
    values = {**os.environ, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-c", code, *words], env=values, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def test_a_repository_is_fetched_once_and_then_read_offline(segmenter: Segmenter, tmp_path: Path) -> None:
    save_segmenter(segmenter, tmp_path / "model")
    files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    expected = str(sum(float(parameter.double().sum()) for parameter in segmenter.parameters()))
    home = {"HF_HOME": str(tmp_path / "hub")}
    with hub_server({"models/me/gwm": files | {"pytorch_model.bin": b"a pickle"}}) as (address, asked):
        assert hub_python(SUM_OF_WEIGHTS, "me/gwm", HF_ENDPOINT=address, **home) == [expected]
    assert not [path for path in asked if "pytorch_model" in path]
    assert hub_python(SUM_OF_WEIGHTS, "me/gwm", HF_HUB_OFFLINE="1", **home) == [expected]
    (sentence,) = hub_python(SUM_OF_WEIGHTS, "me/other", HF_HUB_OFFLINE="1", **home)
    assert sentence.startswith("me/other is no folder here, and no segmenter that the Hugging Face hub gives")


def test_backbone_weights_come_from_the_hub_then_from_its_cache_and_else_are_named(tmp_path: Path) -> None:
    network = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0)
    torch.nn.init.constant_(network.cls_token, 0.25)
    name = timm.get_pretrained_cfg("vit_tiny_patch16_224").hf_hub_id
    home = {"HF_HOME": str(tmp_path / "hub")}
    (sentence,) = hub_python(BACKBONE, HF_HUB_OFFLINE="1", **home)
    assert sentence.startswith(
        "The weights of vit_tiny_patch16_224 are not in the cache of the Hugging Face hub"
    )
    assert "offline mode is enabled" in sentence
    files = {"model.safetensors": save(network.state_dict())}
    with hub_server({f"models/{name}": files}) as (address, _):
        assert hub_python(BACKBONE, HF_ENDPOINT=address, **home) == ["48.0"]
    assert hub_python(BACKBONE, HF_HUB_OFFLINE="1", **home) == ["48.0"]
