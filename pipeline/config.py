"""The commands' configurations: frozen dataclasses, composed from gwm_model's values and the pipeline's own."""

from dataclasses import dataclass, field
from typing import Literal

from gwm_model.config import (
    FlowEstimatorConfig,
    MergeConfig,
    ObjectiveConfig,
    OptimizerConfig,
    RefineConfig,
    SegmenterConfig,
    at_least,
    require,
)
from pipeline.placement_config import EvaluatePlacement, PreparePlacement, SegmentPlacement, TrainPlacement

MISSING = "???"
"""OmegaConf's mark of a value that the user must give."""
EXTENDS = "extends"
"""Key of a file that names the file it differs from."""

LARGEST_SCALE = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackingConfig:
    """MLflow: one run per command."""

    uri: str | None = None
    """Tracking server; unset, a sqlite store inside a local `output`; the word `none` tracks nothing."""
    experiment: str = "gwm"
    registered_model: str | None = None
    """Train: the name under which the segmenter is registered, as its newest version; none only logs it."""
    system_metrics: bool = True
    """Also log, every ten seconds, how busy the machine of the command is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportConfig:
    """report.html beside the results: one page to look at."""

    num_samples: int = 36
    """Images or frames that it shows; 0 writes none."""

    def __post_init__(self) -> None:
        require(0 <= self.num_samples <= 10_000, f"num_samples must be 0 to 10000, not {self.num_samples}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeLimits:
    """What decoding may cost: a file that wants more is broken or hostile, or these are too low for it."""

    timeout_s: float = 600.0
    """Longest time that one clip, run of frames or image may take to decode."""
    max_bytes: int = 2 * 2**30
    """Memory for decoding one of them."""

    def __post_init__(self) -> None:
        require(self.timeout_s > 0, f"timeout_s must be positive, not {self.timeout_s}")
        at_least(1, max_bytes=self.max_bytes)

    @property
    def max_pixels(self) -> int:
        """Largest frame or image: three bytes a pixel here, and about eight when its mask is computed."""
        return self.max_bytes // 8


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeConfig(DecodeLimits):
    """Which frames of a video, and at what size flow is estimated."""

    stride: int = 1
    """Keep every n-th frame in presentation order; gaps count kept frames."""
    fps: float | None = None
    """Keep frames at this rate by presentation time instead (exclusive with stride > 1)."""
    height_px: int | None = None
    """Frame height for flow estimation; none follows the width's aspect ratio, or the source."""
    width_px: int | None = None
    clip_frames: int = 32
    """Frames owned by one clip, the unit of work: bounds memory and the work lost in a kill."""

    def __post_init__(self) -> None:
        DecodeLimits.__post_init__(self)
        at_least(1, stride=self.stride, clip_frames=self.clip_frames)
        at_least(1, height_px=self.height_px, width_px=self.width_px)
        require(self.fps is None or self.fps > 0, f"fps must be positive, not {self.fps}")
        require(self.fps is None or self.stride == 1, "stride and fps exclude each other: give one of them")


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimateFlowConfig(FlowEstimatorConfig):
    """Optical flow of each frame to its neighbours."""

    gaps: tuple[int, ...] = (1, -1)
    """Frame gaps: +1 is the flow from a frame to the next, -1 to the previous."""
    files: str | None = None
    """Flow that is there already, instead of an estimator: a folder with VIDEO/FRAME.flo or .png (KITTI) for each
    gap, its number as {gap} in the name."""

    def __post_init__(self) -> None:
        FlowEstimatorConfig.__post_init__(self)
        different = len(set(self.gaps)) == len(self.gaps) > 0
        require(different and 0 not in self.gaps, f"gaps must be different and not 0, not {list(self.gaps)}")
        named = self.files is None or len(self.gaps) == 1 or "{gap}" in self.files
        require(named, "files must have {gap} in its name, where there are several gaps")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig:
    """The size at which frames and flow are stored."""

    height_px: int | None = None
    """None keeps the size at which flow was estimated."""
    width_px: int | None = None

    def __post_init__(self) -> None:
        at_least(1, height_px=self.height_px, width_px=self.width_px)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareConfig:
    """gwm prepare: videos -> flow shards."""

    videos: str = MISSING
    """A file, a folder, a glob, a prefix, or a text/CSV/Parquet list; a folder of numbered frames is a video."""
    output: str = MISSING
    """Folder or bucket prefix of the flow dataset."""
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    estimate_flow: EstimateFlowConfig = field(default_factory=EstimateFlowConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    retry_quarantined: bool = False
    """Try quarantined units again."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    placement: PreparePlacement = field(default_factory=PreparePlacement)

    def __post_init__(self) -> None:
        every = self.decode.stride == 1 and self.decode.fps is None
        require(
            every or self.estimate_flow.files is None,
            "estimate_flow.files has flow between a video's own frames: "
            "decode.stride and decode.fps do not go with it",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """Training frames kept on the worker: decoded images, flow, and the features of a frozen backbone."""

    directory: str | None = None
    """Local folder; none uses the system's temporary folder."""
    max_bytes: int = 64 * 2**30
    """Local disk the cache may fill; frames beyond it are read and computed again each epoch."""

    def __post_init__(self) -> None:
        at_least(0, max_bytes=self.max_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingConfig:
    """Which frames a batch holds, and to which of its neighbours a frame's flow is shown."""

    frames: Literal["epochs", "by_video"] = "epochs"
    """Every frame once before any comes again; or one of a video that is drawn whatever its length (paper's code)."""
    gaps: Literal["uniform", "first_of_pair"] = "uniform"
    """All gaps equally often; or the first of two drawn (paper's code: with gaps 1, 2, -1, -2 these are drawn in
    50, 33, 17 and 0 per cent)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """gwm train: flow shards -> segmenter."""

    flow: str = MISSING
    """A flow dataset written by gwm prepare."""
    output: str = MISSING
    initial_model: str | None = None
    """A segmenter to start from, as `model` of segment, instead of a fresh head; `segmenter` must say what it is."""
    segmenter: SegmenterConfig = field(default_factory=SegmenterConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    num_steps: int = 2000
    batch_size: int = 8
    """Global batch: divided over the workers."""
    precision: str = "float32"
    """Autocast of the network: float32 or bfloat16; the objective is always float32."""
    seed: int = 0
    num_workers: int = 1
    """DDP workers; without a cluster a single one trains in the command's own process."""
    max_bad_batches: int = 20
    """Batches whose loss or gradient is not finite are skipped; more than this many end the run."""
    checkpoint_every_steps: int = 500
    log_every_steps: int = 20
    picture_every_steps: int = 500
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    placement: TrainPlacement = field(default_factory=TrainPlacement)

    def __post_init__(self) -> None:
        at_least(1, num_steps=self.num_steps, batch_size=self.batch_size)
        at_least(1, num_workers=self.num_workers)
        at_least(1, checkpoint_every_steps=self.checkpoint_every_steps, log_every_steps=self.log_every_steps)
        at_least(1, picture_every_steps=self.picture_every_steps)
        at_least(0, max_bad_batches=self.max_bad_batches)
        whole = self.batch_size % self.num_workers == 0
        require(whole, f"batch_size must be a multiple of num_workers ({self.num_workers})")
        require(self.precision in ("float32", "bfloat16"), "precision must be float32 or bfloat16")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptationConfig:
    """How a segmenter is trained further on the videos to segment, with its own objective and without labels."""

    minutes: float = 5.0
    """About how long training takes, beside the flow: the rate of a few steps says how many fit."""
    num_steps: int | None = None
    """This many steps instead: the same on every machine."""
    decode: DecodeConfig = field(default_factory=lambda: DecodeConfig(height_px=240))
    estimate_flow: EstimateFlowConfig = field(
        default_factory=lambda: EstimateFlowConfig(estimator="raft_small")
    )
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=3e-4, warmup_steps=10)
    )

    def __post_init__(self) -> None:
        require(self.minutes > 0, f"minutes must be positive, not {self.minutes}")
        at_least(1, num_steps=self.num_steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentConfig:
    """gwm segment: images or videos and a segmenter -> mask shards."""

    images: str = MISSING
    """Images or videos: a file, a folder, a glob, a prefix, or a text/CSV/Parquet list."""
    model: str = MISSING
    """A segmenter folder written by gwm train, local or in a bucket, or models:/NAME@ALIAS, models:/NAME/VERSION or
    models:/MODEL_ID of an MLflow server."""
    flow: str | None = None
    """With refine.use_flow: a flow dataset of the same videos."""
    output: str = MISSING
    adapt: bool = False
    """First train the model further on these videos, all together, and segment them with the result."""
    adaptation: AdaptationConfig = field(default_factory=AdaptationConfig)
    merge: MergeConfig = field(default_factory=MergeConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)
    input_scales: tuple[float, ...] = (1.0,)
    """The network sees an image at its own input size times each of these; the logits are averaged."""
    batch_size: int = 8
    chunk_images: int = 64
    """Images of one chunk, the unit of work."""
    anchor_frames: int = 16
    """Frames of a video, spread over its length, that decide for all its frames which regions are the object."""
    decode: DecodeLimits = field(default_factory=DecodeLimits)
    report: ReportConfig = field(default_factory=ReportConfig)
    write_segments: bool = False
    """Also write the K regions (column segments_rle)."""
    write_objects: bool = False
    """Also write separate objects (columns object_ids, objects_rle); a video is then one unit, for their numbers."""
    write_png: bool = False
    """Also write PNG masks and overlay pictures beside the shards, with write_objects also PNGs of the objects."""
    write_overlays: bool = True
    """In the end draw the masks over what they were made of: a film of each video, and one sheet of photos."""
    retry_quarantined: bool = False
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    placement: SegmentPlacement = field(default_factory=SegmentPlacement)

    def __post_init__(self) -> None:
        at_least(1, batch_size=self.batch_size, chunk_images=self.chunk_images)
        at_least(1, anchor_frames=self.anchor_frames)
        _check_scales(self.input_scales)
        has_flow = (self.flow is not None) == self.refine.use_flow
        require(has_flow, "refine.use_flow=true and flow=DATASET belong together: give both or neither")

    @property
    def loads_pictures(self) -> bool:
        """Whether the images themselves are needed beside the network's input."""
        return self.write_png or self.refine.method != "none"

    @property
    def refines_apart(self) -> bool:
        """Whether masks are refined by a stage of their own; objects are numbered by the stage that segments."""
        return self.refine.method == "crf" and not self.write_objects


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig:
    """gwm evaluate: masks, or a segmenter, against ground truth -> scores."""

    dataset: str = MISSING
    """davis2016, segtrackv2, fbms59, or images (folders images/ and masks/)."""
    data: str = MISSING
    """Root of the ground truth."""
    masks: str | None = None
    """Mask shards written by gwm segment, or a folder or zip of PNG predictions."""
    model: str | None = None
    """A segmenter to score instead of masks, as in segment."""
    images: str | None = None
    """With model: the frames to segment; none takes those beside the ground truth."""
    flow: str | None = None
    """With model: the flow dataset whose stored frames are segmented, or with refine.use_flow, only its flow."""
    output: str = MISSING
    protocol: str = "label_free"
    """official (given binary masks), label_free, paper (ground truth picks the cluster, per frame), or oracle."""
    merge: MergeConfig = field(default_factory=MergeConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)
    input_scales: tuple[float, ...] = (1.0,)
    """The network sees an image at its own input size times each of these; the logits are averaged."""
    batch_size: int = 8
    anchor_frames: int = 16
    report: ReportConfig = field(default_factory=ReportConfig)
    decode: DecodeLimits = field(default_factory=DecodeLimits)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    placement: EvaluatePlacement = field(default_factory=EvaluatePlacement)

    def __post_init__(self) -> None:
        at_least(1, batch_size=self.batch_size, anchor_frames=self.anchor_frames)
        _check_scales(self.input_scales)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportConfig:
    """gwm export: masks, flow or a segmenter -> a format of other tools."""

    format: str = MISSING
    """coco, png, webdataset, davis, youtube_vos (of masks); flo, kitti (of flow); torch_export, onnx (of a model)."""
    masks: str | None = None
    """A mask dataset written by gwm segment."""
    flow: str | None = None
    """A flow dataset written by gwm prepare."""
    model: str | None = None
    """A segmenter, as in segment; MLFLOW_TRACKING_URI names the server of models:/..."""
    images: str | None = None
    """The images or videos that the masks were made of, as they were given to gwm segment."""
    output: str = MISSING
    """A file for coco, torch_export and onnx; a folder or bucket prefix for the others."""
    decode: DecodeLimits = field(default_factory=DecodeLimits)


def _check_scales(scales: tuple[float, ...]) -> None:
    fits = bool(scales) and all(0 < scale <= LARGEST_SCALE for scale in scales)
    require(fits, f"input_scales must be numbers above 0 and up to {LARGEST_SCALE:g}, not {list(scales)}")
