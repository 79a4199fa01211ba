"""What a command would do, found out cheaply: listings and headers, no decoding, nothing written."""

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline import estimate, storage
from pipeline.config import EvaluateConfig, PrepareConfig, SegmentConfig, TrackingConfig, TrainConfig
from pipeline.dataset import Dataset
from pipeline.errors import GwmError
from pipeline.inputs import Source, find_images, find_videos, refuse_images
from pipeline.registered_model import is_registered, lasting_name
from pipeline.work_plan import Inputs, Work, work_of


def describe(config: object) -> dict[str, Any]:
    """Inputs found, work known to be done, and what the rest takes, for any of the four configurations."""
    match config:
        case PrepareConfig():
            told, work, left = _shards("prepare", find_videos(config.videos), config)
            return told | {"estimate": estimate.of_prepare(config, work, left)}
        case SegmentConfig():
            model = _model(config.model, config.tracking)
            told, work, left = _shards("segment", find_images(config.images), config)
            told |= {"model": model, "estimate": estimate.of_segment(config, work, left)}
            if config.adapt:
                refuse_images(config.images)
                steps, minutes = config.adaptation.num_steps, config.adaptation.minutes
                told["adapt"] = f"{steps} steps" if steps else f"about {minutes:g} minutes"
            return told
        case TrainConfig():
            return _train(config)
        case EvaluateConfig():
            given = {"data": config.data, "masks": config.masks}
            found = {name: _needed(url, name) for name, url in given.items() if url is not None}
            if config.model is not None:
                found["model"] = _model(config.model, config.tracking)
            return {
                "command": "evaluate",
                "dataset": config.dataset,
                **found,
                "output": storage.absolute(config.output),
            }
    raise TypeError(f"no command has a {type(config).__name__}")


def _shards(
    command: str, sources: Iterator[Source], config: PrepareConfig | SegmentConfig
) -> tuple[dict[str, Any], Work, float]:
    """Sources by kind, the units that are there already, all that there are, and the share that is left."""
    inputs = Inputs.listed(sources)
    work, done = work_of(inputs, config), _done(config.output)
    units = round(work.units)
    left = max(0, units - sum(done.values()))
    told = {
        "command": command,
        "sources": dict(sorted(inputs.kinds.items())),
        "bytes": inputs.num_bytes,
        "output": storage.absolute(config.output),
        "units": {**done, "left": left},
        "planned": {"units": units, "frames": round(work.frames), "counted_by": work.counted},
    }
    return told, work, left / max(1, units)


def _train(config: TrainConfig) -> dict[str, Any]:
    flow = Dataset.read(config.flow, kind="flow")
    rows = sum(entry.num_rows for entry in flow.manifest())
    left = max(0, config.num_steps - estimate.steps_done(config.output))
    return {
        "command": "train",
        "flow": flow.url,
        "shards": sum(1 for _ in flow.shards()),
        "frames_in_manifest": rows,
        "steps": config.num_steps,
        "steps_left": left,
        "output": storage.absolute(config.output),
        "resumes": storage.exists(storage.join(config.output, "training")),
        "estimate": estimate.of_train(config, left),
    }


def _done(output: str) -> Mapping[str, int]:
    dataset = Dataset(url=storage.absolute(output))
    quarantine = storage.join(dataset.url, "quarantine")
    return {
        "done": sum(1 for _ in dataset.shards()),
        "quarantined": sum(1 for _ in storage.list_files(quarantine)),
    }


def _model(model: str, tracking: TrackingConfig) -> str:
    return lasting_name(model, tracking) if is_registered(model) else _needed(model, "model")


def _needed(url: str, name: str) -> str:
    if not storage.exists(url):
        raise GwmError(f"{name}={url}: there is nothing.")
    return storage.absolute(url)
