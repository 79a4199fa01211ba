"""A trained segmenter at work: a model folder loaded, regions of images, and which of them are the object."""

import hashlib
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from gwm_model import choose_foreground, load_segmenter, merge_regions
from gwm_model.backbone import Backbone, load_backbone
from gwm_model.config import MergeConfig, MergeMethod, RefineConfig
from gwm_model.refine import guided_upsample
from gwm_model.segmenter import Segmenter
from pipeline import storage
from pipeline.errors import GwmError, UnitError
from pipeline.images import Image
from pipeline.model_card import ModelCard


def open_segmenter(url: str, device: str) -> tuple[Segmenter, str]:
    """The segmenter of a model folder and the SHA-256 of its files; GwmError if there is none that fits."""
    with tempfile.TemporaryDirectory(prefix="gwm-") as temporary:
        folder = storage.fetch_folder(url, Path(temporary))
        try:
            segmenter = load_segmenter(folder, device=device)
        except (ValueError, OSError) as error:
            raise GwmError(f"model={url} cannot be used: {error}") from error
        return segmenter, _sha256(folder)


def read_model_card(url: str) -> ModelCard:
    """The card of a model folder, after loading it once; GwmError if there is none or it does not fit."""
    segmenter, sha256 = open_segmenter(url, "cpu")
    config = segmenter.config
    return ModelCard(
        sha256=sha256, height_px=config.height_px, width_px=config.width_px, num_masks=config.num_masks
    )


class RegionModel:
    """Regions of images and features to merge them by, batch by batch on one device."""

    def __init__(self, url: str, merge: MergeConfig, *, batch_size: int, device: str) -> None:
        self._segmenter, _ = open_segmenter(url, device)
        self._merge = merge
        self._merger = _open_merger(merge, device)
        self._batch_size = batch_size
        self._device = device

    @torch.inference_mode()
    def regions(
        self, images: UInt8[Tensor, "B 3 H W"]
    ) -> tuple[Float[Tensor, "B K h w"], Float[Tensor, "B C i j"]]:
        """Region probabilities and appearance features; UnitError if the network's answer is not finite."""
        masks, features = [], []
        for batch in torch.split(images, self._batch_size):
            logits, appearance = self._segmenter.segment(batch.to(self._device))
            if not torch.isfinite(logits).all():
                raise UnitError("the segmenter returned values that are not finite")
            masks.append(logits.softmax(1))
            features.append(
                appearance
                if self._merger is None
                else _appearance(self._merger, batch.to(self._device), self._merge.height_px)
            )
        return torch.cat(masks), torch.cat(features)


def decide(
    masks: Float[Tensor, "B K h w"],
    features: Float[Tensor, "B C i j"],
    *,
    is_video: bool,
    method: MergeMethod = "exact",
) -> tuple[Int64[Tensor, "B K"], Int64[Tensor, " B"]]:
    """Labels of the regions and the object's label: one decision for a video, else one for each image."""
    video_ids = torch.zeros(len(masks), dtype=torch.int64, device=masks.device) if is_video else None
    labels = merge_regions(masks, features, video_ids, method)
    return labels, choose_foreground(masks, labels, video_ids)


def upsample(probabilities: Float[Tensor, "C h w"], height_px: int, width_px: int) -> Float[Tensor, "C H W"]:
    """Probabilities at another size, bilinear between pixel centres."""
    size = (height_px, width_px)
    return F.interpolate(probabilities[None], size=size, mode="bilinear", align_corners=False)[0]


def at_source(
    probabilities: Float[Tensor, "C h w"],
    height_px: int,
    width_px: int,
    ground: Image | None,
    refine: RefineConfig,
) -> Float[Tensor, "C H W"]:
    """Probabilities at their source's size; refined along the edges of `ground`, a picture of the source, if given."""
    if ground is not None:
        picture = torch.from_numpy(ground.transpose(2, 0, 1).copy()).to(probabilities.device)
        probabilities = guided_upsample(probabilities[None], picture[None].float() / 255, refine)[0]
    return upsample(probabilities, height_px, width_px)


def _open_merger(merge: MergeConfig, device: str) -> Backbone | None:
    if merge.features == "segmenter":
        return None
    config = merge.backbone
    try:
        with storage.local_weights(config.weights) as path:
            return load_backbone(replace(config, weights=str(path))).to(device)
    except (ValueError, OSError) as error:
        raise GwmError(f"merge.backbone cannot be used: {error}") from error


def _appearance(
    merger: Backbone, images: UInt8[Tensor, "B 3 H W"], height_px: int
) -> Float[Tensor, "B C i j"]:
    """The deepest feature map of a backbone, for images enlarged to the height, and to whole patches."""
    patch = int(merger.patch_px) if merger.is_transformer else 32
    scale = max(1.0, height_px / images.shape[2])
    size = [max(1, round(side * scale / patch)) * patch for side in images.shape[2:]]
    pixels = F.interpolate(images.float() / 255, size=size, mode="bilinear", antialias=True)
    deepest: Tensor = merger(pixels)[-1]
    return deepest.float()


def _sha256(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(folder.glob("segmenter.*")):
        digest.update(file.name.encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
