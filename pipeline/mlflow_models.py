"""Segmenters as MLflow models: logged, registered, found and fetched again; raises what MLflow raises.

A logged segmenter is its own files and a copy of the two packages, loaded by `pipeline.served_model`: nothing in it is
pickled. Of a model that is fetched, only its weights and values are read.
"""

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import gwm_model
import pipeline
from gwm_model.config import CONFIG_FILE
from pipeline.errors import GwmError
from pipeline.mlflow_run import MlflowRun, import_mlflow
from pipeline.pictures import encode_png
from pipeline.scenes import render_scene
from pipeline.served_model import IMAGE, REQUIREMENTS, served_values
from pipeline.summary import version

FOLDER = "segmenter"
"""In the logged model's data: the folder with the segmenter's files."""
CONTENT_TAG = "gwm.sha256"
"""Of a logged model: the SHA-256 of its segmenter, by which runs that use a copy of it find it."""
MODEL_URI = re.compile(r"models:/(?:(m-[^/@]+)|([^/@]+)(?:@([^/@]+)|/(\d+)))")


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmenterFiles:
    """A segmenter to be logged."""

    folder: Path
    """On this disk: its files, and no others."""
    sha256: str
    registered_model: str | None
    """The name under which it becomes a new version."""
    step: int
    """Steps that it was trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundModel:
    """A logged or registered model, named so that it stays the same one."""

    name: str
    """NAME/VERSION, or the model id."""
    location: str
    """URI of its artifacts."""


def log_segmenter(run: MlflowRun, files: SegmenterFiles) -> None:
    """Logs a segmenter as the run's output, and registers it by option; a resumed run does not log it again."""
    from mlflow.entities import LoggedModelOutput

    client, model_id = run.client, find_logged_model(run, files.sha256, source_run_id=run.run_id)
    if model_id is None:
        model_id = _upload(run, files)
        client.log_outputs(run.run_id, [LoggedModelOutput(model_id, step=files.step)])
    if files.registered_model is not None:
        _register(run, model_id, files.registered_model)


def find_logged_model(run: MlflowRun, sha256: str, source_run_id: str | None = None) -> str | None:
    """The id of the newest whole model with this content, if the server has one, in whatever experiment."""
    wanted = f"tags.`{CONTENT_TAG}` = '{sha256}'"
    if source_run_id is not None:
        wanted += f" AND source_run_id = '{source_run_id}'"
    experiments = [experiment.experiment_id for experiment in run.client.search_experiments()]
    found = run.client.search_logged_models(experiments, filter_string=wanted)
    return next((str(model.model_id) for model in found if model.status == "READY"), None)


def find_model(uri: str, tracking_uri: str) -> FoundModel:
    """What models:/NAME@ALIAS, models:/NAME/VERSION or models:/MODEL_ID names now."""
    parts = MODEL_URI.fullmatch(uri)
    if parts is None:
        raise GwmError(f"{uri} is not models:/NAME@ALIAS, models:/NAME/VERSION or models:/MODEL_ID.")
    model_id, name, alias, version = parts.groups()
    client = import_mlflow().MlflowClient(tracking_uri=tracking_uri)
    if model_id is not None:
        return FoundModel(name=model_id, location=str(client.get_logged_model(model_id).artifact_location))
    if alias is not None:
        version = client.get_model_version_by_alias(name, alias).version
    location = client.get_model_version_download_uri(name, version)
    return FoundModel(name=f"{name}/{version}", location=str(location))


def download_segmenter(model: FoundModel, tracking_uri: str, to: Path) -> Path:
    """A folder below `to` with a model's segmenter; GwmError if it is another kind of model."""
    artifacts = import_mlflow().artifacts
    folder = Path(
        artifacts.download_artifacts(
            artifact_uri=f"{model.location.rstrip('/')}/data/{FOLDER}",
            dst_path=str(to),
            tracking_uri=tracking_uri,
        )
    )
    if not (folder / CONFIG_FILE).is_file():
        raise GwmError(f"models:/{model.name} is not a segmenter that gwm train logged.")
    return folder


def _upload(run: MlflowRun, files: SegmenterFiles) -> str:
    client = run.client
    experiment = client.get_run(run.run_id).info.experiment_id
    tags = {CONTENT_TAG: files.sha256, "gwm.version": version()}
    model = client.create_logged_model(experiment, "segmenter", source_run_id=run.run_id, tags=tags)
    try:
        with tempfile.TemporaryDirectory(prefix="gwm-") as temporary:
            folder = Path(temporary) / "model"
            _save(folder, files.folder, {"model_id": model.model_id, "run_id": run.run_id})
            client.log_model_artifacts(model.model_id, str(folder))
    except BaseException:
        client.finalize_logged_model(model.model_id, "FAILED")
        raise
    client.finalize_logged_model(model.model_id, "READY")
    return str(model.model_id)


def _save(folder: Path, segmenter: Path, names: Mapping[str, str]) -> None:
    """Writes the model's folder as MLflow loads and serves it."""
    mlflow = import_mlflow()
    picture = encode_png(render_scene(0, num_frames=1, height_px=72, width_px=128).frames[0])
    mlflow.pyfunc.save_model(
        folder,
        mlflow_model=mlflow.models.Model(**names),
        loader_module="pipeline.served_model",
        data_path=str(segmenter),
        code_paths=[str(Path(package.__path__[0])) for package in (gwm_model, pipeline)],
        model_config=served_values(),
        signature=_signature(),
        input_example={IMAGE: [picture]},
        pip_requirements=[f"{name}=={_version(name)}" for name in ("mlflow", *REQUIREMENTS)],
    )


def _signature() -> Any:
    """One column of encoded images in (base64 in JSON); out, the columns of `pipeline.served_model.answer`."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    answers = {
        "height_px": DataType.long,
        "width_px": DataType.long,
        "mask_png": DataType.string,
        "mask_rle": DataType.string,
        "area_fraction": DataType.double,
        "foreground_score": DataType.double,
        "error": DataType.string,
    }
    outputs = [ColSpec(kind, name, required=False) for name, kind in answers.items()]
    return ModelSignature(Schema([ColSpec(DataType.binary, IMAGE)]), Schema(outputs))


def _version(package: str) -> str:
    """The installed version as an index knows it, without the mark of a build."""
    return metadata.version(package).partition("+")[0]


def _register(run: MlflowRun, model_id: str, name: str) -> None:
    """Makes a logged model the newest version of a registered one, unless it is a version of it."""
    client, exceptions = run.client, import_mlflow().exceptions
    try:
        client.create_registered_model(name)
    except exceptions.MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"models:/{model_id}"
    versions = client.search_model_versions(f"name = '{name}'")
    if all(version.source != source for version in versions):
        client.create_model_version(name, source, run_id=run.run_id, model_id=model_id)
