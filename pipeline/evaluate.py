"""gwm evaluate: masks, or a segmenter, against ground truth -> scores, with Ray Data."""

import time
from functools import partial
from typing import Any

import ray.data
from rich.console import Console

from pipeline import storage
from pipeline.config import EvaluateConfig
from pipeline.evaluate_report import write_evaluate_report
from pipeline.inference import check_refinement, read_model_card
from pipeline.job_progress import JobProgress
from pipeline.layouts import missing_sentence, read_layout
from pipeline.lineage import link_scored
from pipeline.load_config import fingerprint
from pipeline.model_card import ModelCard, with_absolute_paths
from pipeline.placement import actor_pool, start_ray, tasks, torch_device, torch_threads, unwrap
from pipeline.progress import say
from pipeline.records import Row
from pipeline.registered_model import with_models_copied
from pipeline.score_plan import check_inputs, plan_scores
from pipeline.score_table import (
    parquet_bytes,
    protocol_means,
    score_metrics,
    score_summary,
    score_table,
    screen_table,
)
from pipeline.stages.score_sequence import ScoreSequence, score_sequence
from pipeline.summary import show_summary, write_summary
from pipeline.tracking import Tracker


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Writes scores.parquet, a row a frame, and shows J of every sequence; returns the summary."""
    check_inputs(config)
    truth = read_layout(config.dataset, config.data)
    rows = plan_scores(config, truth)  # a mask or frame that is missing is named before anything is written
    config = with_models_copied(config)
    if config.model is not None:
        check_refinement(config.refine)
    card = read_model_card(config.model, config.input_scales) if config.model is not None else None
    if truth.missing:
        say(f"gwm: {missing_sentence(truth, config.data)}")
    start_ray(config.placement)
    job = {"command": "evaluate", "output": config.output, "fingerprint": fingerprint(config)}
    tracker = Tracker.start(config.tracking, run_config=config, **job)
    link_scored(tracker, config, card)
    began, scored = time.monotonic(), list[Row]()
    try:
        with JobProgress("evaluate", config.output, total=len(rows), unit="sequences") as progress:
            for row in scored_sequences(rows, config, card).iter_rows():
                scored.append(row)
                progress.advance(sequence=row["sequence"])
    except BaseException as error:
        tracker.finish("FAILED" if isinstance(error, Exception) else "KILLED")
        raise unwrap(error) from error
    table = score_table(scored, config.protocol)
    storage.write_bytes(storage.join(config.output, "scores.parquet"), parquet_bytes(table))
    means = protocol_means(table, truth, config.protocol)
    summary = write_summary(
        **job,
        counts={"done": len(scored)},
        seconds={"total": time.monotonic() - began},
        **score_summary(means, truth),
        resized_masks=sum(row["num_resized"] for row in scored),
    )
    tracker.log_metrics(score_metrics(means), are_scores=True)
    tracker.finish("FINISHED")
    Console(stderr=True).print(screen_table(truth, means))
    write_evaluate_report(config, rows, scored, table, summary)
    show_summary(summary, None)
    return summary


def scored_sequences(rows: list[Row], config: EvaluateConfig, card: ModelCard | None) -> ray.data.Dataset:
    """Sequences -> their frames' scores: given masks by tasks, a model's by actors that hold it."""
    place = config.placement.score_sequence
    sequences = ray.data.from_items(rows, override_num_blocks=len(rows))
    if card is None:
        return sequences.map(
            partial(score_sequence, limits=config.decode, num_samples=config.report.num_samples),
            **tasks(place),
        )
    worker = {"card": card, "device": torch_device(place), "num_threads": torch_threads(place)}
    network = {"config": with_absolute_paths(config), **worker}
    pool = actor_pool(place)
    return sequences.map(ScoreSequence, fn_constructor_kwargs=network, **pool)  # type: ignore[arg-type]
