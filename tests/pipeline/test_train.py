import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import ray.train
import torch
from safetensors.torch import load_file

from gwm_model import load_segmenter
from gwm_model.backbone import Backbone
from gwm_model.config import BackboneConfig, SegmenterConfig
from pipeline import train_worker as loop
from pipeline.config import CacheConfig, StagePlacement, TrainConfig, TrainPlacement
from pipeline.dataset import Dataset
from pipeline.errors import GwmError
from pipeline.events import Mailbox
from pipeline.flow_dataset import open_flow_dataset
from pipeline.records import FLOW_SCHEMA_VERSION
from pipeline.scenes import render_scene, write_video
from pipeline.train import cache_name, train

UNET = SegmenterConfig(architecture="unet", height_px=48, width_px=80, hidden_channels=8)
MASKFORMER = SegmenterConfig(
    height_px=48,
    width_px=80,
    hidden_channels=16,
    decoder_layers=1,
    backbone=BackboneConfig(name="vit_tiny_patch16_224", weights="none", blocks=(1,)),
)


@pytest.fixture
def flow(stages) -> str:
    """Two rendered scenes of 10 frames with DIS flow."""
    (stages.folder / "videos").mkdir()
    for seed in (0, 1):
        scene = render_scene(seed, num_frames=10, height_px=64, width_px=96)
        write_video(str(stages.folder / "videos" / f"{seed}.mp4"), scene.frames)
    config = stages.config()
    dataset = Dataset.open(config.output, kind="flow", config=config, schema_version=FLOW_SCHEMA_VERSION)
    stages.run(config)
    dataset.write_manifest()
    return config.output


@pytest.fixture
def config(flow: str, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        flow=flow,
        output=str(tmp_path / "model"),
        segmenter=UNET,
        cache=CacheConfig(directory=str(tmp_path)),
        num_steps=12,
        batch_size=4,
        checkpoint_every_steps=3,
        log_every_steps=1,
        picture_every_steps=6,
        placement=TrainPlacement(train_worker=StagePlacement(num_cpus=0.5)),
    )


class OneProcess:
    """Ray Train's part for one rank in this process: the newest checkpoint, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reports = 0

    def get_context(self) -> SimpleNamespace:
        return SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)

    def report(self, metrics: dict[str, float], checkpoint: ray.train.Checkpoint) -> None:
        self.reports += 1
        checkpoint.to_directory(str(self.folder / f"{self.reports:03d}"))

    def get_checkpoint(self) -> ray.train.Checkpoint | None:
        kept = sorted(self.folder.glob("*"))
        return ray.train.Checkpoint.from_directory(str(kept[-1])) if kept else None


@pytest.fixture
def one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OneProcess:
    stand_in = OneProcess(tmp_path / "checkpoints")
    for name in ("get_context", "report", "get_checkpoint"):
        monkeypatch.setattr(ray.train, name, getattr(stand_in, name))
    return stand_in


def run(config: TrainConfig) -> list[dict[str, object]]:
    """Trains in this process; the worker's events."""
    events, flow = Mailbox(), open_flow_dataset(config.flow)
    loop.train_worker(
        loop.TrainJob(config=config, flow=flow, cache_name=cache_name(config, flow), events=events)
    )
    return events.take()


def losses(events: list[dict[str, object]]) -> list[float]:
    return [event["values"]["loss"] for event in events if "values" in event]


@pytest.mark.parametrize(("segmenter", "tolerance"), [(UNET, 0.0), (MASKFORMER, 1e-4)])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    segmenter: SegmenterConfig,
    tolerance: float,
    config: TrainConfig,
    one_process: OneProcess,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bit for bit for convolutions; attention on a CPU differs in the last bit from run to run."""
    config = replace(config, segmenter=segmenter)
    whole = replace(config, output=config.output + "-whole")
    uninterrupted = run(whole)
    one_process.folder = one_process.folder / "interrupted"
    original, calls = loop.train_step, iter(range(100))

    def dies_in_step_8(*args, **kwargs):
        if next(calls) == 7:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(loop, "train_step", dies_in_step_8)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    monkeypatch.setattr(loop, "train_step", original)
    resumed = run(config)
    expected = losses(uninterrupted)[6:]  # from the checkpoint of step 6 on
    assert losses(resumed) == pytest.approx(expected, rel=tolerance, abs=0)
    history = [event["state"].history for event in (resumed[-1], uninterrupted[-1])]
    assert [entry["step"] for entry in history[0]] == [entry["step"] for entry in history[1]]
    weights = [load_file(Path(each.output) / "segmenter.safetensors") for each in (config, whole)]
    assert weights[0].keys() == weights[1].keys()
    for name in weights[0]:
        assert torch.allclose(weights[0][name], weights[1][name], rtol=tolerance, atol=100 * tolerance), name


def test_a_frame_passes_the_frozen_backbone_once(
    config: TrainConfig, one_process: OneProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    original = Backbone.forward

    def counting(self: Backbone, images: torch.Tensor):
        seen.extend(hash(image.numpy().tobytes()) for image in images)
        return original(self, images)

    monkeypatch.setattr(Backbone, "forward", counting)
    run(replace(config, segmenter=MASKFORMER, picture_every_steps=1000, num_steps=11))
    drawn = [image for image in seen if seen.count(image) == 1]
    repeated = len(seen) - len(set(seen))
    assert len(drawn) >= 20  # every frame of both videos was drawn in 11 batches of 4
    assert repeated <= 6  # the pictures of the last step look at the frames anew


def test_training_leaves_a_segmenter_losses_and_pictures(
    config: TrainConfig, one_process: OneProcess
) -> None:
    events = run(config)
    assert [event["step"] for event in events if "picture" in event] == [6, 12]
    assert all(event["picture"][:2] == b"\xff\xd8" for event in events if "picture" in event)
    assert all(np.isfinite(losses(events)))
    assert load_segmenter(config.output).config == config.segmenter


def test_weights_that_do_not_fit_are_refused_before_anything_is_written(
    config: TrainConfig, tmp_path: Path
) -> None:
    (tmp_path / "foreign.safetensors").write_bytes(b"nothing")
    backbone = replace(MASKFORMER.backbone, weights=str(tmp_path / "foreign.safetensors"))
    with pytest.raises(GwmError, match="does not fit the backbone"):
        train(replace(config, segmenter=replace(MASKFORMER, backbone=backbone)))
    assert not Path(config.output).exists()


@pytest.fixture
def trained_by_two(config: TrainConfig, ray_local: None) -> Iterator[TrainConfig]:
    together = replace(config, num_workers=2)
    summary = train(together)
    assert summary["units"]["done"] == 1
    return together


def test_two_ddp_workers_learn_as_one(
    trained_by_two: TrainConfig, config: TrainConfig, one_process: OneProcess
) -> None:
    alone = losses(run(replace(config, output=config.output + "-alone")))
    together = json.loads((Path(config.output) / "metrics.json").read_text())
    assert [entry["step"] for entry in together] == list(range(1, 13))
    assert [entry["loss"] for entry in together] == pytest.approx(alone, rel=1e-3)
    finished = train(trained_by_two)  # a finished run is not trained again
    assert finished["units"] == {"done": 0, "skipped": 1, "quarantined": 0}
    with pytest.raises(GwmError, match="num_steps"):
        train(replace(trained_by_two, num_steps=13))
