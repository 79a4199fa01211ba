"""gwm prepare as a pipeline, against a bare loop of decoding, flow and shards in one process on the same cores.

The pipeline's start-up does not count. Prints the share of time in which the flow workers compute, and the most memory
that Ray's object store held.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread
from typing import Any

import ray
import torch
from common import DATA, report, report_pipeline, steady_rates
from decode import write_video

from pipeline.config import DecodeConfig, EstimateFlowConfig, PrepareConfig
from pipeline.dataset import Dataset
from pipeline.placement import start_ray
from pipeline.prepare import flow_shards
from pipeline.records import FLOW_SCHEMA_VERSION
from pipeline.stages.decode_clip import decode_clip
from pipeline.stages.estimate_flow import EstimateFlow
from pipeline.stages.plan_clips import plan_clips, videos_of
from pipeline.stages.write_flow_shard import write_flow_shard

VIDEOS, REPEATS = 4, 2
WEIGHTS = {"dis": "pretrained", "raft_small": str(DATA / "weights/raft-small.pth")}


def dataset_of(config: PrepareConfig) -> Dataset:
    """A fresh flow dataset."""
    return Dataset.open(config.output, kind="flow", config=config, schema_version=FLOW_SCHEMA_VERSION)


def bare(config: PrepareConfig) -> float:
    """Frames a second of the stages called one after the other, with all cores for the network."""
    dataset = dataset_of(config)
    flow = EstimateFlow(config, "cpu", torch.get_num_threads())
    clips = [
        clip for video in videos_of(config.videos) for clip in plan_clips(video, config, dataset, "bare")
    ]
    decode_clip(clips[0], config)  # the decoding child is there
    began, frames = time.perf_counter(), 0
    for clip in clips:
        frames += write_flow_shard(flow(decode_clip(clip, config)), config, dataset)["num_rows"]
    return frames / (time.perf_counter() - began)


def peak_store_bytes(run: Callable[[], Any]) -> tuple[Any, int]:
    """What a run returns, and the most bytes in Ray's object store meanwhile."""
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    state, done, peak = get_state_from_address(ray.get_runtime_context().gcs_address), Event(), [0]

    def look() -> None:
        while not done.wait(0.2):
            used = get_memory_info_reply(state).store_stats.object_store_bytes_used
            peak[0] = max(peak[0], used)

    watcher = Thread(target=look, daemon=True)
    watcher.start()
    try:
        return run(), peak[0]
    finally:
        done.set()
        watcher.join()


def measure(estimator: str, folder: Path) -> None:
    """Three lines for one network on the videos of `folder`."""
    flow = EstimateFlowConfig(estimator=estimator, weights=WEIGHTS[estimator])
    alone_config, config = (
        PrepareConfig(
            videos=str(folder / "*.mp4"),
            output=str(folder / f"{estimator}-{name}"),
            decode=DecodeConfig(height_px=240, clip_frames=16),
            estimate_flow=flow,
        )
        for name in ("bare", "ray")
    )
    alone = bare(alone_config)
    start_ray(config.placement, config.placement.estimate_flow)
    units = flow_shards(config, dataset_of(config))
    (rate, busy), peak = peak_store_bytes(lambda: steady_rates(units.iter_rows(), "seconds_estimate_flow"))
    cores = int(ray.cluster_resources()["CPU"])
    shards = [len(list(Path(each.output).glob("shards/*"))) for each in (alone_config, config)]
    assert shards[0] == shards[1] > 0
    case = f"{estimator}, {VIDEOS * REPEATS * 50} frames, both gaps"
    report_pipeline("prepare", case, "frames", rate=rate, bare=alone, busy_share=busy / cores, cores=cores)
    report("prepare", case, "GiB of Ray's object store, at most", peak / 2**30, at_most=1.0)


def main() -> None:
    """Prints one JSON line for each target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--estimators", nargs="+", default=list(WEIGHTS), choices=list(WEIGHTS))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for number in range(VIDEOS):
            write_video(Path(temporary) / f"{number}.mp4", REPEATS)
        for estimator in arguments.estimators:
            measure(estimator, Path(temporary))


if __name__ == "__main__":
    main()
