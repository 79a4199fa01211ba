import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray.train
import torch
from safetensors.torch import load_file

from gwm_model import load_segmenter, save_segmenter
from gwm_model.backbone import Backbone
from gwm_model.config import BackboneConfig, OptimizerConfig, SegmenterConfig
from gwm_model.segmenter import build_segmenter
from pipeline.config import CacheConfig, TrainConfig
from pipeline.dataset import Dataset
from pipeline.errors import GwmError
from pipeline.flow_dataset import open_flow_dataset, refuse_other_flow
from pipeline.placement_config import ClusterPlacement, StagePlacement, TrainPlacement
from pipeline.train import train, with_absolute_paths, with_initial_content
from pipeline.train_worker import initial_segmenter
from pipeline.training_state import TrainingState

Events = list[dict[str, Any]]


def final_state(events: Events) -> TrainingState:
    return events[-1]["state"]


def learned(state: TrainingState) -> list[tuple[float, float, float]]:
    """What training computed at each logged step, without the times that it took."""
    return [(entry["step"], entry["loss"], entry["gradient_norm"]) for entry in state.history]


def weights_of(config: TrainConfig) -> dict[str, torch.Tensor]:
    return load_file(Path(config.output) / "segmenter.safetensors")


def assert_same_weights(left: TrainConfig, right: TrainConfig) -> None:
    weights, expected = weights_of(left), weights_of(right)
    assert weights.keys() == expected.keys()
    for name in expected:
        assert torch.equal(weights[name], expected[name]), name


@pytest.mark.parametrize(
    ("architecture", "threads"), [("unet", 1), ("maskformer", 1), ("maskformer", 2), ("trained backbone", 1)]
)
def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    architecture: str, threads: int, train_config: TrainConfig, maskformer: SegmenterConfig, one_process
) -> None:
    """Bit for bit on a CPU: with the cache of the killed run, and on another machine, without it."""
    trained = replace(maskformer, backbone=replace(maskformer.backbone, frozen=False))
    segmenters = {"unet": train_config.segmenter, "maskformer": maskformer, "trained backbone": trained}
    config = replace(
        train_config,
        segmenter=segmenters[architecture],
        log_every_steps=4,  # checkpoints lie between logged steps
        picture_every_steps=100,
        placement=TrainPlacement(train_worker=StagePlacement(num_cpus=threads)),
    )
    whole = replace(
        config, output=config.output + "-whole", cache=CacheConfig(directory=config.output + "-cache")
    )
    expected = learned(final_state(one_process.train(whole)))
    assert [step for step, *_ in expected] == [4, 8, 12]

    one_process.interrupt(config, in_step=8)
    elsewhere = replace(
        config, output=config.output + "-moved", cache=CacheConfig(directory=config.output + "-empty")
    )
    shutil.copytree(Path(config.output), elsewhere.output)
    for resumed in (config, elsewhere):
        events = one_process.train(resumed)
        assert (
            events[0]["state"].step == 12
        )  # the state is one object in this process, and ends at the last step
        assert [event["values"]["step"] for event in events if "values" in event] == [8, 12]
        assert learned(final_state(events)) == expected
        assert_same_weights(resumed, whole)


def test_a_frame_passes_the_frozen_backbone_once(
    train_config: TrainConfig, maskformer: SegmenterConfig, one_process, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    original = Backbone.forward

    def counting(self: Backbone, images: torch.Tensor):
        seen.extend(hash(image.numpy().tobytes()) for image in images)
        return original(self, images)

    monkeypatch.setattr(Backbone, "forward", counting)
    one_process.train(replace(train_config, segmenter=maskformer, picture_every_steps=1000, num_steps=11))
    drawn = [image for image in seen if seen.count(image) == 1]
    repeated = len(seen) - len(set(seen))
    assert len(drawn) >= 20  # every frame of both videos was drawn in 11 batches of 4
    assert repeated <= 6  # the pictures of the last step look at the frames anew


def test_bfloat16_learns_as_float32_does(
    train_config: TrainConfig, maskformer: SegmenterConfig, one_process
) -> None:
    losses = {}
    for precision in ("float32", "bfloat16"):
        config = replace(
            train_config,
            segmenter=maskformer,
            precision=precision,
            output=f"{train_config.output}-{precision}",
        )
        events = one_process.train(config)
        losses[precision] = [event["values"]["loss"] for event in events if "values" in event]
    assert losses["bfloat16"] != losses["float32"]  # the networks did run in it
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.05)


def test_training_leaves_a_segmenter_losses_and_pictures(train_config: TrainConfig, one_process) -> None:
    events = one_process.train(train_config)
    assert [event["step"] for event in events if "picture" in event] == [6, 12]
    assert all(event["picture"][:2] == b"\xff\xd8" for event in events if "picture" in event)
    assert [event["values"]["step"] for event in events if "values" in event] == list(range(1, 13))
    assert np.isfinite(learned(final_state(events))).all()
    assert load_segmenter(train_config.output).config == train_config.segmenter


def test_a_bad_batch_is_skipped_and_counted(train_config: TrainConfig, one_process, poison) -> None:
    """Frame 0 is drawn once in each epoch of 5 steps."""
    poison(train_config, range(1))
    state = final_state(one_process.train(train_config))
    assert state.stopped == ""
    assert state.step == 12
    bad = [entry["step"] for entry in state.history if "loss" not in entry]
    assert len(bad) == state.bad_batches == state.history[-1]["bad_batches"]
    assert 2 <= len(bad) <= 3
    assert all(torch.isfinite(tensor).all() for tensor in weights_of(train_config).values())


def test_too_many_bad_batches_end_the_run_where_an_interrupted_one_ends_too(
    train_config: TrainConfig, one_process, poison
) -> None:
    """The count is part of the checkpoint; the sentence says what to look at; nothing is published."""
    poison(train_config, range(1))
    strict = replace(train_config, max_bad_batches=1)
    events = one_process.train(strict)
    ended = final_state(events)
    assert ended.bad_batches == 2
    assert 5 < ended.step <= 10  # in the second epoch
    assert f"the last was step {ended.step}" in ended.stopped
    assert "max_bad_batches=1" in ended.stopped
    assert any(f"{video}.mp4" in ended.stopped for video in (0, 1))
    assert not (Path(strict.output) / "segmenter.json").exists()

    again = final_state(one_process.train(strict))  # from the checkpoint, with the count kept there
    assert (again.step, again.bad_batches, again.stopped) == (ended.step, 2, ended.stopped)
    patient = final_state(one_process.train(replace(strict, max_bad_batches=5)))
    assert (patient.step, patient.stopped) == (12, "")


def test_a_diverging_run_ends_with_a_sentence(train_config: TrainConfig, one_process) -> None:
    wild = OptimizerConfig(learning_rate=1e30, warmup_steps=0)
    events = one_process.train(replace(train_config, optimizer=wild, max_bad_batches=3))
    assert "lower optimizer.learning_rate" in final_state(events).stopped
    assert final_state(events).bad_batches == 4


def test_a_preemption_notice_brings_one_checkpoint(train_config: TrainConfig, one_process) -> None:
    """The checkpoint is written at the first look after the notice, and the run goes on from it bit for bit."""
    config = replace(train_config, num_steps=34, checkpoint_every_steps=1000)
    whole = replace(config, output=config.output + "-whole")
    expected = learned(final_state(one_process.train(whole)))

    one_process.notice = ray.train.PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={"node": [0]})
    one_process.interrupt(config, in_step=33)
    (checkpoint,) = Path(config.output, "training").iterdir()
    assert checkpoint.name.startswith("step_000000010-")  # not once more at each of the later looks
    events = one_process.train(config)
    assert next(event for event in events if "values" in event)["values"]["step"] == 11
    assert learned(final_state(events)) == expected
    assert_same_weights(config, whole)


def test_weights_that_do_not_fit_are_refused_before_anything_is_written(
    train_config: TrainConfig, maskformer: SegmenterConfig, tmp_path: Path
) -> None:
    (tmp_path / "foreign.safetensors").write_bytes(b"nothing")
    backbone = replace(maskformer.backbone, weights=str(tmp_path / "foreign.safetensors"))
    with pytest.raises(GwmError, match="does not fit the backbone"):
        train(replace(train_config, segmenter=replace(maskformer, backbone=backbone)))
    assert not Path(train_config.output).exists()


@pytest.mark.parametrize("weights", ["vits14.safetensors", "pretrained"])
def test_workers_find_what_is_relative_to_the_command(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("vits14.safetensors", "pretrained"):
        Path(name).touch()
    segmenter = SegmenterConfig(backbone=BackboneConfig(weights=weights))
    found = with_absolute_paths(TrainConfig(flow="s3://bucket/flow", output="model", segmenter=segmenter))
    assert found.output == str(tmp_path / "model")
    is_file = weights != "pretrained"  # a word, whatever lies there
    assert found.segmenter.backbone.weights == (str(tmp_path / weights) if is_file else weights)


def test_a_run_is_not_continued_with_another_configuration_or_other_flow(
    train_config: TrainConfig, one_process, tmp_path: Path
) -> None:
    """Nothing of the run changes; a dataset at another place with the same shards would be the same flow."""
    flow = tmp_path / "flow"
    shutil.copytree(train_config.flow, flow)
    config = replace(train_config, flow=str(flow), output=str(tmp_path / "mine"))
    started = Dataset.open(config.output, kind="model", config=config, schema_version=1)
    with pytest.raises(
        GwmError, match=r"made with other settings \(optimizer.learning_rate: there 0.001, now 0.1\)"
    ):
        train(replace(config, optimizer=OptimizerConfig(learning_rate=0.1)))
    with pytest.raises(GwmError, match="made with other settings"):
        train(replace(config, flow=train_config.flow))

    refuse_other_flow(config.output, open_flow_dataset(config.flow))
    before = sorted(path.read_bytes() for path in Path(started.url).iterdir())
    dataset = Dataset.read(config.flow, kind="flow")
    Path(next(dataset.shards())).unlink()
    dataset.write_manifest()
    with pytest.raises(
        GwmError, match=r"has changed since training .* began \(4 shards with 20 frames then, 3 with"
    ):
        train(config)
    assert sorted(path.read_bytes() for path in Path(started.url).iterdir()) == before


def test_training_starts_from_a_given_model(
    train_config: TrainConfig, maskformer: SegmenterConfig, one_process
) -> None:
    """Its weights, the frozen backbone's too; the weights that the configuration names are not looked for."""
    first = replace(train_config, segmenter=maskformer, num_steps=3, output=train_config.output + "-first")
    one_process.train(first)
    elsewhere = replace(maskformer, backbone=replace(maskformer.backbone, weights="/nowhere/weights.pth"))
    config = replace(first, segmenter=elsewhere, initial_model=first.output, output=train_config.output)
    initial = initial_segmenter(config)
    for name, tensor in weights_of(first).items():
        assert torch.equal(initial.state_dict()[name], tensor), name
    one_process.train(config)
    trained, given = weights_of(config), weights_of(first)
    changed = {name.partition(".")[0] for name in given if not torch.equal(trained[name], given[name])}
    assert changed == {"head"}


def test_a_model_to_start_from_must_be_the_same_segmenter_and_stay_the_same(
    train_config: TrainConfig, tiny_model: str, tmp_path: Path
) -> None:
    config = replace(train_config, initial_model=tiny_model)
    with pytest.raises(
        GwmError, match=r"another segmenter \(num_masks: there 3, here 2; height_px: there 32, here 48"
    ):
        train(config)
    assert not Path(config.output).exists()

    mine = Path(shutil.copytree(tiny_model, tmp_path / "mine"))
    same = replace(config, initial_model=str(mine), segmenter=load_segmenter(mine).config)
    Dataset.open(same.output, kind="model", config=with_initial_content(same), schema_version=1)
    save_segmenter(build_segmenter(same.segmenter), mine)
    with pytest.raises(GwmError, match=r"made with other settings \(initial_model_sha256"):
        train(same)


def test_one_worker_of_this_machine_needs_no_ray(
    train_config: TrainConfig, one_process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is more than this machine, or more than one worker, Ray is asked."""

    def start_ray(at: ClusterPlacement) -> None:
        raise RuntimeError("Ray is asked")

    monkeypatch.setattr("pipeline.train.start_ray", start_ray)
    alone = replace(train_config, output=train_config.output + "-alone")
    assert train(alone)["units"] == {"done": 1, "skipped": 0, "quarantined": 0}
    one_process.train(train_config)
    assert_same_weights(alone, train_config)
    elsewhere = replace(train_config.placement, address="127.0.0.1:1")
    for name, changed in {"two": {"num_workers": 2}, "elsewhere": {"placement": elsewhere}}.items():
        with pytest.raises(RuntimeError, match="Ray is asked"):
            train(replace(train_config, output=f"{train_config.output}-{name}", **changed))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused_before_anything_is_written(train_config: TrainConfig) -> None:
    place = replace(train_config.placement, train_worker=StagePlacement(num_gpus=1))
    with pytest.raises(GwmError, match=r"num_gpus=1, but torch finds no GPU on this machine"):
        train(replace(train_config, placement=place))
    assert not Path(train_config.output).exists()
