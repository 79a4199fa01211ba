"""The algorithm's values: frozen dataclasses, importable without torch so that a command line can read them at once."""

from dataclasses import dataclass, field
from typing import Literal

Motion = Literal["constant", "affine", "quadratic"]
Objective = Literal["expected", "composite"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowEstimatorConfig:
    """Which optical flow network, and how long it iterates."""

    estimator: Literal["raft_large", "raft_small", "dis"] = "raft_large"
    weights: str = "pretrained"
    """`pretrained`, a torchvision weights name, or a path or URL to a checkpoint; unused by `dis`."""
    iterations: int = 12
    """Update iterations of RAFT."""
    precision: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneConfig:
    """A self-supervised image network from timm, seen as a map of patch features."""

    name: str = "vit_small_patch14_dinov2.lvd142m"
    """timm model name."""
    weights: str = "pretrained"
    """`pretrained` (timm's hub), `none` (random), or a path or URL to a checkpoint."""
    frozen: bool = True
    """Frozen features are computed once per frame and kept; otherwise the backbone is fine-tuned."""
    blocks: tuple[int, ...] = (7, 11)
    """Transformer blocks, 0-based, whose features are used."""
    features: Literal["tokens", "keys"] = "tokens"
    """Block outputs after the final norm, or the keys of the block's attention."""
    patch_stride_px: int | None = None
    """Stride of the patch embedding; smaller than the patch gives overlapping patches and a finer map."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmenterConfig:
    """An image segmentation network with K mask logits."""

    architecture: Literal["maskformer", "unet"] = "maskformer"
    num_masks: int = 2
    """K, the number of regions."""
    height_px: int = 252
    """Height to which the network resizes its input."""
    width_px: int = 448
    """Width to which the network resizes its input."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """Unused by `unet`, which is trained from scratch."""
    hidden_channels: int = 96
    """Width of the pixel decoder and of the queries; of the U-Net's first level."""
    decoder_layers: int = 6
    """Layers of the query decoder (paper: 6)."""
    image_skip: bool = True
    """The image itself joins the pixel decoder at mask resolution (paper: no)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveConfig:
    """How well K regions with simple motions explain the optical flow."""

    kind: Objective = "expected"
    motion: Motion = "quadratic"
    flow_clip_px: float = 20.0
    """Flow components are clipped to plus or minus this, in pixels of the stored size (paper's code: 20 at 480x854)."""
    flow_normalization: Literal["none", "relative"] = "relative"
    """`relative` divides a frame's flow by the root mean square that one global motion leaves unexplained."""
    residual: Literal["squared", "root"] = "root"
    """`root` is the robust square root of the squared residual; `squared` is Eq. 3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """AdamW with linear warm-up and a linear decay over the last part of training."""

    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup_steps: int = 100
    decay_fraction: float = 0.4
    """The last fraction of the steps, over which the rate falls linearly to zero."""
    max_gradient_norm: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeConfig:
    """How K regions become object and background."""

    features: Literal["segmenter", "backbone"] = "segmenter"
    """Appearance features: the segmenter's own, or those of `backbone`."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
