import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from safetensors.torch import load_file

from pipeline import adapt as page
from pipeline import storage
from pipeline.adapt import adapt, objective_of
from pipeline.config import (
    AdaptationConfig,
    CacheConfig,
    DecodeConfig,
    EstimateFlowConfig,
    SegmentConfig,
    TrainConfig,
)
from pipeline.dataset import Dataset
from pipeline.dry_run import describe
from pipeline.errors import GwmError
from pipeline.scenes import render_scene, write_video
from pipeline.train import with_initial_content
from pipeline.training_state import Checkpoints, _header
from pipeline.verify import verify

NUM_STEPS = 40


@pytest.fixture
def config(tiny_model: str, tmp_path: Path) -> SegmentConfig:
    """A rendered clip, an untrained model and a short adaptation by DIS flow."""
    write_video(tmp_path / "my.mp4", render_scene(5, num_frames=10, height_px=64, width_px=96).frames)
    return SegmentConfig(
        images=str(tmp_path / "my.mp4"),
        model=tiny_model,
        output=str(tmp_path / "masks"),
        adapt=True,
        adaptation=AdaptationConfig(
            num_steps=NUM_STEPS, decode=DecodeConfig(), estimate_flow=EstimateFlowConfig(estimator="dis")
        ),
    )


def shards(url: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in url.glob("shards/*.parquet")}


def interrupted(config: SegmentConfig, monkeypatch: pytest.MonkeyPatch, train: Callable) -> None:
    """Adapts until `train`, which takes the place of training, is interrupted."""

    def stops(given: TrainConfig) -> None:
        train(given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(page, "train", stops)
        with pytest.raises(KeyboardInterrupt):
            adapt(config)


@pytest.mark.ray
@pytest.mark.slow
def test_an_interrupted_adaptation_goes_on_and_a_finished_one_stays(
    ray_local: None, config: SegmentConfig, one_process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "training_cpus", lambda: 1)
    given: list[TrainConfig] = []
    interrupted(config, monkeypatch, given.append)
    output, adaptation = Path(config.output), Path(config.output, "adaptation")
    flow = shards(adaptation / "flow")
    assert flow
    interrupted(
        config,
        monkeypatch,
        lambda training: one_process.interrupt(with_initial_content(training), in_step=30),
    )
    checkpoint, _ = Checkpoints(str(adaptation / "model" / "training")).newest()
    done = json.loads(_header(checkpoint.content)["__metadata__"]["state"])["history"]
    assert 0 < len(done) < NUM_STEPS

    summary = adapt(config)
    assert summary["units"] == {"done": 1, "skipped": 0, "quarantined": 0}
    assert summary == json.loads((output / "summary.json").read_text())
    unexplained = summary["adaptation"]["unexplained_flow"]
    assert unexplained["after"] < unexplained["before"]
    assert shards(adaptation / "flow") == flow
    assert json.loads((adaptation / "model" / "metrics.json").read_text())[: len(done)] == done
    cache = CacheConfig(directory=config.output + "-cache")
    whole = replace(with_initial_content(given[0]), output=config.output + "-whole", cache=cache)
    one_process.train(whole)
    weights, expected = (
        load_file(Path(folder) / "segmenter.safetensors") for folder in (adaptation / "model", whole.output)
    )
    assert all(weights[name].equal(expected[name]) for name in expected)

    masks, report = shards(output), (output / "report.html").read_text()
    assert len(masks) == len(shards(adaptation / "before")) == 1
    assert report.count("<figure") == 10
    assert report.count('src="data:image/webp') == 10 * 4 - 1  # the last frame has no flow
    assert "before</span><span>after" in report
    assert verify(config.output) == []
    again = adapt(config)
    assert again["units"] == {"done": 0, "skipped": 1, "quarantined": 0}
    assert again["adaptation"] == summary["adaptation"]
    assert (shards(output), (output / "report.html").read_text()) == (masks, report)


def test_images_are_refused_before_anything_is_written(config: SegmentConfig, tmp_path: Path) -> None:
    (tmp_path / "mixed").mkdir()
    (tmp_path / "my.mp4").rename(tmp_path / "mixed" / "my.mp4")
    cv2.imwrite(str(tmp_path / "mixed" / "photo.jpg"), np.zeros((20, 20, 3), np.uint8))
    for images in (tmp_path / "mixed", tmp_path / "mixed" / "photo.jpg"):
        for command in (adapt, describe):
            with pytest.raises(GwmError, match=r"photo\.jpg is a single image: give videos"):
                command(replace(config, images=str(images)))
    assert not Path(config.output).exists()


def test_weights_that_are_missing_are_refused_with_a_way_out(config: SegmentConfig) -> None:
    nowhere = EstimateFlowConfig(estimator="raft_small", weights="/nowhere/raft.pth")
    with pytest.raises(
        GwmError, match=r"adaptation\.estimate_flow\.weights: .*estimator=dis needs no weights"
    ):
        adapt(replace(config, adaptation=replace(config.adaptation, estimate_flow=nowhere)))
    assert not Path(config.output).exists()


def test_dry_run_says_how_long(config: SegmentConfig) -> None:
    assert describe(config)["adapt"] == f"{NUM_STEPS} steps"
    assert describe(replace(config, adaptation=AdaptationConfig()))["adapt"] == "about 5 minutes"
    assert "adapt" not in describe(replace(config, adapt=False))


def test_what_was_made_otherwise_is_refused(config: SegmentConfig, tmp_path: Path) -> None:
    masks = str(tmp_path / "plain")
    Dataset.open(masks, kind="masks", config=replace(config, adapt=False), schema_version=1)
    with pytest.raises(GwmError, match="masks of a model that was not adapted"):
        adapt(replace(config, output=masks))
    assert not storage.exists(storage.join(masks, "adaptation"))

    begun = storage.join(config.output, "adaptation")
    Dataset.open(begun, kind="adaptation", config=page.pin_adaptation(config), schema_version=1)
    longer = replace(config.adaptation, num_steps=2 * NUM_STEPS)
    with pytest.raises(GwmError, match=rf"num_steps: there {NUM_STEPS}, now {2 * NUM_STEPS}"):
        adapt(replace(config, adaptation=longer))


def test_the_objective_is_the_one_of_the_models_training(train_config: TrainConfig, tiny_model: str) -> None:
    assert objective_of(tiny_model) == TrainConfig().objective
    objective = replace(train_config.objective, kind="composite", flow_clip_px=7.5)
    trained = replace(train_config, objective=objective)
    Dataset.open(trained.output, kind="model", config=trained, schema_version=1)
    assert objective_of(trained.output) == objective
