"""Training: the time outside forward, backward and optimiser, and what keeping the frozen features saves.

The batches come from flow shards through the loader and the cache of `gwm train`; the network is the default one.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import DATA, davis_frames, read_frames, report, rounded, side_by_side

from gwm_model.config import BackboneConfig, ObjectiveConfig, OptimizerConfig, SegmenterConfig
from gwm_model.segmenter import build_segmenter
from gwm_model.training import SegmenterLoss, TrainBatch, make_optimizer, train_step
from pipeline.batches import BatchLoader, Share
from pipeline.config import EstimateFlowConfig, PrepareConfig
from pipeline.dataset import Dataset
from pipeline.flow_dataset import open_flow_dataset
from pipeline.records import FLOW_SCHEMA_VERSION, flow_parquet_options
from pipeline.sample_cache import SampleCache
from pipeline.stages.write_flow_shard import flow_shard

FRAMES, BATCH, STEPS = 48, 8, 18
HEIGHT_PX, WIDTH_PX = 240, 428


def write_flow(folder: Path) -> None:
    """A flow dataset of real frames whose flow is a smooth random field: only its size matters here."""
    config = PrepareConfig(
        videos="unused", output=str(folder), estimate_flow=EstimateFlowConfig(gaps=(1, -1))
    )
    dataset = Dataset.open(str(folder), kind="flow", config=config, schema_version=FLOW_SCHEMA_VERSION)
    frames = read_frames(davis_frames("blackswan", FRAMES), HEIGHT_PX, WIDTH_PX)
    coarse = torch.randn(FRAMES, 2, 6, 10) * 64 * 5
    flow = torch.nn.functional.interpolate(coarse, (HEIGHT_PX, WIDTH_PX), mode="bicubic").numpy()
    row: dict[str, Any] = {
        "source": "blackswan",
        "frames": frames.transpose(0, 3, 1, 2),
        "frame_index": list(range(len(frames))),
        "pts_s": [float(number) for number in range(len(frames))],
        "weights_sha256": "",
        "stored_height_px": HEIGHT_PX,
        "stored_width_px": WIDTH_PX,
        "source_height_px": 480,
        "source_width_px": 854,
    }
    for name in ("p1", "m1"):
        row |= {f"flow_{name}": flow[: len(frames)].astype(np.int16)}
        row |= {f"has_flow_{name}": np.ones(len(frames), np.bool_)}
    entry = dataset.write_shard("clip", flow_shard(row, config), **flow_parquet_options((1, -1)))
    dataset.write_manifest([entry])


def main() -> None:
    """Prints one JSON line for each target."""
    torch.manual_seed(0)
    torch.set_flush_denormal(True)
    weights = str(DATA / "weights/dinov2_vits14_fp16.safetensors")
    config = SegmenterConfig(num_masks=2, hidden_channels=64, backbone=BackboneConfig(weights=weights))
    module = SegmenterLoss(build_segmenter(config), ObjectiveConfig())
    optimizer = make_optimizer(module, OptimizerConfig())

    def step(batch: TrainBatch) -> None:
        train_step(module, optimizer, batch, learning_rate=1e-4, max_gradient_norm=1.0)

    with tempfile.TemporaryDirectory() as temporary:
        write_flow(Path(temporary) / "flow")
        flow = open_flow_dataset(str(Path(temporary) / "flow"))
        cache = SampleCache(Path(temporary) / "cache", flow.num_frames, 2**30)
        loader = BatchLoader(flow, module.segmenter, cache, seed=0, precision="float32")
        batches = loader.batches(BATCH, 0, Share())
        for _ in range(
            -(-flow.num_frames // BATCH) + 1
        ):  # the first epoch, and the batch that was made ahead
            step(next(batches))
        whole, inside = [], []
        for _ in range(STEPS):
            began = time.perf_counter()
            batch = next(batches)
            got = time.perf_counter()
            step(batch)
            ended = time.perf_counter()
            whole.append(ended - began)
            inside.append(ended - got)
        report(
            "train",
            "default network, B = 8, after the first epoch",
            "share of a step outside forward, backward and optimiser",
            1 - sum(inside) / sum(whole),
            at_most=0.05,
            **rounded(step_s=statistics.median(whole)),
        )
        kept = next(batches)

        def recomputed() -> None:
            step(TrainBatch(kept.images, module.segmenter.features(kept.images), kept.flow))

        compared = side_by_side(recomputed, lambda: step(kept))
        report(
            "train",
            "default network, B = 8",
            "times the steps/s of features computed at every step",
            compared.ratio,
            **rounded(recomputed_s=compared.reference_s, kept_s=compared.ours_s),
        )


if __name__ == "__main__":
    main()
