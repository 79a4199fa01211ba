"""Training batches: frames drawn in the deterministic order, read or taken from the cache, stacked on the device."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from gwm_model.config import ObjectiveConfig
from gwm_model.segmenter import Segmenter
from gwm_model.training import TrainBatch
from pipeline.config import TrainConfig
from pipeline.flow_dataset import FlowDataset, FrameReader
from pipeline.sample_cache import Sample, SampleCache


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """The part of each global batch that one DDP rank trains on."""

    rank: int = 0
    world_size: int = 1


class BatchLoader:
    """Batches of one rank from a flow dataset; the next batch is made while a GPU trains on the current one.

    On CPUs both take turns in one thread: each would have a pool of OpenMP threads of its own, and libgomp lets threads
    sleep at every barrier, where they are more than the cores.
    """

    def __init__(self, flow: FlowDataset, segmenter: Segmenter, cache: SampleCache, config: TrainConfig):
        self.config = config
        self.flow = flow
        self.reader = FrameReader(flow)
        self.segmenter = segmenter
        self.cache = cache
        self.device = next(segmenter.parameters()).device
        backbone = segmenter.backbone
        self.keeps_features = backbone is not None and backbone.config.frozen
        self.mask_size = output_size(segmenter)

    def batches(self, batch_size: int, first_step: int, share: Share) -> Iterator[TrainBatch]:
        """Endless batches from `first_step` on; rank r of w takes frames r, r + w, ... of each global batch."""
        ids = self.frame_ids(batch_size, first_step)
        made = (self.batch(drawn, step, share) for step, drawn in enumerate(ids, first_step))
        for batch in made if self.device.type == "cpu" else made_ahead(made):
            yield batch.to(self.device)

    def frame_ids(self, batch_size: int, first_step: int) -> Iterator[list[int]]:
        """The frames of the global batches from `first_step` on."""
        by_video = self.config.sampling.frames == "by_video"
        return self.flow.batches(self.config.seed, batch_size, first_step, by_video=by_video)

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
            progress=step / self.config.num_steps,
        )

    def one_gap(
        self, sample: Sample, step: int, place: int
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.float16]]:
        """The flow [2, H, W] to one of the frames that exist, drawn by (seed, step, place); zeros teach nothing."""
        existing = np.flatnonzero(sample.has_flow)
        generator = np.random.default_rng([self.config.seed, step, place])
        if self.config.sampling.gaps == "first_of_pair" and len(existing) > 1:
            drawn = generator.choice(len(existing), 2, replace=False).min()
        else:
            drawn = generator.integers(max(1, len(existing)))
        return np.array(sample.flow[existing[drawn] if len(existing) else 0])

    @torch.no_grad()
    def sample(self, frame_id: int) -> Sample:
        """A frame read, resized and passed through the frozen backbone: alone, so its bits depend on it only."""
        frame = self.reader.read(frame_id)
        pixels = torch.from_numpy(np.ascontiguousarray(frame.image.transpose(2, 0, 1)))[None].to(self.device)
        image = self.segmenter.resize(pixels).mul(255.0).round().clamp(0, 255)
        flow = flow_for_loss(torch.from_numpy(frame.flow), self.mask_size, self.config.objective)
        features = []
        if self.keeps_features:
            with torch.autocast(
                self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"
            ):
                maps = self.segmenter.features(image / 255.0)
            # Contiguous as in the cache: from another layout a convolution computes other last bits.
            features = [each[0].half().cpu().contiguous().numpy() for each in maps]
        return Sample(image[0].byte().cpu().numpy(), features, flow.half().numpy(), frame.has_flow)


def made_ahead(batches: Iterator[TrainBatch]) -> Iterator[TrainBatch]:
    """Endless batches, the next one made by a thread while its neighbour is in use."""
    with ThreadPoolExecutor(1, thread_name_prefix="next-batch") as pool:
        upcoming = pool.submit(next, batches)
        while True:
            batch = upcoming.result()
            upcoming = pool.submit(next, batches)
            yield batch


def flow_for_loss(
    flow: Float[Tensor, "G 2 H W"], mask_size: tuple[int, int], objective: ObjectiveConfig
) -> Float[Tensor, "G 2 h w"]:
    """Stored flow on the grid of the masks, as it is; or on the objective's own grid, in its pixels."""
    size = mask_size
    if objective.height_px and objective.width_px:
        size = objective.height_px, objective.width_px
        flow = flow * torch.tensor([size[1] / flow.shape[3], size[0] / flow.shape[2]]).view(2, 1, 1)
    if objective.flow_resize == "nearest":
        return F.interpolate(flow, size=size, mode="nearest")
    return F.interpolate(flow, size=size, mode="bilinear", antialias=True)


@torch.no_grad()
def output_size(segmenter: Segmenter) -> tuple[int, int]:
    """Height and width of the segmenter's logits."""
    config, device = segmenter.config, next(segmenter.parameters()).device
    logits = segmenter(torch.zeros(1, 3, config.height_px, config.width_px, device=device))
    return logits.shape[2], logits.shape[3]
