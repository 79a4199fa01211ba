"""The report of gwm demo: the videos' flow, masks and truth, what was scored, what it took."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa

from pipeline import storage
from pipeline.config import DecodeLimits
from pipeline.dataset import Dataset
from pipeline.evaluate_report import Frame, frame_scores, read_score_table, scores_of
from pipeline.formats.shards import Inputs
from pipeline.masks import MaskRow
from pipeline.predictions import sequence_name
from pipeline.report.curves import read_losses
from pipeline.report.draw import Wanted
from pipeline.report.page import Report, Sample, command_time
from pipeline.report.samples import chosen_masks, drawn, strips_of_masks, wanted_mask
from pipeline.report.undone import quarantined
from pipeline.segment_report import RANKED_BY, written_pictures

NUM_SAMPLES = 24


def make_report(
    source: str,
    summaries: Mapping[str, Mapping[str, Any]],
    below: Callable[[str], str],
    facts: Mapping[str, str],
) -> Report:
    """The report's content, read back from what the commands wrote; `source` are the videos, `facts` what ran."""
    scored = summaries.get("evaluate")
    table = read_score_table(below("scores")) if scored else None
    datasets = [Dataset.read(below(kind), kind=kind) for kind in ("flow", "masks")]
    return Report(
        title="Guess What Moves: objects learned from motion",
        lead="A segmenter was trained on videos without any label: it guesses from a single frame which regions "
        "will move together, and learns from the optical flow how well they do. The flow is used for training "
        "only; every mask below is made from its frame alone.",
        facts=facts,
        headline=(f"{100 * scored['j_mean']:.1f}", "mean J, per cent") if scored else None,
        samples=samples(source, below, table),
        ranked_by="J" if scored else RANKED_BY,
        scores=scores_of(table, scored) if scored else None,
        losses=read_losses(below("model")),
        undone=[one for dataset in datasets for one in quarantined(dataset)],
        num_undone=sum(summary["units"]["quarantined"] for summary in summaries.values()),
        times=[command_time(summary) for summary in summaries.values()],
        links=written_pictures(below("masks"), "masks/"),
    )


def samples(source: str, below: Callable[[str], str], scores: pa.Table | None) -> list[Sample]:
    """A few frames of the videos, with their flow, and with truth and J where there are scores."""
    rows = chosen_masks(Dataset.read(below("masks"), kind="masks"), NUM_SAMPLES)
    j = None if scores is None else frame_scores(scores)
    truth = storage.join(below("truth"), "Annotations", "480p")
    inputs = Inputs(source, DecodeLimits())
    strips = strips_of_masks(rows, inputs, partial(wanted_of, j=j, truth=truth))
    return drawn(strips, DecodeLimits(), flow=below("flow"))


def wanted_of(row: MaskRow, j: Mapping[Frame, float] | None, truth: str) -> Wanted:
    """A frame to draw; with its ground truth, ranked by J, where there are scores."""
    wanted = wanted_mask(row)
    if j is None:
        return wanted
    name, index = sequence_name(row.source), row.frame_index or 0
    sample = replace(wanted.sample, score=j.get((name, index)))
    return replace(wanted, sample=sample, truth_url=storage.join(truth, name, f"{index:05d}.png"))
