from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config import TrainConfig
from pipeline.events import Mailbox
from pipeline.flow_dataset import open_flow_dataset
from pipeline.train import cache_name
from pipeline.train_worker import TrainJob
from pipeline.training_rate import TrainingRate, measure_rate


@pytest.mark.parametrize("seconds", [0.5, 3.0, 20.0, 21.0, 300.0])
@pytest.mark.parametrize("num_frames", [1, 40, 10_000])
def test_the_steps_fill_the_time_and_no_more(seconds: float, num_frames: int) -> None:
    rate, batch_size = TrainingRate(frame_s=0.25, step_s=0.5), 8

    def cost(steps: int) -> float:
        return steps * rate.step_s + min(num_frames, steps * batch_size) * rate.frame_s

    steps = rate.steps_within(seconds, batch_size=batch_size, num_frames=num_frames)
    assert steps == 1 or cost(steps) <= seconds
    assert cost(steps + 1) > seconds


def test_measuring_leaves_no_trace_in_the_output(train_config: TrainConfig) -> None:
    flow = open_flow_dataset(train_config.flow)
    config = replace(train_config, num_steps=1)
    rate = measure_rate(
        TrainJob(config=config, flow=flow, cache_name=cache_name(config, flow), events=Mailbox())
    )
    assert rate.frame_s > 0
    assert rate.step_s > 0
    assert not Path(config.output).exists()
