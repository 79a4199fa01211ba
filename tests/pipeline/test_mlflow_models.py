"""Segmenters on a real MLflow server: logged, registered, loaded by MLflow, and used by their names."""

import base64
import json
import shutil
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import pytest

from pipeline import dry_run, storage
from pipeline.config import EvaluateConfig, ExportConfig, SegmentConfig, TrackingConfig, TrainConfig
from pipeline.errors import GwmError
from pipeline.inference import read_model_card
from pipeline.registered_model import with_model_at_hand, with_models_copied
from pipeline.scenes import render_scene
from pipeline.served_model import REQUIREMENTS, _load_pyfunc
from pipeline.submit import _refuse_relative_places as refuse_relative_places
from pipeline.tracking import Tracker


@pytest.fixture(autouse=True)
def _patient_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")  # other work may keep this machine busy


@dataclass(frozen=True)
class Registry:
    """A server on which a segmenter is registered under a name of its own."""

    server: str
    name: str
    folder: Path

    @property
    def client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.server)

    def tracker(self, command: str, **values: Any) -> Tracker:
        """A run of a command in an experiment of this registry."""
        tracking = TrackingConfig(
            uri=self.server, experiment=self.name, registered_model=self.name, system_metrics=False
        )
        output = str(self.folder / command)
        config = TrainConfig(flow="flow", output=output)
        return Tracker.start(
            tracking, command=command, output=output, run_config=config, fingerprint="0", **values
        )

    def log(self, model: str) -> None:
        """Logs and registers a segmenter as a run of train."""
        tracker = self.tracker("train")
        tracker.log_segmenter(model, read_model_card(model).sha256, step=12)
        assert tracker.finish("FINISHED") == 0

    def runs(self) -> dict[str, Any]:
        """The runs by command."""
        experiment = self.client.get_experiment_by_name(self.name)
        runs = self.client.search_runs([experiment.experiment_id])
        whole = [self.client.get_run(run.info.run_id) for run in runs]  # a search leaves the models out
        return {run.data.tags["gwm.command"]: run for run in whole}


@pytest.fixture(scope="module")
def make_registry(mlflow_server: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Registry]:
    return lambda: Registry(mlflow_server, f"gwm-{uuid.uuid4().hex[:8]}", tmp_path_factory.mktemp("outputs"))


@pytest.fixture(scope="module")
def registry(make_registry: Callable[[], Registry], tiny_model: str) -> Registry:
    """With the tiny model as version 1, the champion."""
    registry = make_registry()
    registry.log(tiny_model)
    registry.client.set_registered_model_alias(registry.name, "champion", "1")
    return registry


def configured(registry: Registry, model: str, output: Path) -> SegmentConfig:
    tracking = TrackingConfig(uri=registry.server)
    return SegmentConfig(images="images", model=model, output=str(output), tracking=tracking)


def test_mlflow_loads_the_model_and_it_segments(
    registry: Registry, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.server)
    monkeypatch.setattr(sys, "path", list(sys.path))  # MLflow adds the code of a model that it loads
    image = cv2.imencode(".png", render_scene(2, num_frames=1).frames[0])[1].tobytes()
    model = mlflow.pyfunc.load_model(f"models:/{registry.name}@champion", suppress_warnings=True)
    assert model.predict([{"image": image}]) == _load_pyfunc(tiny_model).predict({"image": [image]})


def test_what_lies_in_a_logged_model(registry: Registry, tiny_model: str, tmp_path: Path) -> None:
    """The segmenter, both packages, versions of what they need, and nothing that is executed by loading its data."""
    import mlflow

    location = registry.client.get_model_version_download_uri(registry.name, "1")
    folder = Path(
        mlflow.artifacts.download_artifacts(location, dst_path=str(tmp_path), tracking_uri=registry.server)
    )
    files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert {"data/segmenter/segmenter.json", "data/segmenter/segmenter.safetensors"} <= files
    assert {"code/gwm_model/motion.py", "code/pipeline/served_model.py"} <= files
    assert not [name for name in files if name.endswith((".pkl", ".pickle", ".pyc", ".pt", ".bin"))]
    pins = dict(line.split("==") for line in (folder / "requirements.txt").read_text().splitlines())
    assert pins.keys() == {"mlflow", *REQUIREMENTS}
    assert not any(mark in version for version in pins.values() for mark in "+/:@ ")
    example = json.loads((folder / "serving_input_example.json").read_text())["inputs"]["image"]
    (answer,) = _load_pyfunc(tiny_model).predict({"image": [base64.b64decode(image) for image in example]})
    assert (answer["error"], answer["height_px"]) == (None, 72)


def test_a_name_is_copied_into_the_output_by_version(
    registry: Registry, tiny_model: str, tmp_path: Path
) -> None:
    model_id = registry.runs()["train"].outputs.model_outputs[0].model_id
    copies = {
        name: with_models_copied(configured(registry, f"models:/{name}", tmp_path)).model
        for name in (f"{registry.name}@champion", f"{registry.name}/1", model_id)
    }
    by_version = str(tmp_path / "models" / registry.name / "1")
    assert list(copies.values()) == [by_version, by_version, str(tmp_path / "models" / model_id)]
    for copy in copies.values():
        assert read_model_card(copy).sha256 == read_model_card(tiny_model).sha256


def test_every_command_with_a_model_takes_a_name(registry: Registry, tiny_model: str, tmp_path: Path) -> None:
    name, tracking, output = (
        f"models:/{registry.name}@champion",
        TrackingConfig(uri=registry.server),
        str(tmp_path),
    )
    copy = str(tmp_path / "models" / registry.name / "1")
    training = TrainConfig(flow="flow", output=output, initial_model=name, tracking=tracking)
    assert with_models_copied(training).initial_model == copy
    scoring = EvaluateConfig(dataset="images", data="data", output=output, model=name, tracking=tracking)
    assert with_models_copied(scoring).model == copy
    plain = replace(scoring, model=tiny_model)
    assert with_models_copied(plain) is plain


def test_export_has_a_copy_at_hand(
    registry: Registry, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.server)
    given = ExportConfig(format="onnx", model=f"models:/{registry.name}/1", output="segmenter.onnx")
    with with_model_at_hand(given) as config:
        copy = str(config.model)
        assert read_model_card(copy).sha256 == read_model_card(tiny_model).sha256
    assert not storage.exists(copy)


def test_a_dry_run_says_which_version_a_name_means(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.png"), render_scene(0, num_frames=1).frames[0])
    config = configured(registry, f"models:/{registry.name}@champion", tmp_path / "masks")
    found = dry_run.describe(replace(config, images=str(tmp_path / "images")))
    assert found["model"] == f"models:/{registry.name}/1"
    assert not (tmp_path / "masks").exists()


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("models:/{name}@nobody", "models:/{name}@nobody cannot be had from MLflow at {server}: "),
        ("models:/{name}/7", "models:/{name}/7 cannot be had from MLflow at {server}: "),
        ("models:/no-such-name/1", "models:/no-such-name/1 cannot be had from MLflow at {server}: "),
        ("models:/m-0123", "models:/m-0123 cannot be had from MLflow at {server}: "),
        (
            "models:/{name}",
            "models:/{name} is not models:/NAME@ALIAS, models:/NAME/VERSION or models:/MODEL_ID.",
        ),
        ("models:/../../x/1", "models:/../../x/1 is not models:/NAME@ALIAS"),
    ],
)
def test_a_name_that_means_nothing_is_one_sentence(
    uri: str, words: str, registry: Registry, tmp_path: Path
) -> None:
    places = {"name": registry.name, "server": registry.server}
    with pytest.raises(GwmError) as raised:
        with_models_copied(configured(registry, uri.format(**places), tmp_path))
    assert str(raised.value).startswith(words.format(**places))
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_a_server_must_be_named_and_must_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = SegmentConfig(images="images", model="models:/gwm@champion", output=str(tmp_path))
    for nowhere in (config, replace(config, tracking=TrackingConfig(uri="none"))):
        with pytest.raises(GwmError, match=r"tracking\.uri= or MLFLOW_TRACKING_URI says in which"):
            with_models_copied(nowhere)
    away = replace(config, tracking=TrackingConfig(uri="http://user:secret@127.0.0.1:1"))
    with pytest.raises(GwmError, match=r"cannot be had from MLflow at http://127\.0\.0\.1:1: ") as raised:
        with_models_copied(away)
    assert "secret" not in str(raised.value)


def test_a_model_of_another_kind_is_refused(registry: Registry, tmp_path: Path) -> None:
    experiment = registry.client.get_experiment_by_name(registry.name).experiment_id
    other = registry.client.create_logged_model(experiment, "other")
    (tmp_path / "MLmodel").write_text("flavors: {}\n")
    registry.client.log_model_artifacts(other.model_id, str(tmp_path))
    with pytest.raises(GwmError, match=f"models:/{other.model_id} "):
        with_models_copied(configured(registry, f"models:/{other.model_id}", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_segmenter_is_logged_once_and_registered_once(
    make_registry: Callable[[], Registry], tiny_model: str
) -> None:
    registry = make_registry()
    for _ in range(2):
        registry.log(tiny_model)
    run = registry.runs()["train"]
    (version,) = registry.client.search_model_versions(f"name = '{registry.name}'")
    (output,) = run.outputs.model_outputs
    assert (version.source, output.step) == (f"models:/{output.model_id}", 12)


def test_runs_that_share_content_are_linked(
    make_registry: Callable[[], Registry], tiny_model: str, rendered_flow: str, tmp_path: Path
) -> None:
    """The flow that prepare wrote and train read, also from a copy; the model of train in segment and in evaluate."""
    from pipeline.dataset import Dataset

    registry = make_registry()
    shutil.copytree(rendered_flow, tmp_path / "flow")
    for command, url, context in (
        ("prepare", rendered_flow, "output"),
        ("train", str(tmp_path / "flow"), "training"),
    ):
        tracker = registry.tracker(command)
        tracker.log_dataset(url, Dataset.read(url, kind="flow").manifest(), context=context)
        if command == "train":
            tracker.log_segmenter(tiny_model, read_model_card(tiny_model).sha256, step=12)
        assert tracker.finish("FINISHED") == 0
    for command in ("segment", "evaluate"):
        tracker = registry.tracker(command)
        tracker.use_model(read_model_card(tiny_model).sha256)
        tracker.log_metrics({f"{command}_s": 1.0})
        tracker.log_metrics({"j_mean": 0.5}, are_scores=command == "evaluate")
        assert tracker.finish("FINISHED") == 0

    runs = registry.runs()
    (written,), (read,) = runs["prepare"].inputs.dataset_inputs, runs["train"].inputs.dataset_inputs
    assert written.dataset.digest == read.dataset.digest
    assert (written.dataset.name, read.dataset.name) == ("flow", "flow")
    assert [tag.value for tag in (*written.tags, *read.tags)] == ["output", "training"]
    (model,) = runs["train"].outputs.model_outputs
    for command in ("segment", "evaluate"):
        assert [used.model_id for used in runs[command].inputs.model_inputs] == [model.model_id]
    logged = registry.client.get_logged_model(model.model_id)
    assert {metric.key: metric.value for metric in logged.metrics or ()} == {"j_mean": 0.5}


def test_a_job_may_be_sent_with_a_name() -> None:
    places = {"images": "s3://bucket/images", "output": "s3://bucket/masks"}
    refuse_relative_places(SegmentConfig(model="models:/gwm@champion", **places))
    with pytest.raises(GwmError, match="model=gwm@champion is a path on this machine"):
        refuse_relative_places(SegmentConfig(model="gwm@champion", **places))
    with pytest.raises(GwmError, match="initial_model=before is a path on this machine"):
        refuse_relative_places(
            TrainConfig(flow="s3://bucket/flow", output="s3://bucket/model", initial_model="before")
        )
