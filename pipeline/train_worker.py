"""The training loop of one DDP rank: what Ray Train runs on each worker."""

import math
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import ray.train
import torch
import torch.distributed
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import prepare_model

from gwm_model.checkpoint import save_segmenter
from gwm_model.config import CONFIG_FILE, WEIGHTS_FILE, SegmenterConfig
from gwm_model.segmenter import Segmenter, build_segmenter
from gwm_model.training import SegmenterLoss, TrainBatch, learning_rate_at, make_optimizer, train_step
from pipeline import storage
from pipeline.batches import BatchLoader, Share
from pipeline.config import TrainConfig
from pipeline.errors import GwmError
from pipeline.events import Outbox
from pipeline.flow_dataset import FlowDataset
from pipeline.inference import open_segmenter
from pipeline.load_config import flatten
from pipeline.placement import torch_device, torch_threads
from pipeline.placement_config import StagePlacement
from pipeline.sample_cache import SampleCache, cache_folder
from pipeline.summary import write_json
from pipeline.torch_settings import set_up_torch
from pipeline.training_pictures import training_picture
from pipeline.training_state import Checkpoints, TrainingState, from_bytes, step_of

CHECKPOINTS = "training"
"""Folder of the checkpoints in the output."""
LOOK_EVERY_STEPS = 10
"""Steps between looks for a preemption notice, at which the ranks wait for each other."""
METRICS_FILE = "metrics.json"
"""In the output: the values logged on the way."""
SOURCES_NAMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJob:
    """What every worker is given."""

    config: TrainConfig
    flow: FlowDataset
    cache_name: str
    """Names the cache folder: equal for runs that see the same frames through the same backbone."""
    events: Outbox


def train_worker(job: TrainJob) -> None:
    """Trains until `num_steps`, from the newest whole checkpoint on; rank 0 then writes the segmenter to `output`.

    The run also ends, on all ranks at once, when too many batches were bad; the last event's state says so.
    """
    context = ray.train.get_context()
    rank = Rank(job, Share(rank=context.get_world_rank(), world_size=context.get_world_size()))
    state, config = rank.state, job.config
    rank.tell({"state": state, "begins": True})
    for batch in rank.loader.batches(config.batch_size, state.step, rank.share):
        if state.step >= config.num_steps or state.bad_batches > config.max_bad_batches:
            break
        rank.step(batch)
        rank.after_step()
    if state.bad_batches > config.max_bad_batches:
        state.stopped = rank.why_stopped()
    elif rank.share.rank == 0:
        publish(rank.segmenter, state, config.output)
    rank.tell({"state": state})


class Rank:
    """One rank of a training run: its networks, its batches, and how far the run has come."""

    def __init__(self, job: TrainJob, share: Share):
        config, place = job.config, job.config.placement.train_worker
        set_up_training(place)
        torch.manual_seed(config.seed)
        self.job, self.config, self.share = job, config, share
        self.segmenter = initial_segmenter(config).to(torch_device(place))
        module = SegmenterLoss(self.segmenter, config.objective)
        self.optimizer = make_optimizer(module, config.optimizer)
        self.checkpoints = Checkpoints(storage.join(config.output, CHECKPOINTS))
        self.state = self.restored_state()
        self.module = prepare_model(module) if share.world_size > 1 else module
        self.module.train()
        folder = cache_folder(config.cache.directory, job.cache_name)
        cache = SampleCache(folder, job.flow.num_frames, config.cache.max_bytes)
        self.loader = BatchLoader(job.flow, self.segmenter, cache, config)
        self.notice: object = None

    def restored_state(self) -> TrainingState:
        """The state of the newest whole checkpoint, weights and optimiser restored; a fresh one if there is none.

        Rank 0 chooses: a run that was killed a moment ago may still be writing.
        """
        checkpoint, damaged = self.checkpoints.newest() if self.share.rank == 0 else (None, [])
        if self.share.world_size > 1:
            name = broadcast_from_rank_zero(checkpoint.name if checkpoint else None)
            checkpoint = checkpoint or (self.checkpoints.read(name) if name else None)
            if name and checkpoint is None:
                raise GwmError(f"The checkpoint {name} reads differently on two machines.")
        state = TrainingState()
        if checkpoint is not None:
            state = from_bytes(checkpoint.content, self.segmenter, self.optimizer)
        for name in damaged:
            now = (
                f"fell back to step {state.step}"
                if checkpoint
                else "no other is whole, so it starts at step 0"
            )
            state.fallbacks.append(f"the checkpoint of step {step_of(name)} ({name}) is damaged: {now}")
        return state

    def step(self, batch: TrainBatch) -> None:
        """Trains on one batch and notes its values, which are the means over all ranks."""
        began, config, state = time.monotonic(), self.config, self.state
        learning_rate = learning_rate_at(state.step, config.num_steps, config.optimizer)
        torch.manual_seed(step_seed(config.seed, state.step, self.share.rank))
        values = train_step(
            self.module,
            self.optimizer,
            batch,
            learning_rate=learning_rate,
            max_gradient_norm=config.optimizer.max_gradient_norm,
            precision=config.precision,
        )
        values |= {"learning_rate": learning_rate, "step_s": time.monotonic() - began}
        state.step += 1
        state.bad_batches += not math.isfinite(values["gradient_norm"])
        state.recent.append(mean_over_ranks(values, self.share))

    def after_step(self) -> None:
        """Once in a while: log, look at pictures, keep a checkpoint. Every rank comes here equally often."""
        config, state = self.config, self.state
        last = state.step == config.num_steps
        if state.step % config.log_every_steps == 0 or last:
            values = mean_of_good(state.recent)
            state.recent.clear()
            state.history.append(
                {**values, "bad_batches": float(state.bad_batches), "step": float(state.step)}
            )
            self.tell({"values": state.history[-1]})
        if self.share.rank == 0 and (state.step % config.picture_every_steps == 0 or last):
            picture = training_picture(self.segmenter, self.loader)
            self.tell({"picture": picture, "step": state.step})
        if self.is_preempted() or state.step % config.checkpoint_every_steps == 0 or last:
            self.write_checkpoint()

    def is_preempted(self) -> bool:
        """Whether a notice came since the last look that a machine of this run will be taken away."""
        if self.state.step % LOOK_EVERY_STEPS:
            return False
        before, self.notice = self.notice, ray.train.get_preemption_info()
        return self.notice is not None and self.notice != before

    def write_checkpoint(self) -> None:
        """Rank 0 writes the state, which is the same on all ranks."""
        if self.share.rank == 0:
            self.checkpoints.write(self.segmenter, self.optimizer, self.state)

    def tell(self, event: dict[str, object]) -> None:
        """Rank 0's news to the driver."""
        if self.share.rank == 0:
            self.job.events.put(event)

    def why_stopped(self) -> str:
        """The sentence that ends a run with too many bad batches."""
        state, flow = self.state, self.job.flow
        ids = next(self.loader.frame_ids(self.config.batch_size, state.step - 1))
        sources = flow.sources(ids)
        named = ", ".join(sources[:SOURCES_NAMED]) + (", ..." if len(sources) > SOURCES_NAMED else "")
        return (
            f"{state.bad_batches} batches gave a loss or gradient that is not finite, more than "
            f"max_bad_batches={self.config.max_bad_batches}; the last was step {state.step}, with frames of {named}: "
            "look at these videos' flow, or lower optimizer.learning_rate if the loss rose before "
            f"(earlier checkpoints are kept in {self.checkpoints.url})."
        )


def set_up_training(place: StagePlacement) -> None:
    """Before anything else is computed: threads that torch has started keep their settings."""
    set_up_torch(torch_threads(place))
    # Saturated masks have denormal gradients, which a CPU computes very slowly.
    torch.set_flush_denormal(True)


def mean_over_ranks(values: dict[str, float], share: Share) -> dict[str, float]:
    """The mean of each value over the ranks."""
    if share.world_size == 1:
        return values
    means = torch.tensor(list(values.values()), dtype=torch.float64)
    means = means.to("cuda" if torch.distributed.get_backend() == "nccl" else "cpu")
    torch.distributed.all_reduce(means)
    return dict(zip(values, (means.cpu() / share.world_size).tolist(), strict=True))


def mean_of_good(recent: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each value over the steps that are finite in all of them; empty if there are none."""
    good = [values for values in recent if all(map(math.isfinite, values.values()))]
    return {name: float(np.mean([values[name] for values in good])) for name in recent[0]} if good else {}


def initial_segmenter(config: TrainConfig) -> Segmenter:
    """The segmenter before its first step: `initial_model`, or a fresh one. GwmError if it cannot be had or differs."""
    if config.initial_model is None:
        return fresh_segmenter(config.segmenter)
    segmenter, _ = open_segmenter(config.initial_model, "cpu")
    found, wanted = flatten(segmenter.config), flatten(config.segmenter)
    differing = [key for key in wanted if found[key] != wanted[key] and key != "backbone.weights"]
    if differing:
        values = "; ".join(f"{key}: there {found[key]}, here {wanted[key]}" for key in differing)
        raise GwmError(
            f"initial_model={config.initial_model} is another segmenter ({values}): give its values under segmenter."
        )
    return segmenter


def fresh_segmenter(config: SegmenterConfig) -> Segmenter:
    """A segmenter with a fresh head; the backbone's weights may lie in a bucket."""
    with storage.local_weights(config.backbone.weights) as weights:
        backbone = replace(config.backbone, weights=weights)
        try:
            return build_segmenter(replace(config, backbone=backbone))
        except (ValueError, OSError) as error:
            raise GwmError(f"segmenter.backbone cannot be built: {error}") from error


def publish(segmenter: Segmenter, state: TrainingState, output: str) -> None:
    """Writes the history and the finished segmenter to `output`; segmenter.json comes last and marks it as done."""
    write_json(storage.join(output, METRICS_FILE), state.history)
    with tempfile.TemporaryDirectory() as folder:
        save_segmenter(segmenter, folder)
        for name in (WEIGHTS_FILE, CONFIG_FILE):
            storage.write_bytes(storage.join(output, name), (Path(folder) / name).read_bytes())


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of one step's dropout, so that a resumed run draws what an uninterrupted one would."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])
