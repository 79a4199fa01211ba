"""How fast training goes on the machine that it will run on, and so how many steps fit into a time."""

import time
from dataclasses import dataclass

import numpy as np

from pipeline.batches import Share
from pipeline.train_worker import Rank, TrainJob

STEPS_TIMED = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRate:
    """What training costs."""

    frame_s: float
    """Reading a frame for the first time, its features included."""
    step_s: float
    """A step whose frames are in the cache."""

    def steps_within(self, seconds: float, *, batch_size: int, num_frames: int) -> int:
        """Steps that fit into a time, at least one: in the first epoch each frame is read, later ones only train."""
        first_epoch_s = num_frames * (self.frame_s + self.step_s / batch_size)
        if seconds <= first_epoch_s:
            steps = seconds / (batch_size * self.frame_s + self.step_s)
        else:
            steps = (seconds - num_frames * self.frame_s) / self.step_s
        return max(1, int(steps))


def measure_rate(job: TrainJob) -> TrainingRate:
    """Times one batch and a few steps of a job that has not begun; leaves nothing but frames in its cache."""
    rank = Rank(job, Share())
    ids = next(rank.loader.frame_ids(job.config.batch_size, 0))
    began = time.monotonic()
    last = job.config.num_steps - 1  # steps of the second half cost more
    batch = rank.loader.batch(ids, last, rank.share).to(rank.loader.device)
    frame_s = (time.monotonic() - began) / len(ids)
    for _ in range(STEPS_TIMED):
        rank.step(batch)
    return TrainingRate(
        frame_s=frame_s, step_s=float(np.median([values["step_s"] for values in rank.state.recent]))
    )
