"""What is known of a trained segmenter without loading it: its card, and the configuration that depends on it."""

from dataclasses import dataclass, replace
from typing import TypeVar

from pipeline import storage
from pipeline.config import EvaluateConfig, SegmentConfig, TrainConfig
from pipeline.flow_dataset import open_flow_dataset
from pipeline.load_config import NOT_PART_OF_A_RESULT, extended, fingerprint

Config = TypeVar("Config", SegmentConfig, EvaluateConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What the driver knows of a model that loads."""

    sha256: str
    height_px: int
    """Size of the network's largest input: images are loaded at it."""
    width_px: int
    num_masks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PinnedConfig(SegmentConfig):
    """A configuration of segment with the content of its model, which decides the masks too."""

    model_sha256: str
    flow_content: str | None
    """The digest of the flow dataset's shards."""

    def unit_fingerprint(self) -> str:
        """Its part in the names of units: where the inputs and the model lie does not change a mask."""
        return fingerprint(self, exclude=(*NOT_PART_OF_A_RESULT, "images", "model", "flow"))


@dataclass(frozen=True, slots=True, kw_only=True)
class PinnedTrainConfig(TrainConfig):
    """A configuration of train with the content of the model that it starts from."""

    initial_model_sha256: str


def pin(config: SegmentConfig, card: ModelCard) -> PinnedConfig:
    """The configuration together with the content of the model, and of the flow if masks are refined by it."""
    if config.flow is None:
        return extended(PinnedConfig, config, model_sha256=card.sha256, flow_content=None)
    flow = open_flow_dataset(storage.absolute(config.flow))
    config = replace(config, flow=flow.dataset.url)
    return extended(PinnedConfig, config, model_sha256=card.sha256, flow_content=flow.content_digest())


def with_absolute_paths(config: Config) -> Config:
    """The configuration with local paths of models and flow made absolute: workers have folders of their own."""
    backbone = config.merge.backbone
    backbone = replace(backbone, weights=storage.absolute_weights(backbone.weights))
    model = None if config.model is None else storage.absolute(config.model)
    flow = None if config.flow is None else storage.absolute(config.flow)
    return replace(config, model=model, flow=flow, merge=replace(config.merge, backbone=backbone))


def anchor_positions(num_frames: int, anchor_frames: int) -> list[int]:
    """At most `anchor_frames` positions spread evenly over a video, each in the middle of its share."""
    count = min(num_frames, anchor_frames)
    return [(2 * share + 1) * num_frames // (2 * count) for share in range(count)]
