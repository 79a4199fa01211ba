"""A flow dataset made by hand, so that a benchmark needs no pipeline to have one."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config import EstimateFlowConfig, PrepareConfig
from pipeline.dataset import Dataset
from pipeline.records import (
    FLOW_SCHEMA_VERSION,
    encode_flow,
    flow_column,
    flow_parquet_options,
    has_flow_column,
)
from pipeline.stages.write_flow_shard import flow_shard

Flow = npt.NDArray[np.float32]
Clip = tuple[npt.NDArray[np.uint8], dict[int, Flow]]
"""Frames [T, H, W, 3] and their flow [T, 2, H, W] in px by gap."""


def write_flow_dataset(folder: Path, clips: Iterable[Clip]) -> None:
    """One shard for each clip; every frame has all of its flow."""
    config = PrepareConfig(
        videos="unused", output=str(folder), estimate_flow=EstimateFlowConfig(gaps=(1, -1))
    )
    dataset = Dataset.open(str(folder), kind="flow", config=config, schema_version=FLOW_SCHEMA_VERSION)
    entries = []
    for number, (frames, flows) in enumerate(clips):
        count, height_px, width_px, _ = frames.shape
        row: dict[str, Any] = {
            "source": f"clip-{number}",
            "frames": frames.transpose(0, 3, 1, 2),
            "frame_index": list(range(count)),
            "pts_s": [float(index) for index in range(count)],
            "weights_sha256": "",
            "stored_height_px": height_px,
            "stored_width_px": width_px,
            "source_height_px": height_px,
            "source_width_px": width_px,
        }
        for gap, flow in flows.items():
            row |= {flow_column(gap): encode_flow(flow), has_flow_column(gap): np.ones(count, np.bool_)}
        options = flow_parquet_options(tuple(flows))
        entries.append(dataset.write_shard(f"clip-{number}", flow_shard(row, config), **options))
    dataset.write_manifest(entries)
