"""Models by their name in an MLflow server: models:/NAME@ALIAS, models:/NAME/VERSION, models:/MODEL_ID.

What a name means is asked once, where the command starts. The segmenter is then copied into the output, which every
worker reads anyway: workers need no MLflow, and the output keeps what it was made by when the name moves on.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

from gwm_model.config import CONFIG_FILE, WEIGHTS_FILE
from gwm_model.errors import first_line
from pipeline import storage
from pipeline.config import EvaluateConfig, ExportConfig, SegmentConfig, TrackingConfig, TrainConfig
from pipeline.errors import GwmError
from pipeline.storage_errors import without_secrets

if TYPE_CHECKING:
    from pipeline.mlflow_models import FoundModel  # MLflow and torch take seconds to import

Config = TypeVar("Config", TrainConfig, SegmentConfig, EvaluateConfig)

PREFIX = "models:/"
COPIES = "models"
"""In an output: the segmenters that were copied into it, by name and version."""
FILES = (WEIGHTS_FILE, "dataset.json", CONFIG_FILE)
"""Of a segmenter; the last marks it as whole. dataset.json has the values of its training, if it is there."""


def is_registered(model: str | None) -> TypeGuard[str]:
    """Whether a model is given by its name in an MLflow server."""
    return model is not None and model.startswith(PREFIX)


def with_models_copied(config: Config) -> Config:
    """The configuration with copies in its output for models that were given by name; GwmError if there are none."""
    given = {name: getattr(config, name, None) for name in ("model", "initial_model")}
    copies: dict[str, Any] = {
        name: copied_model(model, config.tracking, config.output)
        for name, model in given.items()
        if is_registered(model)
    }
    return replace(config, **copies) if copies else config


def copied_model(model: str, tracking: TrackingConfig, output: str) -> str:
    """The folder in `output` with the segmenter that a name means now; it is copied once."""
    from pipeline.mlflow_models import download_segmenter

    found, server = _find(model, tracking)
    copy = storage.join(storage.absolute(output), COPIES, found.name)
    if not storage.exists(storage.join(copy, CONFIG_FILE)):
        with tempfile.TemporaryDirectory(prefix="gwm-") as temporary:
            with _explained(model, server):
                folder = download_segmenter(found, server, Path(temporary))
            copy_segmenter(str(folder), copy)
    return copy


def lasting_name(model: str, tracking: TrackingConfig) -> str:
    """models:/NAME/VERSION or models:/MODEL_ID: what a name means now, and goes on meaning."""
    return f"{PREFIX}{_find(model, tracking)[0].name}"


@contextmanager
def with_model_at_hand(config: ExportConfig) -> Iterator[ExportConfig]:
    """The configuration with a temporary copy of a model that was given by its name."""
    if not is_registered(config.model):
        yield config
        return
    with tempfile.TemporaryDirectory(prefix="gwm-") as temporary:
        yield replace(config, model=copied_model(config.model, TrackingConfig(), temporary))


def copy_segmenter(url: str, to: str) -> str:
    """Copies a segmenter's files and nothing else of its folder; returns `to`."""
    for name in FILES:
        source = storage.join(url, name)
        if name in (WEIGHTS_FILE, CONFIG_FILE) or storage.exists(source):
            storage.write_bytes(storage.join(to, name), storage.read_bytes(source))
    return to


def _find(model: str, tracking: TrackingConfig) -> tuple["FoundModel", str]:
    """The model of a name, and the server that knows it."""
    from pipeline.mlflow_models import find_model

    server = tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if server in (None, "", "none"):
        raise GwmError(
            f"{model} is a name in an MLflow server: tracking.uri= or MLFLOW_TRACKING_URI says in which."
        )
    with _explained(model, server):
        return find_model(model, server), server


@contextmanager
def _explained(model: str, server: str) -> Iterator[None]:
    """What MLflow raises, as the user's sentence."""
    try:
        yield
    except GwmError:
        raise
    except Exception as error:
        name, place, reason = map(without_secrets, (model, server, first_line(error)))
        raise GwmError(f"{name} cannot be had from MLflow at {place}: {reason}.") from error
