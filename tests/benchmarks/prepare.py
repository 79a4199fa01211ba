"""gwm prepare as a pipeline, against a bare loop of decoding, flow and shards in one process on the same cores.

The pipeline's start-up does not count: its frames are counted from the first finished unit on. Prints the share of
time in which the flow workers compute, and the most memory that Ray's object store held.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import ray
import torch
from common import DATA, report, rounded
from decode import write_video

from pipeline.config import EstimateFlowConfig, PrepareConfig
from pipeline.dataset import Dataset
from pipeline.placement import start_ray
from pipeline.prepare import flow_shards, videos_of
from pipeline.records import FLOW_SCHEMA_VERSION
from pipeline.stages.decode_clip import decode_clip
from pipeline.stages.estimate_flow import EstimateFlow
from pipeline.stages.plan_clips import plan_clips
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


def piped(config: PrepareConfig) -> tuple[float, float]:
    """Frames a second of the pipeline from its first finished unit on, and the busy share of its flow workers."""
    first = last = busy = 0.0
    frames = 0
    for row in flow_shards(config, dataset_of(config)).iter_rows():
        last = time.perf_counter()
        if not first:
            first = last
            continue
        frames += row["num_rows"]
        busy += row["seconds_estimate_flow"]
    workers = int(ray.cluster_resources()["CPU"])
    return frames / (last - first), busy / (last - first) / workers


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


def main() -> None:
    """Prints one JSON line for each target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--estimators", nargs="+", default=list(WEIGHTS), choices=list(WEIGHTS))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "videos"
        folder.mkdir()
        for number in range(VIDEOS):
            write_video(folder / f"{number}.mp4", REPEATS)
        for estimator in arguments.estimators:
            flow = EstimateFlowConfig(estimator=estimator, weights=WEIGHTS[estimator])

            def config(name: str, flow: EstimateFlowConfig = flow) -> PrepareConfig:
                output = str(Path(temporary) / f"{flow.estimator}-{name}")
                return PrepareConfig(videos=str(folder), output=output, estimate_flow=flow)

            alone = bare(config("bare"))
            start_ray(config("ray").placement, config("ray").placement.estimate_flow)
            (rate, busy), peak = peak_store_bytes(lambda: piped(config("ray")))
            shards = {
                name: {path.name for path in Path(temporary).glob(f"{estimator}-{name}/shards/*")}
                for name in ("bare", "ray")
            }
            assert len(shards["bare"]) == len(shards["ray"]) > 0
            case = f"{estimator}, {VIDEOS * REPEATS * 50} frames, both gaps"
            report(
                "prepare",
                case,
                "times the frames/s of a bare loop on the same cores",
                rate / alone,
                at_least=0.85,
                cores=int(ray.cluster_resources()["CPU"]),
                **rounded(bare_frames_per_s=alone, frames_per_s=rate),
            )
            report("prepare", case, "busy share of the flow workers", busy)
            report(
                "prepare",
                case,
                "GiB of Ray's object store, at most",
                float(np.round(peak / 2**30, 3)),
                at_most=1.0,
            )


if __name__ == "__main__":
    main()
