"""gwm segment: images or videos and a segmenter -> mask shards, with Ray Data."""

import time
from dataclasses import asdict
from typing import Any

import ray.data

from pipeline.config import SegmentConfig
from pipeline.dataset import Dataset
from pipeline.inference import ModelCard, PinnedConfig, pin, read_model_card
from pipeline.inputs import find_images
from pipeline.load_config import NOT_PART_OF_A_RESULT, fingerprint
from pipeline.masks import MASK_SCHEMA_VERSION
from pipeline.placement import actor_pool, start_ray, tasks, torch_device, torch_threads, unwrap
from pipeline.progress import Progress
from pipeline.records import Row
from pipeline.stages.load_chunk import load_chunk
from pipeline.stages.plan_chunks import group_inputs, plan_chunks
from pipeline.stages.segment_images import SegmentImages
from pipeline.stages.write_mask_shard import write_mask_shard
from pipeline.summary import show_summary, write_summary
from pipeline.tracking import Tracker
from pipeline.unit_totals import UnitTotals


def segment(config: SegmentConfig) -> dict[str, Any]:
    """Writes the masks of all images as shards; returns the summary. A rerun does only what is missing."""
    inputs = list(group_inputs(find_images(config.images), config.chunk_images))
    card = read_model_card(config.model)  # refuses a model that does not load before anything is written
    pinned = pin(config, card)
    dataset = Dataset.open(config.output, kind="masks", config=pinned, schema_version=MASK_SCHEMA_VERSION)
    if config.retry_quarantined:
        dataset.clear_quarantine()
    start_ray(config.placement.address)
    job = {"command": "segment", "output": config.output, "fingerprint": fingerprint(pinned)}
    tracker = Tracker.start(config.tracking, run_config=pinned, **job)
    began, totals, num_errors = time.monotonic(), UnitTotals(), 0
    try:
        with Progress(unit="chunks") as progress:
            for row in mask_shards(inputs, pinned, card, dataset).iter_rows():
                totals.add(row)
                num_errors += row["num_errors"]
                progress.advance(row["num_units"], images=totals.num_rows, errors=num_errors)
                tracker.log_metrics({**totals.metrics(), "errors": num_errors}, step=totals.units.total())
        manifest = dataset.write_manifest(totals.entries)
    except BaseException as error:
        tracker.finish("FAILED" if isinstance(error, Exception) else "KILLED")
        raise unwrap(error) from error
    summary = write_summary(
        **job,
        counts=totals.units,
        seconds={**totals.seconds, "total": time.monotonic() - began},
        images=totals.num_rows,
        errors=num_errors,
        bytes=totals.num_bytes,
        dataset=asdict(manifest),
    )
    tracker.finish("FINISHED")
    show_summary(summary, f"gwm evaluate --config conf/evaluate.yaml masks={config.output}")
    return summary


def mask_shards(
    inputs: list[Row], config: PinnedConfig, card: ModelCard, dataset: Dataset
) -> ray.data.Dataset:
    """Images and videos -> chunks -> images -> masks -> shards; from plan_chunks on, a row is a chunk."""
    at, place = config.placement, config.placement.segment_images
    unit_names = {"fingerprint": fingerprint(config, exclude=(*NOT_PART_OF_A_RESULT, "images", "model"))}
    loading, work = {"config": config, "card": card}, {"config": config, "dataset": dataset}
    network = {"config": config, "device": torch_device(place), "num_threads": torch_threads(place)}
    return (
        ray.data.from_items(inputs)  # one row a video, or chunk_images images
        # 1:N, reads packets; without the next line one task would load all chunks of a video in turn
        .flat_map(plan_chunks, fn_kwargs=work | unit_names, **tasks(at.plan_chunks))
        .repartition(target_num_rows_per_block=1)
        .map(load_chunk, fn_kwargs=loading, **tasks(at.load_chunk))  # 1:1, codec bound
        .map(SegmentImages, fn_constructor_kwargs=network, **actor_pool(place))  # 1:1, bound by the network
        .map(write_mask_shard, fn_kwargs=work, **tasks(at.write_mask_shard))  # 1:1, storage bound
    )
