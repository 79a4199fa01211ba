"""What adaptation changed: the flow that is left unexplained, and masks side by side."""

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gwm_model.config import ObjectiveConfig
from gwm_model.training import SegmenterLoss
from pipeline import storage
from pipeline.batches import BatchLoader, Share
from pipeline.config import SegmentConfig, TrainConfig
from pipeline.dataset import Dataset
from pipeline.flow_dataset import FlowDataset, open_flow_dataset
from pipeline.formats.shards import Inputs
from pipeline.inference import open_segmenter
from pipeline.masks import MaskRow
from pipeline.report.curves import read_losses
from pipeline.report.draw import Wanted
from pipeline.report.page import Report, command_time
from pipeline.report.samples import chosen_masks, drawn, same_frames, strips_of_masks, wanted_mask
from pipeline.report.undone import quarantined
from pipeline.sample_cache import SampleCache
from pipeline.segment_report import RANKED_BY, written_pictures

FRAMES_COMPARED = 32
"""Frames, spread over the videos, whose flow tells the models apart."""


def compare_models(models: Mapping[str, str], flow: str, objective: ObjectiveConfig) -> dict[str, float]:
    """The flow that each model leaves unexplained."""
    frames = open_flow_dataset(flow)
    return {name: unexplained_flow(model, frames, objective) for name, model in models.items()}


@torch.no_grad()
def unexplained_flow(model: str, flow: FlowDataset, objective: ObjectiveConfig) -> float:
    """The flow term of the objective, the mean over a few frames of the dataset, always the same ones."""
    segmenter, _ = open_segmenter(model, "cpu")
    measure = SegmenterLoss(segmenter, replace(objective, appearance_weight=0.0)).eval()
    ids = np.linspace(0, flow.num_frames - 1, min(flow.num_frames, FRAMES_COMPARED)).astype(int).tolist()
    with tempfile.TemporaryDirectory(prefix="gwm-") as folder:
        nothing_kept = SampleCache(Path(folder), flow.num_frames, max_bytes=0)
        config = TrainConfig(segmenter=segmenter.config, objective=objective)
        loader = BatchLoader(flow, segmenter, nothing_kept, config)
        losses = [float(measure(loader.batch([frame], 0, Share()).to("cpu"))) for frame in ids]
    return float(np.mean(losses))


def sentence(unexplained: Mapping[str, float]) -> str:
    """The values in words."""
    return ", ".join(f"{value:.3f} {name}" for name, value in unexplained.items())


def make_report(
    config: SegmentConfig, summary: Mapping[str, Any], below: Callable[[str], str], state: str
) -> Report:
    """The report's content, read back from what the commands wrote; `below` gives paths in the adaptation's folder."""
    own = ("flow", "model", "before")
    summaries = [json.loads(storage.read_bytes(storage.join(below(name), "summary.json"))) for name in own]
    adaptation = summary["adaptation"]
    after = Dataset.read(config.output, kind="masks")
    rows = chosen_masks(after, config.report.num_samples)
    before = same_frames(Dataset.read(below("before"), kind="masks"), rows)
    strips = strips_of_masks(rows, Inputs(config.images, config.decode), partial(_wanted, before))
    return Report(
        title="A segmenter adapted to its videos",
        lead="The segmenter was trained further on these videos alone, by their optical flow and without any label. "
        "'before' are the masks of the model as it was given, 'after' those of the adapted one; each is made from "
        f"its frame alone. The samples are spread evenly over the videos; their {RANKED_BY} is the adapted network's.",
        facts={
            "videos": config.images,
            "model": config.model,
            "optical flow": config.adaptation.estimate_flow.estimator,
            "training": f"{adaptation['num_steps']} steps",
            "flow left unexplained": f"{sentence(adaptation['unexplained_flow'])} (the training loss, without labels)",
        },
        samples=drawn(strips, config.decode, flow=below("flow")),
        ranked_by=RANKED_BY,
        losses=read_losses(below("model")),
        undone=[*quarantined(Dataset.read(below("flow"), kind="flow")), *quarantined(after)],
        num_undone=summaries[0]["units"]["quarantined"] + summary["units"]["quarantined"],
        times=[command_time(each) for each in (*summaries, summary)],
        links=written_pictures(after.url),
        state=state,
    )


def _wanted(before: Mapping[tuple[str, int | None], MaskRow], row: MaskRow) -> Wanted:
    """A frame with the masks of both models; regions and objects are left out."""
    earlier = before.get((row.source, row.frame_index))
    masks = {"before": None if earlier is None else earlier.mask_rle, "after": row.mask_rle}
    return replace(wanted_mask(row), masks=masks, regions=(), objects=())
