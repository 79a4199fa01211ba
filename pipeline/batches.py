"""Training batches: frames drawn in the deterministic order, read or taken from the cache, stacked on the device."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from gwm_model.segmenter import Segmenter
from gwm_model.training import TrainBatch
from pipeline.flow_dataset import FlowDataset, FrameReader
from pipeline.sample_cache import Sample, SampleCache


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """The part of each global batch that one DDP rank trains on."""

    rank: int = 0
    world_size: int = 1


class BatchLoader:
    """Batches of one rank from a flow dataset; the next batch is made while the current one is trained on."""

    def __init__(
        self, flow: FlowDataset, segmenter: Segmenter, cache: SampleCache, *, seed: int, precision: str
    ):
        self.flow = flow
        self.reader = FrameReader(flow)
        self.segmenter = segmenter
        self.cache = cache
        self.seed = seed
        self.precision = precision
        self.device = next(segmenter.parameters()).device
        backbone = segmenter.backbone
        self.keeps_features = backbone is not None and backbone.config.frozen
        self.mask_size = output_size(segmenter)

    def batches(self, batch_size: int, first_step: int, share: Share) -> Iterator[TrainBatch]:
        """Endless batches from `first_step` on; rank r of w takes frames r, r + w, ... of each global batch."""
        ids = self.flow.batches(self.seed, batch_size, first_step)
        with ThreadPoolExecutor(1, thread_name_prefix="next-batch") as pool:
            step = first_step
            upcoming = pool.submit(self.batch, next(ids), step, share)
            while True:
                batch = upcoming.result()
                step += 1
                upcoming = pool.submit(self.batch, next(ids), step, share)
                yield batch.to(self.device)

    def batch(self, ids: list[int], step: int, share: Share) -> TrainBatch:
        """One rank's part of the batch of `step`, on the CPU."""
        mine = range(share.rank, len(ids), share.world_size)
        samples = [self.cache.get(ids[place], self.sample) for place in mine]
        flow = [self.one_gap(sample, step, place) for sample, place in zip(samples, mine, strict=True)]
        features = [np.stack(maps) for maps in zip(*(sample.features for sample in samples), strict=True)]
        return TrainBatch(
            images=torch.from_numpy(np.stack([sample.image for sample in samples])).float().div_(255.0),
            features=[torch.from_numpy(maps) for maps in features],
            flow=torch.from_numpy(np.stack(flow)),
        )

    def one_gap(
        self, sample: Sample, step: int, place: int
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.float16]]:
        """The flow [2, H, W] to one of the frames that exist, drawn by (seed, step, place); zeros teach nothing."""
        existing = np.flatnonzero(sample.has_flow)
        drawn = np.random.default_rng([self.seed, step, place]).integers(max(1, len(existing)))
        return np.array(sample.flow[existing[drawn] if len(existing) else 0])

    @torch.no_grad()
    def sample(self, frame_id: int) -> Sample:
        """A frame read, resized and passed through the frozen backbone: alone, so its bits depend on it only."""
        frame = self.reader.read(frame_id)
        pixels = torch.from_numpy(np.ascontiguousarray(frame.image.transpose(2, 0, 1)))[None].to(self.device)
        image = self.segmenter.resize(pixels).mul(255.0).round().clamp(0, 255)
        flow = F.interpolate(
            torch.from_numpy(frame.flow), size=self.mask_size, mode="bilinear", antialias=True
        )
        features = []
        if self.keeps_features:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
                maps = self.segmenter.features(image / 255.0)
            # Contiguous as in the cache: from another layout a convolution computes other last bits.
            features = [each[0].half().cpu().contiguous().numpy() for each in maps]
        return Sample(image[0].byte().cpu().numpy(), features, flow.half().numpy(), frame.has_flow)


@torch.no_grad()
def output_size(segmenter: Segmenter) -> tuple[int, int]:
    """Height and width of the segmenter's logits."""
    config, device = segmenter.config, next(segmenter.parameters()).device
    logits = segmenter(torch.zeros(1, 3, config.height_px, config.width_px, device=device))
    return logits.shape[2], logits.shape[3]
