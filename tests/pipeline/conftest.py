"""Videos made for the tests, and the stages of prepare without Ray."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.train
import torch

from gwm_model import save_segmenter
from gwm_model.config import BackboneConfig, RefineConfig, SegmenterConfig
from gwm_model.segmenter import build_segmenter
from pipeline import train_worker as loop
from pipeline.config import (
    CacheConfig,
    DecodeConfig,
    EstimateFlowConfig,
    PrepareConfig,
    ReportConfig,
    SegmentConfig,
    TrainConfig,
)
from pipeline.dataset import Dataset
from pipeline.events import Event, Mailbox
from pipeline.flow_dataset import open_flow_dataset
from pipeline.inference import read_model_card
from pipeline.inputs import find_images, find_videos
from pipeline.masks import MASK_SCHEMA_VERSION, MaskRow, mask_rows
from pipeline.placement_config import StagePlacement, TrainPlacement
from pipeline.records import FLOW_SCHEMA_VERSION, Row
from pipeline.sample_cache import Sample, SampleCache, cache_folder
from pipeline.scenes import render_scene, write_video
from pipeline.stages.decode_clip import decode_clip
from pipeline.stages.estimate_flow import EstimateFlow
from pipeline.stages.load_chunk import load_chunk
from pipeline.stages.plan_chunks import group_inputs, plan_chunks
from pipeline.stages.plan_clips import plan_clips
from pipeline.stages.refine_masks import refine_masks
from pipeline.stages.segment_images import SegmentImages
from pipeline.stages.write_flow_shard import write_flow_shard
from pipeline.stages.write_mask_shard import write_mask_shard
from pipeline.train import cache_name
from tests import few_workers

MakeVideo = Callable[..., Path]


def moving_texture(num_frames: int, height_px: int, width_px: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Frames [T, H, W, 3] of a smooth texture that moves 2 px left and 1 px up from frame to frame."""
    generator = np.random.default_rng(seed)
    margin = 2 * num_frames
    coarse = generator.integers(0, 255, ((height_px + margin) // 8 + 2, (width_px + margin) // 8 + 2, 3))
    texture = cv2.resize(coarse.astype(np.uint8), None, fx=8, fy=8, interpolation=cv2.INTER_CUBIC)
    return np.stack(
        [texture[t : t + height_px, 2 * t : 2 * t + width_px] for t in range(num_frames)], dtype=np.uint8
    )


@pytest.fixture
def make_video(tmp_path: Path) -> MakeVideo:
    """Writes moving_texture as a video file below tmp_path/videos and returns its path."""

    def make(
        name: str = "video.mp4",
        *,
        num_frames: int = 30,
        height_px: int = 48,
        width_px: int = 64,
        codec: str = "libx264",
        keyframe_every: int = 12,
        b_frames: int = 2,
        times_ms: Sequence[int] | None = None,
        rotation_deg: int | None = None,
        audio: bool = False,
        pixels: str = "yuv420p",
        options: dict[str, str] | None = None,
        container_options: dict[str, str] | None = None,
    ) -> Path:
        path = tmp_path / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w", options=container_options or {}) as container:
            stream: Any = container.add_stream(codec, rate=25 if times_ms is None else 1000)
            stream.width, stream.height, stream.pix_fmt = width_px, height_px, pixels
            stream.codec_context.gop_size = keyframe_every
            stream.codec_context.max_b_frames = b_frames
            stream.options = options or {}
            stream.codec_context.thread_count = 1  # with more, one encoding in some hundred differs
            if rotation_deg is not None:
                stream.set_display_rotation(rotation_deg)
            sound: Any = container.add_stream("aac", rate=16000) if audio else None
            for number, pixels_rgb in enumerate(moving_texture(num_frames, height_px, width_px)):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels_rgb), format="rgb24")
                frame = frame.reformat(format=pixels, threads=1)
                if times_ms is not None:
                    frame.pts, frame.time_base = times_ms[number], Fraction(1, 1000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
            if sound is not None:
                _mux_silence(container, sound)
        return path

    return make


@pytest.fixture
def make_audio(tmp_path: Path) -> MakeVideo:
    """Writes a sound file under a video's name."""

    def make(name: str = "sound.mp4") -> Path:
        path = tmp_path / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            _mux_silence(container, container.add_stream("aac", rate=16000))
        return path

    return make


@pytest.fixture
def make_frame_folder(tmp_path: Path) -> MakeVideo:
    """Writes moving_texture as a folder of numbered PNG files."""

    def make(name: str = "sequence", *, num_frames: int = 6, height_px: int = 48, width_px: int = 64) -> Path:
        folder = tmp_path / "videos" / name
        folder.mkdir(parents=True, exist_ok=True)
        for number, pixels in enumerate(moving_texture(num_frames, height_px, width_px)):
            cv2.imwrite(str(folder / f"{number:05d}.png"), np.ascontiguousarray(pixels[..., ::-1]))
        return folder

    return make


def _mux_silence(container: Any, stream: Any) -> None:
    for number in range(20):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, 1024 * number
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


@dataclass(frozen=True)
class StagesOfPrepare:
    """The stages of prepare in one process, one row after another."""

    folder: Path

    def config(self, **values: Any) -> PrepareConfig:
        """DIS flow in clips of 8 frames by few workers, unless said otherwise."""
        decode = {"clip_frames": 8} | values.pop("decode", {})
        flow = {"estimator": "dis"} | values.pop("estimate_flow", {})
        defaults = {"videos": str(self.folder / "videos"), "output": str(self.folder / "flow")}
        values = {"placement": few_workers.PREPARE} | values
        return PrepareConfig(
            **{**defaults, **values},
            decode=DecodeConfig(**decode),
            estimate_flow=EstimateFlowConfig(**flow),
        )

    def plan(self, config: PrepareConfig) -> list[Row]:
        """The rows of plan_clips for all videos."""
        dataset = Dataset(url=config.output)
        sources = (asdict(source) for source in find_videos(config.videos))
        return [row for source in sources for row in plan_clips(source, config, dataset, "configuration")]

    def run(self, config: PrepareConfig) -> list[Row]:
        """The summary rows of a whole run."""
        dataset = Dataset(url=config.output)
        estimate_flow = EstimateFlow(config, "cpu", 1)
        rows = (estimate_flow(decode_clip(row, config)) for row in self.plan(config))
        return [write_flow_shard(row, config, dataset) for row in rows]

    def table(self, config: PrepareConfig) -> pa.Table:
        """The rows of all shards, by video and frame."""
        tables = [pq.read_table(url) for url in Dataset(url=config.output).shards()]
        return pa.concat_tables(tables).sort_by([("video", "ascending"), ("frame_index", "ascending")])


@pytest.fixture
def stages(tmp_path: Path) -> StagesOfPrepare:
    return StagesOfPrepare(tmp_path)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of an untrained U-Net with 3 regions: its masks mean nothing and are always the same."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    size = {"num_masks": 3, "height_px": 32, "width_px": 48, "hidden_channels": 8}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        save_segmenter(build_segmenter(SegmenterConfig(architecture="unet", **size)), folder)
    return str(folder)


@dataclass(frozen=True)
class StagesOfSegment:
    """The stages of segment in one process, one row after another."""

    folder: Path
    model: str

    def config(self, **values: Any) -> SegmentConfig:
        """Chunks of 8 images by few workers, masks as the network has them, nothing drawn, unless said otherwise."""
        places = {"images": self.folder / "videos", "model": self.model, "output": self.folder / "masks"}
        plain = {
            "refine": RefineConfig(method="none"),
            "write_overlays": False,
            "report": ReportConfig(num_samples=0),
        }
        defaults = {"chunk_images": 8, "placement": few_workers.SEGMENT, **plain}
        return SegmentConfig(**{**defaults, **{key: str(url) for key, url in places.items()}, **values})

    def plan(self, config: SegmentConfig) -> list[Row]:
        """The rows of plan_chunks for all inputs."""
        dataset = Dataset(url=config.output)
        inputs = group_inputs(find_images(config.images), config.chunk_images)
        return [row for source in inputs for row in plan_chunks(source, config, dataset, "configuration")]

    def run(self, config: SegmentConfig) -> list[Row]:
        """The summary rows of a whole run."""
        dataset, card = Dataset(url=config.output), read_model_card(config.model)
        segment_images = SegmentImages(config, "cpu", 1)
        rows = (segment_images(load_chunk(row, config, card)) for row in self.plan(config))
        if config.refine.method == "crf":
            rows = (refine_masks(row, config) for row in rows)
        return [write_mask_shard(row, config, dataset) for row in rows]

    def masks(self, config: SegmentConfig) -> dict[tuple[str, int | None], MaskRow]:
        """The rows of all shards, by source and frame."""
        tables = [pq.read_table(url) for url in Dataset(url=config.output).shards()]
        rows = [row for table in tables for row in mask_rows(table)]
        found = {(row.source, row.frame_index): row for row in rows}
        assert len(found) == len(rows)
        return found


@pytest.fixture
def segment_stages(tmp_path: Path, tiny_model: str) -> StagesOfSegment:
    return StagesOfSegment(tmp_path, tiny_model)


@pytest.fixture(scope="session")
def rendered_flow(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A flow dataset of two rendered scenes of 10 frames, with DIS flow; not to be changed."""
    stages = StagesOfPrepare(tmp_path_factory.mktemp("rendered"))
    (stages.folder / "videos").mkdir()
    for seed in (0, 1):
        scene = render_scene(seed, num_frames=10, height_px=64, width_px=96)
        write_video(str(stages.folder / "videos" / f"{seed}.mp4"), scene.frames)
    config = stages.config()
    dataset = Dataset.open(config.output, kind="flow", config=config, schema_version=FLOW_SCHEMA_VERSION)
    stages.run(config)
    dataset.write_manifest()
    return config.output


@pytest.fixture(scope="session")
def rendered_masks(rendered_flow: str, tiny_model: str) -> str:
    """A mask dataset of the videos of `rendered_flow`; not to be changed."""
    stages = StagesOfSegment(Path(rendered_flow).parent, tiny_model)
    config = stages.config()
    dataset = Dataset.open(config.output, kind="masks", config=config, schema_version=MASK_SCHEMA_VERSION)
    stages.run(config)
    dataset.write_manifest()
    return config.output


@pytest.fixture
def train_config(rendered_flow: str, tmp_path: Path) -> TrainConfig:
    """A short training of a small U-Net, with a cache of its own."""
    return TrainConfig(
        flow=rendered_flow,
        output=str(tmp_path / "model"),
        segmenter=SegmenterConfig(architecture="unet", height_px=48, width_px=80, hidden_channels=8),
        cache=CacheConfig(directory=str(tmp_path)),
        num_steps=12,
        batch_size=4,
        checkpoint_every_steps=3,
        log_every_steps=1,
        picture_every_steps=6,
        placement=TrainPlacement(train_worker=StagePlacement(num_cpus=0.5)),
    )


@pytest.fixture
def maskformer() -> SegmenterConfig:
    """A small MaskFormer on a frozen transformer with random weights."""
    return SegmenterConfig(
        height_px=48,
        width_px=80,
        hidden_channels=16,
        decoder_layers=1,
        backbone=BackboneConfig(name="vit_tiny_patch16_224", weights="none", blocks=(1,)),
    )


@pytest.fixture
def poison() -> Callable[[TrainConfig, range], None]:
    """Plants frames whose flow is not a number in a run's cache, where training finds them."""

    def plant(config: TrainConfig, frame_ids: range) -> None:
        flow = open_flow_dataset(config.flow)
        folder = cache_folder(config.cache.directory, cache_name(config, flow))
        size = (config.segmenter.height_px, config.segmenter.width_px)
        not_a_number = np.full((2, 2, *size), np.nan, np.float16)
        bad = Sample(np.zeros((3, *size), np.uint8), [], not_a_number, np.array([True, True]))
        cache = SampleCache(folder, flow.num_frames, config.cache.max_bytes)
        for frame_id in frame_ids:
            cache.get(frame_id, lambda _: bad)

    return plant


class OneProcess:
    """Ray Train's part for one rank in this process."""

    def __init__(self) -> None:
        self.notice: ray.train.PreemptionInfo | None = None

    def get_context(self) -> SimpleNamespace:
        """Rank 0 of 1."""
        return SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)

    def get_preemption_info(self) -> "ray.train.PreemptionInfo | None":
        """The notice that the test sets."""
        return self.notice

    def train(self, config: TrainConfig) -> list[Event]:
        """Trains; the worker's events."""
        events, flow = Mailbox(), open_flow_dataset(config.flow)
        loop.train_worker(
            loop.TrainJob(config=config, flow=flow, cache_name=cache_name(config, flow), events=events)
        )
        return events.take()

    def interrupt(self, config: TrainConfig, in_step: int) -> None:
        """Trains until the process is interrupted within a step."""
        original, calls = loop.train_step, count(1)

        def dies(*args: Any, **kwargs: Any) -> Any:
            if next(calls) == in_step:
                raise KeyboardInterrupt
            return original(*args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "train_step", dies)
            with pytest.raises(KeyboardInterrupt):
                self.train(config)


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> OneProcess:
    stand_in = OneProcess()
    for name in ("get_context", "get_preemption_info"):
        monkeypatch.setattr(ray.train, name, getattr(stand_in, name))
    return stand_in
