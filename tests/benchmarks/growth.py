"""How a job grows: flow workers on one cluster, and inputs by the million.

The flow workers here sleep a fixed time for each clip, so that only what surrounds them is measured. The long inputs
are a Parquet list and a made-up listing of a bucket; their units do nothing.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from common import report, rounded
from decode import write_video

import pipeline.prepare
from pipeline import storage
from pipeline.config import DecodeConfig, EstimateFlowConfig, PrepareConfig
from pipeline.dataset import Dataset
from pipeline.listing import each_of_page, listed
from pipeline.placement import start_ray, tasks
from pipeline.placement_config import PreparePlacement, StagePlacement
from pipeline.prepare import flow_shards
from pipeline.records import FLOW_SCHEMA_VERSION, Row
from pipeline.stages.estimate_flow import stored_flow
from pipeline.stages.plan_chunks import inputs_of
from pipeline.stages.plan_clips import videos_of

CLIP_S = 2.0
VIDEOS, IMAGES = 1_000_000, 5_000_000
WATCHED_ROWS = 2000


class SleepingFlow:
    """Stands for a network on a GPU of its own."""

    def __init__(self, config: PrepareConfig, **_: Any) -> None:
        self.log = Path(f"{config.output}-times")
        self.log.mkdir(exist_ok=True)

    def __call__(self, row: Row) -> Row:
        """The clip with no flow, after a while; notes when it was done."""
        time.sleep(CLIP_S)
        with (self.log / str(os.getpid())).open("a") as log:
            log.write(f"{time.time()}\n")
        owned = slice(row["owned"], row["owned"] + row["stop"] - row["start"])
        frames = row["frames"][owned]
        height_px, width_px = frames.shape[-2:]
        none = np.zeros(len(frames), np.bool_)
        flow = stored_flow(
            np.zeros((len(frames), 2, height_px, width_px), np.float32), none, height_px, width_px
        )
        kept = {**row, "frames": frames, **{key: row[key][owned] for key in ("frame_index", "pts", "pts_s")}}
        kept |= {"stored_height_px": height_px, "stored_width_px": width_px, "weights_sha256": ""}
        return {
            **kept,
            "flow_p1": flow,
            "has_flow_p1": none,
            "flow_m1": flow,
            "has_flow_m1": none,
            "seconds_estimate_flow": CLIP_S,
        }


def rate(workers: int, folder: Path) -> float:
    """Clips a second with so many logical GPUs, while each has some: from its first to its last."""
    place = StagePlacement(num_cpus=0, num_gpus=1, num_actors=workers)
    config = PrepareConfig(
        videos=str(folder / f"{workers}/*.mp4"),
        output=str(folder / f"flow-{workers}"),
        decode=DecodeConfig(height_px=48, clip_frames=4),
        estimate_flow=EstimateFlowConfig(estimator="dis"),
        placement=PreparePlacement(estimate_flow=place),
    )
    dataset = Dataset.open(config.output, kind="flow", config=config, schema_version=FLOW_SCHEMA_VERSION)
    with mock.patch.object(pipeline.prepare, "EstimateFlow", SleepingFlow):
        for _ in flow_shards(config, dataset).iter_rows():
            pass
    logs = [log.read_text().split() for log in Path(f"{config.output}-times").iterdir()]
    done = [[float(time_s) for time_s in log] for log in logs]
    assert len(done) == workers
    began, ended = max(min(times) for times in done), min(max(times) for times in done)
    return sum(began < time_s <= ended for times in done for time_s in times) / (ended - began)


def anonymous_bytes() -> int:
    """Memory of this process's own."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def fake_files(_: str) -> Iterator[tuple[str, int]]:
    """The keys of a bucket that nobody has."""
    for number in range(IMAGES):
        yield f"s3://bucket/images/{number // 1000:05d}/{number:08d}-photo.jpg", 100_000


def fake_images() -> Iterator[Row]:
    """The inputs of a prefix of IMAGES keys."""
    with (
        mock.patch.object(storage, "list_file_sizes", fake_files),
        mock.patch.object(storage, "is_folder", return_value=True),
        mock.patch.object(storage, "exists", return_value=False),
    ):
        yield from inputs_of("s3://bucket/images", 64)


def nothing(row: Row) -> list[Row]:
    """Plans a unit that needs no work."""
    return [{"unit": row.get("url") or row["urls"][0]}]


def dispatched(rows: Any) -> tuple[float, list[int]]:
    """Seconds to the first unit, and the driver's memory while the next ones pass."""
    done, memory = Event(), [anonymous_bytes()]

    def look() -> None:
        while not done.wait(0.5):
            memory.append(anonymous_bytes())

    watcher = Thread(target=look, daemon=True)
    began = time.perf_counter()
    plan = each_of_page(partial(nothing))
    units = iter(listed(rows).flat_map(plan, **tasks(StagePlacement(num_cpus=0.25))).iter_rows())
    next(units)
    first_s = time.perf_counter() - began
    watcher.start()
    for _ in range(WATCHED_ROWS):
        next(units)
    done.set()
    watcher.join()
    return first_s, memory


def main() -> None:
    """Prints one JSON line for each target."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    ray.init(address="local", num_cpus=16, num_gpus=8, include_dashboard=False, log_to_driver=False)
    start_ray(PrepareConfig().placement)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rates = {}
        for workers in (1, 2, 4, 8):
            videos = folder / str(workers)
            videos.mkdir()
            for number in range(workers):
                write_video(videos / f"{number}.mp4", 1)
            rates[workers] = rate(workers, folder)
        for workers in (2, 4, 8):
            report(
                "growth",
                f"1 to {workers} flow workers, {CLIP_S:g} s a clip",
                "of linear",
                rates[workers] / rates[1] / workers,
                at_least=0.9,
                **rounded(clips_per_s=rates[workers]),
            )
        paths = pa.table({"url": [f"s3://bucket/videos/{number:07d}.mp4" for number in range(VIDEOS)]})
        pq.write_table(paths, folder / "videos.parquet")
        del paths
        inputs = {
            f"a Parquet list of {VIDEOS:,} videos": partial(videos_of, str(folder / "videos.parquet")),
            f"a prefix of {IMAGES:,} images": fake_images,
        }
        for case, rows in inputs.items():
            first_s, memory = dispatched(rows)
            report("growth", case, "seconds to the first unit", first_s, at_most=60)
            report("growth", case, "GiB of the driver, at most", max(memory) / 2**30, at_most=1.5)
            quarter = len(memory) // 4
            growth = np.mean(memory[-quarter:]) / np.mean(memory[quarter : 2 * quarter])
            report("growth", case, "driver's memory, last quarter over second", float(growth), at_most=1.1)


if __name__ == "__main__":
    main()
