"""The segmenter: one image -> logits of K regions. The only place that chooses an architecture."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from gwm_model.config import SegmenterConfig
from gwm_model.maskformer import MaskFormerHead
from gwm_model.unet import MULTIPLE_PX as UNET_MULTIPLE_PX
from gwm_model.unet import UNet

if TYPE_CHECKING:
    from gwm_model.backbone import Backbone


class Segmenter(nn.Module):
    """Images of any size -> float32 logits of K regions; the softmax over K gives the region probabilities."""

    def __init__(self, config: SegmenterConfig):
        super().__init__()
        self.config = config
        self.backbone: Backbone | None = None
        self.head: UNet | MaskFormerHead
        if config.architecture == "unet":
            self.head = UNet(config.num_masks, config.hidden_channels)
        else:
            from gwm_model.backbone import (
                load_backbone,
            )  # timm takes seconds to import, and a U-Net needs none of it

            self.backbone = load_backbone(config.backbone)
            self.head = MaskFormerHead(
                self.backbone.channels,
                hidden=config.hidden_channels,
                num_masks=config.num_masks,
                num_layers=config.decoder_layers,
                image_skip=config.image_skip,
            )

    @classmethod
    def from_pretrained(
        cls, name: Path | str, *, revision: str | None = None, device: torch.device | str = "cpu"
    ) -> "Segmenter":
        """The segmenter of a folder on this disk, or else of a repository on the Hugging Face hub, for evaluation.

        Raises ValueError with one sentence where there is none.
        """
        from gwm_model.checkpoint import fetch_segmenter, load_segmenter  # that module builds segmenters

        folder = Path(name) if Path(name).is_dir() else fetch_segmenter(str(name), revision)
        return load_segmenter(folder, device)

    def save_pretrained(self, folder: Path | str) -> None:
        """Writes what `from_pretrained` reads, weights as safetensors: a folder to be uploaded as it is."""
        from gwm_model.checkpoint import save_segmenter

        save_segmenter(self, folder)

    def input_size(self, scale: float = 1.0) -> tuple[int, int]:
        """Height and width in pixels of the network's input, enlarged by the scale to whole patches."""
        size = (self.config.height_px, self.config.width_px)
        if scale == 1.0:
            return size
        step = UNET_MULTIPLE_PX if self.backbone is None else self.backbone.multiple_px
        return scaled_size(size, scale, step)

    def resize(self, images: Shaped[Tensor, "B 3 H W"], scale: float = 1.0) -> Float[Tensor, "B 3 h w"]:
        """Images in [0, 1] at the network's input size; uint8 images are 0 to 255, float images 0 to 1 already."""
        images = images.float().div_(255.0) if images.dtype == torch.uint8 else images.float()
        size = self.input_size(scale)
        if images.shape[2:] == size:
            return images
        return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)

    def features(self, images: Float[Tensor, "B 3 h w"]) -> list[Tensor]:
        """Feature maps of the backbone for images at the input size; empty for a U-Net. Constant if it is frozen."""
        return self.backbone(images) if self.backbone is not None else []

    def logits(self, features: list[Tensor], images: Float[Tensor, "B 3 h w"]) -> Float[Tensor, "B K H W"]:
        """Region logits from the backbone's features and the images at the input size."""
        logits: Tensor = self.head(images)[0] if isinstance(self.head, UNet) else self.head(features, images)
        return logits.float()

    def forward(self, images: Shaped[Tensor, "B 3 H W"]) -> Float[Tensor, "B K h w"]:
        """Region logits at the network's output size."""
        images = self.resize(images)
        return self.logits(self.features(images), images)

    def segment(
        self, images: Shaped[Tensor, "B 3 H W"], scales: Sequence[float] = (1.0,)
    ) -> tuple[Float[Tensor, "B K h w"], Float[Tensor, "B C i j"]]:
        """Region logits and appearance features for merging (the deepest map), in one pass a scale.

        With several scales of the input, the logits are their mean on the largest grid; features are the first's.
        """
        passes = [self._segment(self.resize(images, scale)) for scale in scales]
        grid = max((logits.shape[2:] for logits, _ in passes), key=torch.Size.numel)
        aligned = [F.interpolate(logits, size=grid, mode="bilinear") for logits, _ in passes]
        return torch.stack(aligned).mean(0), passes[0][1]

    def _segment(self, images: Float[Tensor, "B 3 h w"]) -> tuple[Tensor, Tensor]:
        if isinstance(self.head, UNet):
            logits, deepest = self.head(images)
            return logits.float(), deepest.float()
        features = self.features(images)
        return self.logits(features, images), features[-1].float()


def build_segmenter(config: SegmenterConfig) -> Segmenter:
    """A segmenter with a fresh head and the configured backbone weights."""
    return Segmenter(config)


def scaled_size(size: tuple[int, int], scale: float, multiple_px: int) -> tuple[int, int]:
    """Height and width times the scale, each the nearest multiple of `multiple_px`, but not 0."""
    height_px, width_px = (max(1, round(scale * side / multiple_px)) * multiple_px for side in size)
    return height_px, width_px
