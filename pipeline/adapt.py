"""gwm segment adapt=true: a segmenter trained further on the videos to segment, which it then segments.

<output>/shards, report.html             masks of the adapted model; frames with the masks before and after
<output>/adaptation/dataset.json         the values, and which model was given
<output>/adaptation/flow, model, before  what gwm prepare, train, and segment with the given model made
<output>/adaptation/steps.json           how many steps training has; time decides nothing else
<output>/adaptation/unexplained.json     the flow that both models leave unexplained

Each part is another command's, goes on where it was stopped, and is made once.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import ray
import torch

from gwm_model.config import ObjectiveConfig
from pipeline import storage
from pipeline.adaptation_report import compare_models, make_report, sentence
from pipeline.config import (
    AdaptationConfig,
    PrepareConfig,
    ReportConfig,
    SegmentConfig,
    TrainConfig,
)
from pipeline.dataset import Dataset
from pipeline.errors import GwmError
from pipeline.events import Mailbox
from pipeline.flow_dataset import open_flow_dataset
from pipeline.inference import open_segmenter, read_model_card
from pipeline.inputs import refuse_images
from pipeline.load_config import extended
from pipeline.placement import tasks, training_cpus, unwrap
from pipeline.placement_config import PreparePlacement, StagePlacement, TrainPlacement
from pipeline.prepare import prepare
from pipeline.progress import say
from pipeline.registered_model import with_models_copied
from pipeline.report.page import NAME, is_drawn, write_report
from pipeline.segment import segment
from pipeline.segment_report import report_state
from pipeline.stages.estimate_flow import load_estimator
from pipeline.summary import write_json
from pipeline.train import cache_name, train, with_initial_content
from pipeline.train_worker import TrainJob
from pipeline.training_rate import TrainingRate, measure_rate

CHECKPOINTS = 10
"""Checkpoints in the course of training: what a kill may cost is a tenth of it."""
LOSSES_LOGGED = 40

Below = Callable[[str], str]
"""The path of a name below the adaptation's folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PinnedAdaptation(AdaptationConfig):
    """All that an adapted model depends on."""

    images: str
    model_sha256: str


def adapt(config: SegmentConfig) -> dict[str, Any]:
    """Adapts the model to all videos of `images` together and writes their masks; returns the summary of segment.

    The summary also has `adaptation`: the steps, and the flow left unexplained before and after. A rerun continues;
    a model that is adapted stays as it is.
    """
    refuse_images(config.images)
    torch.set_flush_denormal(True)  # as in training, which comes after torch has started its threads
    config = with_models_copied(config)
    folder = storage.join(storage.absolute(config.output), "adaptation")
    below = partial(storage.join, folder)
    pinned = pin_adaptation(config)
    is_adapted = storage.exists(storage.join(below("model"), "summary.json"))  # the last that train writes
    if not is_adapted:
        refuse_to_begin(config)
    Dataset.open(folder, kind="adaptation", config=pinned, schema_version=1)
    if not is_adapted:
        make_model(config, below)
    common = replace(config, adapt=False, report=ReportConfig(num_samples=0))  # one report shows both
    say("3. gwm segment: masks of the model as it was given")
    segment(replace(common, output=below("before"), write_png=False, write_overlays=False))
    say("4. gwm segment: masks of the adapted model")
    summary = segment(replace(common, model=below("model")))
    return finished(config, summary, below)


def refuse_to_begin(config: SegmentConfig) -> None:
    """GwmError, before anything is written, where other masks lie in the output or the flow's weights cannot be had."""
    if storage.exists(storage.join(config.output, "dataset.json")):
        raise GwmError(f"{config.output} holds masks of a model that was not adapted: choose another output.")
    try:
        load_estimator(config.adaptation.estimate_flow, "cpu")
    except GwmError as error:
        hint = "adaptation.estimate_flow.estimator=dis needs no weights"
        raise GwmError(f"adaptation.{str(error).rstrip('.')} ({hint}).") from error


def pin_adaptation(config: SegmentConfig) -> PinnedAdaptation:
    """The values of an adaptation together with its videos and the content of its model."""
    card = read_model_card(config.model)
    return extended(PinnedAdaptation, config.adaptation, images=config.images, model_sha256=card.sha256)


def make_model(config: SegmentConfig, below: Below) -> None:
    """Flow of the videos, and the model trained further on it."""
    say("1. gwm prepare: the videos' optical flow")
    found = prepare(prepare_config(config, below("flow")))
    if not found["dataset"]["num_shards"]:
        raise GwmError(f"None of the videos gave optical flow: {below('flow')}/quarantine has the reasons.")
    training = train_config(config, below)
    steps = noted(below("steps.json"), partial(find_steps, config.adaptation, training))["num_steps"]
    say(f"2. gwm train: {steps} steps on them, from {config.model}")
    train(
        replace(
            training,
            num_steps=steps,
            checkpoint_every_steps=max(1, steps // CHECKPOINTS),
            picture_every_steps=steps,
            log_every_steps=max(1, steps // LOSSES_LOGGED),
        )
    )


def prepare_config(config: SegmentConfig, output: str) -> PrepareConfig:
    """The values of prepare; its stages run where those of segment do."""
    at = config.placement
    return PrepareConfig(
        videos=config.images,
        output=output,
        decode=config.adaptation.decode,
        estimate_flow=config.adaptation.estimate_flow,
        tracking=config.tracking,
        placement=PreparePlacement(
            address=at.address,
            no_progress_timeout_s=at.no_progress_timeout_s,
            plan_clips=at.plan_chunks,
            decode_clip=at.load_chunk,
            estimate_flow=at.segment_images,
            write_flow_shard=at.write_mask_shard,
        ),
    )


def train_config(config: SegmentConfig, below: Below) -> TrainConfig:
    """The values of train: the model's own segmenter and objective, on the GPUs of segment_images if it has any."""
    segmenter, _ = open_segmenter(config.model, "cpu")
    place = config.placement.segment_images
    return TrainConfig(
        flow=below("flow"),
        output=below("model"),
        initial_model=config.model,
        segmenter=segmenter.config,
        objective=objective_of(config.model),
        optimizer=config.adaptation.optimizer,
        tracking=config.tracking,
        placement=TrainPlacement(
            address=config.placement.address,
            train_worker=place if place.num_gpus > 0 else StagePlacement(num_cpus=training_cpus()),
        ),
    )


def objective_of(model: str) -> ObjectiveConfig:
    """The objective that a model was trained with; the default where its folder does not say."""
    if not storage.exists(storage.join(model, "dataset.json")):
        return ObjectiveConfig()
    values = Dataset.read(model, kind="model").description()["config"]
    section = "objective."
    own = {key.removeprefix(section): value for key, value in values.items() if key.startswith(section)}
    try:
        return ObjectiveConfig(**own)
    except (TypeError, ValueError) as error:
        raise GwmError(
            f"{model}/dataset.json names an objective that this gwm does not know: {error}."
        ) from error


def find_steps(adaptation: AdaptationConfig, training: TrainConfig) -> dict[str, Any]:
    """`num_steps`, and the rate by which it fills the minutes, if they decide it."""
    if adaptation.num_steps is not None:
        return {"num_steps": adaptation.num_steps}
    flow, config = open_flow_dataset(training.flow), with_initial_content(training)
    job = TrainJob(config=config, flow=flow, cache_name=cache_name(config, flow), events=Mailbox())
    on_worker: Any = ray.remote(**tasks(config.placement.train_worker))(measure_rate)
    try:
        rate: TrainingRate = ray.get(on_worker.remote(job))
    except Exception as error:
        raise unwrap(error) from error
    steps = rate.steps_within(
        60 * adaptation.minutes, batch_size=config.batch_size, num_frames=flow.num_frames
    )
    return {"num_steps": steps, **asdict(rate)}


def noted(url: str, find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What was found once and written down at `url`; of two runs that find it at once, the first one counts."""
    if not storage.exists(url):
        storage.create_bytes(url, json.dumps(find()).encode())
    found: dict[str, Any] = json.loads(storage.read_bytes(url))
    return found


def finished(config: SegmentConfig, summary: dict[str, Any], below: Below) -> dict[str, Any]:
    """The summary with what adaptation did, written again, and the report."""
    models = {"before": config.model, "after": below("model")}
    compare = partial(compare_models, models, below("flow"), objective_of(config.model))
    unexplained = noted(below("unexplained.json"), compare)
    steps = json.loads(storage.read_bytes(below("steps.json")))["num_steps"]
    summary |= {"adaptation": {"num_steps": steps, "unexplained_flow": unexplained}}
    write_json(storage.join(config.output, "summary.json"), summary)
    say(f"Flow left unexplained: {sentence(unexplained)}.")
    if config.report.num_samples:
        show_report(config, summary, below)
    return summary


def show_report(config: SegmentConfig, summary: dict[str, Any], below: Below) -> None:
    """Writes report.html; one that shows the same masks is left as it is."""
    url = storage.join(storage.absolute(config.output), NAME)
    state = report_state(Dataset.read(config.output, kind="masks"), config)
    if not is_drawn(url, state):
        write_report(url, make_report(config, summary, below, state))
    say(f"Report: {url}")
