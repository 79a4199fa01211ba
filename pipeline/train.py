"""gwm train: flow shards -> segmenter, with DistributedDataParallel on Ray Train."""

import shutil
import time
from collections.abc import Iterator
from concurrent.futures import Future, wait
from dataclasses import replace
from functools import partial
from threading import Thread
from typing import Any

import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from gwm_model.config import CONFIG_FILE
from pipeline import storage
from pipeline.config import TrainConfig
from pipeline.dataset import Dataset
from pipeline.errors import GwmError
from pipeline.events import ClusterMailbox, Event, Listener
from pipeline.failure_policy import MAX_TRAIN_FAILURES
from pipeline.flow_dataset import FlowDataset, open_flow_dataset, refuse_other_flow
from pipeline.inference import read_model_card
from pipeline.job_progress import JobProgress
from pipeline.load_config import digest, extended, fingerprint, flatten
from pipeline.model_card import PinnedTrainConfig
from pipeline.placement import is_one_machine, silence, start_ray, unwrap
from pipeline.placement_config import ClusterPlacement, StagePlacement
from pipeline.registered_model import with_models_copied
from pipeline.sample_cache import cache_folder
from pipeline.summary import show_summary, write_summary
from pipeline.tracking import Tracker
from pipeline.train_worker import CHECKPOINTS, TrainJob, initial_segmenter, set_up_training, train_worker
from pipeline.training_log import TrainingLog
from pipeline.training_state import TrainingState

SECONDS_BETWEEN_LOOKS = 0.5


def train(config: TrainConfig) -> dict[str, Any]:
    """Trains a segmenter on a flow dataset; returns the summary. A rerun goes on from the last checkpoint."""
    flow = open_flow_dataset(config.flow)
    is_trained = storage.exists(storage.join(config.output, CONFIG_FILE))
    cluster = ClusterPlacement(address=config.placement.address)
    here = config.num_workers == 1 and is_one_machine(cluster)
    if here and not is_trained:
        refuse_missing_gpu(config.placement.train_worker)
        set_up_training(config.placement.train_worker)
    config = with_models_copied(with_absolute_paths(config))
    initial_segmenter(config)  # weights that do not fit are refused before anything is written
    config = with_initial_content(config)
    output = Dataset.open(config.output, kind="model", config=config, schema_version=1)
    refuse_other_flow(config.output, flow)
    if is_trained:
        return finished(config, output, {"skipped": 1}, TrainingState(), 0.0)
    if not here:
        start_ray(cluster)
    tracker = Tracker.start(
        config.tracking,
        command="train",
        output=config.output,
        run_config=config,
        fingerprint=fingerprint(config),
    )
    tracker.log_dataset(flow.dataset.url, flow.shards, context="training")
    began = time.monotonic()
    name = cache_name(config, flow)
    try:
        with JobProgress("train", config.output, total=config.num_steps, unit="steps") as progress:
            log = TrainingLog(config.output, tracker, progress)
            job = TrainJob(config=config, flow=flow, cache_name=name, events=Listener(log.take))
            if here:
                train_here(job)
            else:
                train_on_ray(job)
        log.check_finished()
    except BaseException as error:
        tracker.finish("FAILED" if isinstance(error, Exception) else "KILLED")
        raise unwrap(error) from error
    shutil.rmtree(cache_folder(config.cache.directory, name), ignore_errors=True)
    tracker.log_segmenter(config.output, read_model_card(config.output).sha256, step=config.num_steps)
    summary = finished(config, output, {"done": 1}, log.state, time.monotonic() - began)
    tracker.finish("FINISHED")
    return summary


def refuse_missing_gpu(place: StagePlacement) -> None:
    """GwmError where training is to use a GPU and this machine has none."""
    if place.num_gpus > 0 and not torch.cuda.is_available():
        raise GwmError(
            f"placement.train_worker.num_gpus={place.num_gpus:g}, but torch finds no GPU on this machine: leave it out "
            "to train on CPUs."
        )


def train_here(job: TrainJob) -> None:
    """The only worker's loop, in this process: what Ray Train calls local mode."""
    silence("ray.train")
    TorchTrainer(partial(train_worker, job), scaling_config=ScalingConfig(num_workers=0)).fit()


def train_on_ray(job: TrainJob) -> None:
    """The workers' loops on Ray; their news come here."""
    events = ClusterMailbox()
    for event in news(events, in_background(trainer(replace(job, events=events)))):
        job.events.put(event)


def trainer(job: TrainJob) -> TorchTrainer:
    """Ray Train around `train_worker`: it starts the ranks again when one dies or its machine is taken away.

    Checkpoints are the workers' own: Ray's list of them is written in place, and one cut short stops every rerun.
    """
    config, place = job.config, job.config.placement.train_worker
    filesystem, path = storage.arrow_filesystem(config.output)
    return TorchTrainer(
        partial(train_worker, job),
        scaling_config=ScalingConfig(
            num_workers=config.num_workers,
            use_gpu=place.num_gpus > 0,
            resources_per_worker={"CPU": place.num_cpus}
            | ({"GPU": place.num_gpus} if place.num_gpus > 0 else {}),
        ),
        run_config=RunConfig(
            name=CHECKPOINTS,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=MAX_TRAIN_FAILURES),
        ),
    )


def in_background(training: TorchTrainer) -> Future[None]:
    """Starts training in a thread that an interrupted command does not wait for."""
    ended: Future[None] = Future()

    def fit() -> None:
        try:
            training.fit()
        except BaseException as error:
            ended.set_exception(error)
        else:
            ended.set_result(None)

    Thread(target=fit, daemon=True).start()
    return ended


def news(events: ClusterMailbox, fit: Future[None]) -> Iterator[Event]:
    """The workers' events until training has ended; raises what ended it."""
    while not fit.done():
        wait([fit], timeout=SECONDS_BETWEEN_LOOKS)
        yield from events.take()
    fit.result()


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """The configuration with its output and weights made absolute: workers have folders of their own."""
    backbone = config.segmenter.backbone
    backbone = replace(backbone, weights=storage.absolute_weights(backbone.weights))
    segmenter = replace(config.segmenter, backbone=backbone)
    return replace(config, output=storage.absolute(config.output), segmenter=segmenter)


def with_initial_content(config: TrainConfig) -> TrainConfig:
    """The configuration together with the content of the model that it starts from, if any."""
    if config.initial_model is None:
        return config
    card = read_model_card(config.initial_model)
    here = replace(config, initial_model=storage.absolute(config.initial_model))
    return extended(PinnedTrainConfig, here, initial_model_sha256=card.sha256)


def cache_name(config: TrainConfig, flow: FlowDataset) -> str:
    """Equal for runs whose samples are equal: same frames, same size, same frozen backbone."""
    segmenter = {
        key: value
        for key, value in flatten(config.segmenter).items()
        if "backbone" in key or key.endswith("_px")
    }
    objective = config.objective
    shape = {"architecture": config.segmenter.architecture, "precision": config.precision}
    shape |= {"flow_size": f"{objective.height_px} {objective.width_px} {objective.flow_resize}"}
    content = {"flow": flow.content_digest(), "initial_model": flatten(config).get("initial_model_sha256")}
    return digest(content | segmenter | shape)


def finished(
    config: TrainConfig,
    output: Dataset,
    counts: dict[str, int],
    state: TrainingState,
    seconds: float,
) -> dict[str, Any]:
    """Writes and shows the summary."""
    summary = write_summary(
        output.url,
        command="train",
        fingerprint=fingerprint(config),
        counts=counts,
        seconds={"total": seconds},
        steps=config.num_steps,
        loss=state.history[-1].get("loss") if state.history else None,
        bad_batches=state.bad_batches,
        fallbacks=state.fallbacks,
    )
    show_summary(
        summary, f"gwm segment --config conf/segment.yaml images=... model={config.output} output=..."
    )
    return summary
