"""What a command would do, found out cheaply: listings, no decoding, nothing written."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline import storage
from pipeline.config import EvaluateConfig, PrepareConfig, SegmentConfig, TrackingConfig, TrainConfig
from pipeline.dataset import Dataset
from pipeline.errors import GwmError
from pipeline.inputs import Source, find_images, find_videos, refuse_images
from pipeline.registered_model import is_registered, lasting_name


def describe(config: object) -> dict[str, Any]:
    """Inputs found and work known to be done, for any of the four configurations."""
    match config:
        case PrepareConfig():
            return _shards("prepare", find_videos(config.videos), config.output)
        case SegmentConfig():
            model = _model(config.model, config.tracking)
            shards = _shards("segment", find_images(config.images), config.output) | {"model": model}
            if config.adapt:
                refuse_images(config.images)
                steps, minutes = config.adaptation.num_steps, config.adaptation.minutes
                shards["adapt"] = f"{steps} steps" if steps else f"about {minutes:g} minutes"
            return shards
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


def _shards(command: str, sources: Iterator[Source], output: str) -> dict[str, Any]:
    """Sources by kind, and the shards that are there already."""
    kinds: Counter[str] = Counter()
    num_bytes = 0
    for source in sources:
        kinds[source.kind] += 1
        num_bytes += source.size_bytes or 0
    return {
        "command": command,
        "sources": dict(sorted(kinds.items())),
        "bytes": num_bytes,
        "output": storage.absolute(output),
        "units": _done(output),
    }


def _train(config: TrainConfig) -> dict[str, Any]:
    flow = Dataset.read(config.flow, kind="flow")
    rows = sum(entry.num_rows for entry in flow.manifest())
    return {
        "command": "train",
        "flow": flow.url,
        "shards": sum(1 for _ in flow.shards()),
        "frames_in_manifest": rows,
        "steps": config.num_steps,
        "output": storage.absolute(config.output),
        "resumes": storage.exists(storage.join(config.output, "training")),
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
