"""Training: the time outside forward, backward and optimiser, and what keeping the frozen features saves.

The batches come from flow shards through the loader and the cache of `gwm train`; the network is the default one.
"""

import statistics
import tempfile
import time
from pathlib import Path

import torch
from common import DATA, davis_frames, read_frames, report, rounded, side_by_side
from flow_data import Flow, write_flow_dataset

from gwm_model.config import BackboneConfig, ObjectiveConfig, OptimizerConfig, SegmenterConfig
from gwm_model.segmenter import build_segmenter
from gwm_model.training import SegmenterLoss, TrainBatch, make_optimizer, train_step
from pipeline.batches import BatchLoader, Share
from pipeline.config import TrainConfig
from pipeline.flow_dataset import open_flow_dataset
from pipeline.sample_cache import SampleCache

FRAMES, BATCH, STEPS = 48, 8, 18
HEIGHT_PX, WIDTH_PX = 240, 428


def smooth_flow(frames: int) -> Flow:
    """A random field [T, 2, H, W] in px: only its size matters here."""
    coarse = torch.randn(frames, 2, 6, 10) * 5
    flow: Flow = torch.nn.functional.interpolate(coarse, (HEIGHT_PX, WIDTH_PX), mode="bicubic").numpy()
    return flow


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
        frames = read_frames(davis_frames("blackswan", FRAMES), HEIGHT_PX, WIDTH_PX)
        write_flow_dataset(
            Path(temporary) / "flow", [(frames, {gap: smooth_flow(FRAMES) for gap in (1, -1)})]
        )
        flow = open_flow_dataset(str(Path(temporary) / "flow"))
        cache = SampleCache(Path(temporary) / "cache", flow.num_frames, 2**30)
        loader = BatchLoader(flow, module.segmenter, cache, TrainConfig(flow="flow", output="model"))
        batches = loader.batches(BATCH, 0, Share())
        first_epoch = -(-flow.num_frames // BATCH)
        for _ in range(first_epoch + 1):  # one batch more was made ahead
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
