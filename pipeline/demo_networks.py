"""Which pretrained networks the demo uses: those at hand, those that a quick download brings, or none."""

import hashlib
import http.client
import os
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import timm
import torch
from torchvision.models import get_model_weights

from gwm_model.raft_weights import RaftName, WeightsError, load_raft_network
from pipeline.errors import GwmError

RAFT_VARIABLE = "GWM_RAFT_WEIGHTS"
BACKBONE_VARIABLE = "GWM_BACKBONE_WEIGHTS"
BACKBONE = "vit_small_patch14_dinov2.lvd142m"
CONNECT_TIMEOUT_S = 5.0
DOWNLOAD_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoNetworks:
    """The choice, with the reasons that the report gives."""

    estimator: str
    """raft_small, raft_large or dis."""
    estimator_weights: str
    estimator_reason: str
    backbone_weights: str | None
    """A checkpoint of DINOv2 ViT-S/14; none means a U-Net trained from scratch."""
    backbone_reason: str


def find_networks() -> DemoNetworks:
    """RAFT and DINOv2 where their weights can be had, otherwise DIS flow and a U-Net from scratch."""
    estimator, estimator_weights, estimator_reason = _find_estimator()
    backbone_weights, backbone_reason = _find_backbone()
    return DemoNetworks(
        estimator=estimator,
        estimator_weights=estimator_weights,
        estimator_reason=estimator_reason,
        backbone_weights=backbone_weights,
        backbone_reason=backbone_reason,
    )


def _find_estimator() -> tuple[str, str, str]:
    """Name, weights and reason."""
    given = os.environ.get(RAFT_VARIABLE)
    if given:
        return _raft_name(given), given, f"{RAFT_VARIABLE} names its weights"
    names: tuple[RaftName, RaftName] = ("raft_small", "raft_large")
    for name in names:
        path = _hub_path(_raft_url(name))
        if path.is_file():
            return name, str(path), "its weights lie in torch's cache"
    url = _raft_url("raft_small")
    if _downloaded(url, _hub_path(url), sha256_start=Path(url).stem.rpartition("-")[2]):
        return "raft_small", str(_hub_path(url)), "its weights were downloaded"
    return "dis", "pretrained", "it needs no weights, and RAFT's are neither at hand nor to be had quickly"


def _find_backbone() -> tuple[str | None, str]:
    """Weights and reason."""
    given = os.environ.get(BACKBONE_VARIABLE)
    if given:
        if not Path(given).is_file():
            raise GwmError(f"{BACKBONE_VARIABLE} names no file: {given}")
        return given, f"{BACKBONE_VARIABLE} names its weights"
    repository = timm.get_pretrained_cfg(BACKBONE).hf_hub_id
    cached = huggingface_hub.try_to_load_from_cache(repository, "model.safetensors")
    if isinstance(cached, str):
        return cached, "its weights lie in Hugging Face's cache"
    path = _hub_path(f"{BACKBONE}.safetensors")
    if path.is_file():
        return str(path), "its weights lie in torch's cache"
    if _downloaded(huggingface_hub.hf_hub_url(repository, "model.safetensors"), path):
        return str(path), "its weights were downloaded"
    return None, "DINOv2's weights are neither at hand nor to be had quickly"


def _raft_name(path: str) -> RaftName:
    """The network that a checkpoint fits."""
    try:
        load_raft_network("raft_small", path)
    except WeightsError as error:
        try:
            load_raft_network("raft_large", path)
        except WeightsError:
            raise GwmError(f"{RAFT_VARIABLE}: {error}") from error
        return "raft_large"
    return "raft_small"


def _raft_url(name: RaftName) -> str:
    return str(get_model_weights(name)["DEFAULT"].url)


def _hub_path(url: str) -> Path:
    """Where torch keeps, or would keep, a downloaded checkpoint."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name


def _downloaded(url: str, path: Path, sha256_start: str = "") -> bool:
    """Whether the file could be fetched whole within a minute; without a network the answer comes at once."""
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        return False
    temporary = path.with_name(f".gwm-{os.getpid()}-{path.name}")
    deadline = time.monotonic() + DOWNLOAD_TIMEOUT_S
    digest = hashlib.sha256()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            urllib.request.urlopen(url, timeout=CONNECT_TIMEOUT_S) as response,  # noqa: S310
            temporary.open("wb") as file,
        ):
            expected = int(response.headers.get("Content-Length") or -1)
            while block := response.read(2**18):
                file.write(block)
                digest.update(block)
                if time.monotonic() > deadline:
                    return False
        if expected != temporary.stat().st_size or not digest.hexdigest().startswith(sha256_start):
            return False
        temporary.replace(path)
    except (OSError, http.client.HTTPException):
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True
