"""A trained segmenter at work: a model folder loaded, regions of images, and which of them are the object."""

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from gwm_model import choose_foreground, load_segmenter, merge_regions
from gwm_model.config import MergeConfig, RefineConfig
from gwm_model.crf import crf_upsample
from gwm_model.flow_refine import explain_flow
from gwm_model.merge import foreground_probability, merge_by_border
from gwm_model.refine import guided_upsample
from gwm_model.segmenter import Segmenter, scaled_size
from gwm_model.stray_parts import StrayParts, drop_stray_parts, find_stray_parts, remove_stray_parts
from pipeline import storage
from pipeline.errors import GwmError, UnitError
from pipeline.images import Image
from pipeline.model_card import ModelCard
from pipeline.video_flow import VideoFlow

if TYPE_CHECKING:
    from gwm_model.backbone import Backbone


def open_segmenter(url: str, device: str) -> tuple[Segmenter, str]:
    """The segmenter of a model folder and the SHA-256 of its files; GwmError if there is none that fits."""
    with tempfile.TemporaryDirectory(prefix="gwm-") as temporary:
        folder = storage.fetch_folder(url, Path(temporary))
        try:
            segmenter = load_segmenter(folder, device=device)
        except (ValueError, OSError) as error:
            raise GwmError(f"model={url} cannot be used: {error}") from error
        return segmenter, _sha256(folder)


def read_model_card(url: str, scales: Sequence[float] = (1.0,)) -> ModelCard:
    """The card of a model folder, after loading it once; GwmError if there is none or it does not fit."""
    return _card(*open_segmenter(url, "cpu"), scales)


def check_refinement(refine: RefineConfig) -> None:
    """GwmError if masks are to be refined with a package that is not installed."""
    if refine.method == "crf" and find_spec("pydensecrf") is None:
        raise GwmError('refine.method=crf needs the extra crf: pip install "gwm[crf]"')


@dataclass(frozen=True, slots=True)
class ObjectRule:
    """Which regions are the object of a video or of an image, and what of them is not."""

    labels: Int64[Tensor, " K"]
    object_is: Int64[Tensor, ""]
    stray: StrayParts | None

    def probability(
        self,
        masks: Float[Tensor, "B K h w"],
        features: Float[Tensor, "B C i j"],
        flow: VideoFlow | None = None,
    ) -> Float[Tensor, "B h w"]:
        """The object's probability in frames of the video, given their flow if it is at hand, or in the image."""
        labels, object_is = self.labels.expand(len(masks), -1), self.object_is.expand(len(masks))
        whole = foreground_probability(masks, labels, object_is)
        if flow is not None:
            whole = explain_flow(whole, *_on_grid(flow, whole))
        return whole if self.stray is None else remove_stray_parts(whole, features, self.stray)


class RegionModel:
    """Regions of images and features to merge them by, batch by batch on one device."""

    def __init__(
        self, url: str, merge: MergeConfig, *, batch_size: int, device: str, scales: Sequence[float] = (1.0,)
    ) -> None:
        self._segmenter, sha256 = open_segmenter(url, device)
        self.card = _card(self._segmenter, sha256, scales)
        self._scales = scales
        self._merge = merge
        self._merger = _open_merger(merge, device)
        self._knows_likeness = self._segmenter.backbone is not None or self._merger is not None
        self._batch_size = batch_size
        self._device = device

    @property
    def _drops_stray_parts(self) -> bool:
        return self._merge.drop_stray_parts and self._knows_likeness

    @torch.inference_mode()
    def regions(
        self, images: UInt8[Tensor, "B 3 H W"]
    ) -> tuple[Float[Tensor, "B K h w"], Float[Tensor, "B C i j"]]:
        """Region probabilities and appearance features; UnitError if the network's answer is not finite."""
        masks, features = [], []
        for batch in torch.split(images, self._batch_size):
            logits, appearance = self._segmenter.segment(batch.to(self._device), self._scales)
            if not torch.isfinite(logits).all():
                raise UnitError("the segmenter returned values that are not finite")
            masks.append(logits.softmax(1))
            features.append(
                appearance
                if self._merger is None
                else _appearance(self._merger, batch.to(self._device), self._merge.height_px)
            )
        return torch.cat(masks), torch.cat(features)

    def labels(
        self,
        masks: Float[Tensor, "B K h w"],
        features: Float[Tensor, "B C i j"],
        video_ids: Int64[Tensor, " B"] | None = None,
    ) -> Int64[Tensor, "B K"]:
        """The sides of the regions, as `merge_regions` gives them by the configured method."""
        return merge_regions(masks, features, video_ids, self._merge.method)

    def sides(
        self,
        masks: Float[Tensor, "B K h w"],
        features: Float[Tensor, "B C i j"],
        video_ids: Int64[Tensor, " B"] | None = None,
    ) -> tuple[Int64[Tensor, "B K"], Int64[Tensor, " B"]]:
        """The sides of the regions, and which side is the object.

        A network that has learned from motion alone knows no likeness but motion's: its object is what shuns the image
        border, and the cut decides only where nothing does.
        """
        labels = self.labels(masks, features, video_ids)
        if not self._knows_likeness:
            labels = merge_by_border(masks, labels, video_ids)
        return labels, choose_foreground(masks, labels, video_ids)

    def rule(self, masks: Float[Tensor, "B K h w"], features: Float[Tensor, "B C i j"]) -> ObjectRule:
        """One decision for a video, from some of its frames."""
        video_ids = torch.zeros(len(masks), dtype=torch.int64, device=masks.device)
        labels, object_is = self.sides(masks, features, video_ids)
        rule = ObjectRule(labels[0], object_is[0], None)
        if not self._drops_stray_parts:
            return rule
        return replace(rule, stray=find_stray_parts(rule.probability(masks, features), features))

    def object_probability(
        self,
        masks: Float[Tensor, "B K h w"],
        features: Float[Tensor, "B C i j"],
        rule: ObjectRule | None,
        flow: VideoFlow | None = None,
    ) -> Float[Tensor, "B h w"]:
        """The object's probability in frames of a video, by its rule; without one, in images, each by itself."""
        if rule is not None:
            return rule.probability(masks, features, flow)
        parts = zip(*(torch.split(maps, self._batch_size) for maps in (masks, features)), strict=True)
        return torch.cat([self._objects_of_images(*part) for part in parts])

    def _objects_of_images(
        self, masks: Float[Tensor, "B K h w"], features: Float[Tensor, "B C i j"]
    ) -> Float[Tensor, "B h w"]:
        whole = foreground_probability(masks, *self.sides(masks, features))
        return drop_stray_parts(whole, features) if self._drops_stray_parts else whole


def upsample(
    probabilities: Float[Tensor, "B C h w"], height_px: int, width_px: int
) -> Float[Tensor, "B C H W"]:
    """Probabilities at another size, bilinear between pixel centres."""
    return F.interpolate(probabilities, size=(height_px, width_px), mode="bilinear", align_corners=False)


def at_source(
    probabilities: Float[Tensor, "B C h w"],
    height_px: int,
    width_px: int,
    grounds: Sequence[Image],
    refine: RefineConfig,
) -> Float[Tensor, "B C H W"]:
    """Probabilities at their sources' size, along the edges of `grounds`, pictures of the sources in one size.

    The CRF takes them as those of all regions, summing to 1; the guided filter is linear and takes any. Without
    refinement there are no grounds.
    """
    if refine.method != "none":
        check_refinement(refine)
        pictures = torch.from_numpy(np.stack(grounds)).to(probabilities.device).permute(0, 3, 1, 2) / 255
        if refine.method == "crf":
            probabilities = crf_upsample(probabilities, pictures)
        else:
            probabilities = guided_upsample(probabilities, pictures, refine)
    return upsample(probabilities, height_px, width_px)


def object_at_source(
    probability: Float[Tensor, "B h w"],
    height_px: int,
    width_px: int,
    grounds: Sequence[Image],
    refine: RefineConfig,
) -> Float[Tensor, "B H W"]:
    """The object's probability at its sources' size, as `at_source`; by the CRF as one of two sides that sum to 1."""
    sides = [1 - probability, probability] if refine.method == "crf" else [probability]
    return at_source(torch.stack(sides, 1), height_px, width_px, grounds, refine)[:, -1]


def _on_grid(
    flow: VideoFlow, masks: Float[Tensor, "B h w"]
) -> tuple[Float[Tensor, "B G 2 h w"], Bool[Tensor, "B G"]]:
    """The flow on the grid of the masks, still in pixels of its own size."""
    stored = torch.from_numpy(flow.flow).to(masks.device).float()
    resized = F.interpolate(stored.flatten(0, 1), masks.shape[-2:], mode="bilinear", antialias=True)
    return resized.view(*stored.shape[:3], *masks.shape[-2:]), torch.from_numpy(flow.has_flow).to(
        masks.device
    )


def _card(segmenter: Segmenter, sha256: str, scales: Sequence[float]) -> ModelCard:
    height_px, width_px = segmenter.input_size(max(scales))
    num_masks = segmenter.config.num_masks
    return ModelCard(sha256=sha256, height_px=height_px, width_px=width_px, num_masks=num_masks)


def _open_merger(merge: MergeConfig, device: str) -> "Backbone | None":
    if merge.features == "segmenter":
        return None
    from gwm_model.backbone import load_backbone  # timm takes seconds to import

    config = merge.backbone
    try:
        with storage.local_weights(config.weights) as path:
            return load_backbone(replace(config, weights=str(path))).to(device)
    except (ValueError, OSError) as error:
        raise GwmError(f"merge.backbone cannot be used: {error}") from error


def _appearance(
    merger: "Backbone", images: UInt8[Tensor, "B 3 H W"], height_px: int
) -> Float[Tensor, "B C i j"]:
    """The deepest feature map of a backbone, for images enlarged to the height, and to whole patches."""
    height, width = images.shape[2:]
    size = scaled_size((height, width), max(1.0, height_px / height), merger.multiple_px)
    pixels = F.interpolate(images.float() / 255, size=size, mode="bilinear", antialias=True)
    deepest: Tensor = merger(pixels)[-1]
    return deepest.float()


def _sha256(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(folder.glob("segmenter.*")):
        digest.update(file.name.encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
