"""The algorithm's values: frozen dataclasses, importable without torch so that a command line can read them at once."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Literal

Motion = Literal["constant", "affine", "quadratic"]
Objective = Literal["expected", "composite"]
MergeMethod = Literal["exact", "scikit_learn"]

CONFIG_FILE = "segmenter.json"
WEIGHTS_FILE = "segmenter.safetensors"
"""The files of a segmenter's folder (checkpoint.py)."""


def require(holds: bool, sentence: str) -> None:
    """Raises ValueError with the sentence where a value is impossible."""
    if not holds:
        raise ValueError(sentence)


def at_least(smallest: float, **values: float | None) -> None:
    """Raises ValueError where a named value is smaller; None stands for a value that is not given."""
    for name, value in values.items():
        require(value is None or value >= smallest, f"{name} must be at least {smallest:g}, not {value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowEstimatorConfig:
    """Which optical flow network, and how long it iterates."""

    estimator: Literal["raft_large", "raft_small", "dis"] = "raft_large"
    weights: str = "pretrained"
    """`pretrained`, a torchvision weights name, or a path or URL to a checkpoint; unused by `dis`."""
    iterations: int = 12
    """Update iterations of RAFT."""
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        at_least(1, iterations=self.iterations)


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

    def __post_init__(self) -> None:
        at_least(1, patch_stride_px=self.patch_stride_px)
        require(len(self.blocks) > 0 and min(self.blocks) >= 0, "blocks must name blocks, counted from 0")


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
    """Layers of the query decoder (paper: 6); with 0 the K queries are the same for every image."""
    image_skip: bool = True
    """The image itself joins the pixel decoder at mask resolution (paper: no)."""

    def __post_init__(self) -> None:
        at_least(2, num_masks=self.num_masks)
        at_least(1, height_px=self.height_px, width_px=self.width_px)
        at_least(1, hidden_channels=self.hidden_channels)
        at_least(0, decoder_layers=self.decoder_layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveConfig:
    """How well K regions with simple motions explain the optical flow."""

    kind: Objective = "expected"
    motion: Motion = "quadratic"
    flow_clip_px: float = 20.0
    """Flow components are clipped to plus or minus this, in pixels of the stored size (paper's code: 20 at 480x854)."""
    flow_normalization: Literal["none", "relative"] = "relative"
    """`relative` divides a frame's flow by the root mean square that one global motion leaves unexplained."""
    residual: Literal["squared", "root"] = "squared"
    """`squared` is Eq. 3; `root`, its robust square root, is for flow with gross errors, as that of `dis`."""
    appearance_weight: float = 0.05
    """Weight of the normalised cut of the backbone's features that the regions make (paper: 0); the U-Net has none."""
    self_training_weight: float = 0.15
    """Weight of the cross entropy with the masks' own sharpened selves, in the second half of training (paper: 0)."""
    motion_weight: float = 1.0
    """Factor of the motion loss (paper's code: 0.03)."""
    height_px: int | None = None
    """Size at which masks, enlarged, meet the flow, which is then in pixels of that size (paper's code: 480 x 854).

    None is the masks' own grid, with flow in pixels of the stored size.
    """
    width_px: int | None = None
    flow_resize: Literal["smooth", "nearest"] = "smooth"
    """How stored flow comes to that size: antialiased, or a pixel of each cell (paper's code: OpenCV's nearest)."""

    def __post_init__(self) -> None:
        require(self.flow_clip_px > 0, f"flow_clip_px must be positive, not {self.flow_clip_px}")
        require(self.motion_weight > 0, f"motion_weight must be positive, not {self.motion_weight}")
        at_least(0, appearance_weight=self.appearance_weight, self_training_weight=self.self_training_weight)
        at_least(1, height_px=self.height_px, width_px=self.width_px)
        both = (self.height_px is None) == (self.width_px is None)
        require(both, "height_px and width_px of the objective belong together: give both or none")


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """AdamW with linear warm-up and a decay."""

    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup_steps: int = 100
    schedule: Literal["linear", "poly"] = "linear"
    """`linear` falls to zero over the last `decay_fraction` of the steps; `poly` from the start, with power 0.9."""
    decay_fraction: float = 0.4
    """The last fraction of the steps, over which `linear` falls."""
    poly_steps: int = 160_000
    """The step at which `poly` would reach zero (paper's code: 160,000, though it stops at 20,000)."""
    max_gradient_norm: float = 1.0

    def __post_init__(self) -> None:
        require(self.learning_rate > 0, f"learning_rate must be positive, not {self.learning_rate}")
        require(0 <= self.decay_fraction <= 1, f"decay_fraction must lie in 0..1, not {self.decay_fraction}")
        at_least(0, weight_decay=self.weight_decay, warmup_steps=self.warmup_steps)
        at_least(1, poly_steps=self.poly_steps)
        require(self.max_gradient_norm > 0, "max_gradient_norm must be positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeConfig:
    """How K regions become object and background."""

    features: Literal["segmenter", "backbone"] = "segmenter"
    """Appearance features: the segmenter's own, or those of `backbone`."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    drop_stray_parts: bool = True
    """Parts of the object that look twice as much like the background as like its rest are dropped (paper: no)."""
    height_px: int = 252
    """Images that are smaller are enlarged to this height for a `backbone` that only merges (paper's code: 128)."""
    method: MergeMethod = "exact"
    """Normalised cut by comparing all splits, or scikit-learn's spectral clustering (paper's code)."""

    def __post_init__(self) -> None:
        at_least(1, height_px=self.height_px)
        installed = self.method != "scikit_learn" or find_spec("sklearn") is not None
        require(installed, "merge.method=scikit_learn needs scikit-learn: pip install 'gwm[paper]'")


@dataclass(frozen=True, slots=True, kw_only=True)
class RefineConfig:
    """How an object's mask comes from the network's grid to the image's size."""

    method: Literal["none", "guided_filter", "crf"] = "guided_filter"
    """`guided_filter` and `crf` let the mask follow the image's edges; `none` interpolates between the cells.

    `crf` is the fully connected CRF, solved on CPUs; it needs the extra of that name.
    """
    radius_cells: int = 2
    """The guided filter's window, in cells of the network's grid to each side."""
    epsilon: float = 1e-4
    """The guided filter's regularisation: colours in [0, 1] that vary less than this in a window do not count."""
    use_flow: bool = False
    """First follow the frames' own flow, from the flow dataset `flow`; single images have none."""

    def __post_init__(self) -> None:
        at_least(1, radius_cells=self.radius_cells)
        require(self.epsilon > 0, f"epsilon must be positive, not {self.epsilon}")
