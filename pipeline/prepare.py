"""gwm prepare: videos -> flow shards, with Ray Data."""

import time
from dataclasses import asdict
from functools import partial
from typing import Any

import ray.data

from pipeline.config import PrepareConfig
from pipeline.dataset import Dataset
from pipeline.inputs import absolute_spec, find_videos
from pipeline.job_progress import JobProgress
from pipeline.listing import each_of_page, listed
from pipeline.load_config import NOT_PART_OF_A_RESULT, fingerprint
from pipeline.placement import actor_pool, start_ray, tasks, torch_device, torch_threads, unwrap
from pipeline.progress import say
from pipeline.records import FLOW_SCHEMA_VERSION
from pipeline.stages.decode_clip import decode_clip
from pipeline.stages.estimate_flow import EstimateFlow, open_flow_source, with_absolute_paths
from pipeline.stages.plan_clips import plan_clips, videos_of
from pipeline.stages.write_flow_shard import write_flow_shard
from pipeline.summary import show_summary, write_summary
from pipeline.tracking import Tracker
from pipeline.unit_totals import UnitTotals


def prepare(config: PrepareConfig) -> dict[str, Any]:
    """Writes the flow of all videos as shards; returns the summary. A rerun does only what is missing."""
    next(find_videos(config.videos))  # refuses an input without videos
    open_flow_source(config, "cpu")  # refuses wrong weights before anything is written
    dataset = Dataset.open(config.output, kind="flow", config=config, schema_version=FLOW_SCHEMA_VERSION)
    if config.retry_quarantined:
        dataset = dataset.clear_quarantine()
    start_ray(config.placement, config.placement.estimate_flow)
    job = {"command": "prepare", "output": config.output, "fingerprint": fingerprint(config)}
    tracker = Tracker.start(config.tracking, run_config=config, **job)
    began, totals = time.monotonic(), UnitTotals()
    try:
        videos = partial(find_videos, config.videos)
        with JobProgress("prepare", config.output, unit="clips", totals=totals, inputs=videos) as progress:
            for row in flow_shards(config, dataset).iter_rows():
                totals.add(row)
                if row["reason"]:
                    say(f"{row['source']}: {row['reason']}")
                progress.advance(row["num_units"], **totals.metrics())
                tracker.log_metrics(totals.metrics(), step=totals.units.total())
        manifest = dataset.write_manifest(totals.entries)
        tracker.log_dataset(dataset.url, dataset.manifest(), context="output")
    except BaseException as error:
        tracker.finish("FAILED" if isinstance(error, Exception) else "KILLED")
        raise unwrap(error) from error
    summary = write_summary(
        **job,
        counts=totals.units,
        seconds={**totals.seconds, "total": time.monotonic() - began},
        videos=totals.num_inputs,
        rows=totals.num_rows,
        bytes=totals.num_bytes,
        dataset=asdict(manifest),
    )
    tracker.finish("FINISHED")
    show_summary(summary, f"gwm train --config conf/train.yaml flow={config.output}")
    return summary


def flow_shards(config: PrepareConfig, dataset: Dataset) -> ray.data.Dataset:
    """Videos -> clips -> frames -> flow -> shards; after plan_clips a row, and a block, is one clip."""
    at, flow = config.placement, config.placement.estimate_flow
    names = fingerprint(config, exclude=(*NOT_PART_OF_A_RESULT, "videos"))
    plan = partial(plan_clips, config=config, dataset=dataset, fingerprint=names)
    write = partial(write_flow_shard, config=config, dataset=dataset)
    worker = {"device": torch_device(flow), "num_threads": torch_threads(flow)}
    network = {"config": with_absolute_paths(config), **worker}
    return (
        listed(partial(videos_of, absolute_spec(config.videos)))  # pages of videos
        .flat_map(each_of_page(plan), **tasks(at.plan_clips))  # 1:N, reads packets
        .map(partial(decode_clip, config=config), **tasks(at.decode_clip))  # 1:1, bound by the codec
        # 1:1, bound by the network, which every worker of the pool holds
        .map(EstimateFlow, fn_constructor_kwargs=network, **actor_pool(flow))  # type: ignore[arg-type]
        .map(write, **tasks(at.write_flow_shard))  # 1:1, bound by storage; leaves one summary row a clip
    )
