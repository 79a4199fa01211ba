"""The training loop of one DDP rank: what Ray Train runs on each worker."""

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import ray.train
import torch
import torch.distributed
from ray.train.torch import prepare_model

from gwm_model.checkpoint import CONFIG_FILE, WEIGHTS_FILE, save_segmenter
from gwm_model.config import SegmenterConfig
from gwm_model.segmenter import Segmenter, build_segmenter
from gwm_model.training import SegmenterLoss, learning_rate_at, make_optimizer, train_step
from pipeline import storage
from pipeline.batches import BatchLoader, Share
from pipeline.config import TrainConfig
from pipeline.errors import GwmError
from pipeline.events import ClusterMailbox, Mailbox
from pipeline.flow_dataset import FlowDataset
from pipeline.placement import torch_device, torch_threads
from pipeline.sample_cache import SampleCache, cache_folder
from pipeline.training_pictures import training_picture
from pipeline.training_state import TrainingState, load_state, save_state


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJob:
    """What every worker is given."""

    config: TrainConfig
    flow: FlowDataset
    cache_name: str
    """Names the cache folder: equal for runs that see the same frames through the same backbone."""
    events: Mailbox | ClusterMailbox


def train_worker(job: TrainJob) -> None:
    """Trains until `num_steps`, from the last checkpoint on; rank 0 then writes the segmenter to `output`."""
    config, context = job.config, ray.train.get_context()
    share = Share(rank=context.get_world_rank(), world_size=context.get_world_size())
    place = config.placement.train_worker
    torch.set_num_threads(torch_threads(place))
    torch.set_flush_denormal(
        True
    )  # saturated masks have denormal gradients, which a CPU computes very slowly
    torch.manual_seed(config.seed)
    segmenter = configured_segmenter(config.segmenter).to(torch_device(place))
    module = SegmenterLoss(segmenter, config.objective)
    optimizer = make_optimizer(module, config.optimizer)
    state = restore(segmenter, optimizer)
    trained = prepare_model(module) if share.world_size > 1 else module
    cache = SampleCache(
        cache_folder(config.cache.directory, job.cache_name), job.flow.num_frames, config.cache.max_bytes
    )
    loader = BatchLoader(job.flow, segmenter, cache, seed=config.seed, precision=config.precision)
    trained.train()
    recent: list[dict[str, float]] = []
    for batch in loader.batches(config.batch_size, state.step, share):
        if state.step >= config.num_steps:
            break
        began = time.monotonic()
        learning_rate = learning_rate_at(state.step, config.num_steps, config.optimizer)
        torch.manual_seed(step_seed(config.seed, state.step, share.rank))
        values = train_step(
            trained,
            optimizer,
            batch,
            learning_rate=learning_rate,
            max_gradient_norm=config.optimizer.max_gradient_norm,
            precision=config.precision,
        )
        state.step += 1
        state.bad_batches += int(not np.isfinite(values["gradient_norm"]))
        recent.append(values | {"learning_rate": learning_rate, "step_s": time.monotonic() - began})
        after_step(job, share, segmenter, optimizer, loader, state, recent)
    if share.rank == 0:
        publish(segmenter, config.output)
        job.events.put({"state": state})


def after_step(
    job: TrainJob,
    share: Share,
    segmenter: Segmenter,
    optimizer: torch.optim.Optimizer,
    loader: BatchLoader,
    state: TrainingState,
    recent: list[dict[str, float]],
) -> None:
    """Once in a while: log, look at pictures, keep a checkpoint. Every rank comes here the same number of times."""
    config, step = job.config, state.step
    last = step == config.num_steps
    if step % config.log_every_steps == 0 or last:
        values = {"step": float(step), **mean_over_ranks(recent, share)}
        recent.clear()
        state.history.append(values)
        if share.rank == 0:
            job.events.put({"values": values})
    if share.rank == 0 and (step % config.picture_every_steps == 0 or last):
        job.events.put({"picture": training_picture(segmenter, loader), "step": step})
    if step % config.checkpoint_every_steps == 0 or last:
        report_checkpoint(share, segmenter, optimizer, state)


def mean_over_ranks(recent: list[dict[str, float]], share: Share) -> dict[str, float]:
    """The mean of each value over the steps since the last log and over the ranks."""
    names = list(recent[0])
    means = torch.tensor([[values[name] for name in names] for values in recent], dtype=torch.float64).mean(0)
    if share.world_size > 1:
        means = means.to("cuda" if torch.distributed.get_backend() == "nccl" else "cpu")
        torch.distributed.all_reduce(means)
        means = means.cpu() / share.world_size
    return dict(zip(names, means.tolist(), strict=True))


def report_checkpoint(
    share: Share, segmenter: Segmenter, optimizer: torch.optim.Optimizer, state: TrainingState
) -> None:
    """Hands rank 0's state to Ray Train, which keeps it in `output`; all ranks wait for each other here."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if share.rank == 0:
            save_state(Path(folder), segmenter, optimizer, state)
            checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report({"step": state.step}, checkpoint=checkpoint)


def restore(segmenter: Segmenter, optimizer: torch.optim.Optimizer) -> TrainingState:
    """The state of the last checkpoint, its state loaded; a fresh start if there is none."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return TrainingState()
    with checkpoint.as_directory() as folder:
        return load_state(Path(folder), segmenter, optimizer)


def configured_segmenter(config: SegmenterConfig) -> Segmenter:
    """A fresh segmenter; backbone weights may lie in a bucket. GwmError if they cannot be had or do not fit."""
    with storage.local_weights(config.backbone.weights) as weights:
        backbone = replace(config.backbone, weights=weights)
        try:
            return build_segmenter(replace(config, backbone=backbone))
        except (ValueError, OSError) as error:
            raise GwmError(f"segmenter.backbone cannot be built: {error}") from error


def publish(segmenter: Segmenter, output: str) -> None:
    """Writes the finished segmenter to `output`; segmenter.json comes last and marks it as done."""
    with tempfile.TemporaryDirectory() as folder:
        save_segmenter(segmenter, folder)
        for name in (WEIGHTS_FILE, CONFIG_FILE):
            storage.write_bytes(storage.join(output, name), (Path(folder) / name).read_bytes())


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of one step's dropout, so that a resumed run draws what an uninterrupted one would."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])
