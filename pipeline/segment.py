"""gwm segment: images or videos and a segmenter -> mask shards, with Ray Data."""

import time
from dataclasses import asdict
from functools import partial
from typing import Any

import ray.data

from pipeline.config import SegmentConfig
from pipeline.dataset import Dataset
from pipeline.inference import check_refinement, read_model_card
from pipeline.inputs import absolute_spec, find_images
from pipeline.job_progress import JobProgress
from pipeline.listing import each_of_page, listed
from pipeline.load_config import fingerprint
from pipeline.masks import MASK_SCHEMA_VERSION
from pipeline.model_card import ModelCard, PinnedConfig, pin, with_absolute_paths
from pipeline.overlays import say_where_to_look, write_overlays
from pipeline.placement import actor_pool, start_ray, tasks, torch_device, torch_threads, unwrap
from pipeline.registered_model import with_models_copied
from pipeline.segment_report import write_segment_report
from pipeline.stages.load_chunk import load_chunk
from pipeline.stages.plan_chunks import inputs_of, plan_chunks
from pipeline.stages.refine_masks import refine_masks
from pipeline.stages.segment_images import SegmentImages
from pipeline.stages.write_mask_shard import write_mask_shard
from pipeline.summary import show_summary, write_summary
from pipeline.tracking import Tracker
from pipeline.unit_totals import UnitTotals


def segment(config: SegmentConfig) -> dict[str, Any]:
    """Writes the masks of all images as shards; returns the summary. A rerun does only what is missing."""
    check_refinement(config.refine)
    next(find_images(config.images))  # refuses an input without images
    config = with_models_copied(config)
    card = read_model_card(config.model, config.input_scales)  # refuses a wrong model; nothing is written yet
    pinned = pin(config, card)
    dataset = Dataset.open(config.output, kind="masks", config=pinned, schema_version=MASK_SCHEMA_VERSION)
    if config.retry_quarantined:
        dataset = dataset.clear_quarantine()
    start_ray(config.placement, config.placement.segment_images)
    job = {"command": "segment", "output": config.output, "fingerprint": fingerprint(pinned)}
    tracker = Tracker.start(config.tracking, run_config=pinned, **job)
    tracker.use_model(card.sha256)
    began, totals, num_errors = time.monotonic(), UnitTotals(), 0
    try:
        inputs = partial(inputs_of, config.images, config.chunk_images)
        with JobProgress("segment", config.output, unit="chunks", totals=totals, inputs=inputs) as progress:
            for row in mask_shards(pinned, card, dataset).iter_rows():
                totals.add(row)
                num_errors += row["num_errors"]
                progress.advance(row["num_units"], images=totals.num_rows, errors=num_errors)
                tracker.log_metrics({**totals.metrics(), "errors": num_errors}, step=totals.units.total())
            overlays = write_overlays(pinned, dataset, progress, totals)
        manifest = dataset.write_manifest(totals.entries)
        tracker.log_dataset(dataset.url, dataset.manifest(), context="output")
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
        overlays=overlays,
    )
    tracker.finish("FINISHED")
    write_segment_report(config, dataset, summary)
    show_summary(summary, f"gwm evaluate --config conf/evaluate.yaml masks={config.output}")
    say_where_to_look(overlays)
    return summary


def mask_shards(config: PinnedConfig, card: ModelCard, dataset: Dataset) -> ray.data.Dataset:
    """Images and videos -> chunks -> images -> masks -> shards; from plan_chunks on, a row is a chunk."""
    at, place = config.placement, config.placement.segment_images
    plan = partial(plan_chunks, config=config, dataset=dataset, fingerprint=config.unit_fingerprint())
    write = partial(write_mask_shard, config=config, dataset=dataset)
    worker = {"device": torch_device(place), "num_threads": torch_threads(place)}
    network = {"config": with_absolute_paths(config), **worker}  # 1:1, bound by it; every worker holds one
    masks = (
        listed(partial(inputs_of, absolute_spec(config.images), config.chunk_images))  # pages of inputs
        .flat_map(each_of_page(plan), **tasks(at.plan_chunks))  # 1:N, reads packets
        .map(partial(load_chunk, config=config, card=card), **tasks(at.load_chunk))  # 1:1, bound by the codec
        .map(SegmentImages, fn_constructor_kwargs=network, **actor_pool(place))  # type: ignore[arg-type]
    )
    if config.refines_apart:  # 1:1, bound by CPUs, and spread over all of them
        masks = masks.map(partial(refine_masks, config=config), **tasks(at.refine_masks))
    return masks.map(write, **tasks(at.write_mask_shard))  # 1:1, bound by storage; one summary row a chunk
