"""Where the stages of a command run: the `placement` of its configuration."""

from dataclasses import dataclass, field

from gwm_model.config import at_least, require


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlacement:
    """Where one stage runs."""

    num_cpus: float = 1.0
    """CPUs reserved for each worker of the stage."""
    num_gpus: float = 0.0
    """GPUs reserved for each worker of the stage; above 0 the stage computes on CUDA."""
    num_actors: int | None = None
    """Size of the actor pool (stages that hold a model): none fills the cluster as it is when the command starts.

    Ignored by stateless stages.
    """

    def __post_init__(self) -> None:
        at_least(0, num_cpus=self.num_cpus, num_gpus=self.num_gpus)
        at_least(1, num_actors=self.num_actors)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterPlacement:
    """Which Ray runs a command's stages."""

    address: str | None = None
    """Ray cluster; none joins the cluster of RAY_ADDRESS or starts a local Ray."""
    no_progress_timeout_s: float = 3600.0
    """Longest time in which no stage may end a unit; -1 waits for ever. A cluster that grows may need a while."""

    def __post_init__(self) -> None:
        valid = self.no_progress_timeout_s > 0 or self.no_progress_timeout_s == -1
        require(valid, f"no_progress_timeout_s must be positive, or -1, not {self.no_progress_timeout_s}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparePlacement(ClusterPlacement):
    """Resources of the prepare stages."""

    plan_clips: StagePlacement = field(default_factory=lambda: StagePlacement(num_cpus=0.25))
    decode_clip: StagePlacement = field(default_factory=lambda: StagePlacement(num_cpus=0.5))
    estimate_flow: StagePlacement = field(default_factory=StagePlacement)
    write_flow_shard: StagePlacement = field(default_factory=lambda: StagePlacement(num_cpus=0.25))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainPlacement:
    """Resources of the training workers."""

    address: str | None = None
    train_worker: StagePlacement = field(default_factory=StagePlacement)


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentPlacement(ClusterPlacement):
    """Resources of the segment stages."""

    plan_chunks: StagePlacement = field(default_factory=lambda: StagePlacement(num_cpus=0.25))
    load_chunk: StagePlacement = field(default_factory=lambda: StagePlacement(num_cpus=0.5))
    segment_images: StagePlacement = field(default_factory=StagePlacement)
    """With `adapt`, flow is estimated and the model trained there too: on its GPUs, or on a machine's CPUs."""
    refine_masks: StagePlacement = field(default_factory=lambda: StagePlacement(num_cpus=0.5))
    """With refine.method=crf."""
    write_mask_shard: StagePlacement = field(default_factory=lambda: StagePlacement(num_cpus=0.25))
    write_overlay: StagePlacement = field(default_factory=StagePlacement)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatePlacement(ClusterPlacement):
    """Resources of the evaluate stages."""

    score_sequence: StagePlacement = field(default_factory=StagePlacement)
