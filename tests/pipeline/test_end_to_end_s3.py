"""The four commands on real S3 and MLflow servers, the same once more on the local disk, and on a server that fails."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import fsspec
import mlflow
import pytest
from mlflow.entities import Run

from pipeline import storage
from pipeline.cli import main
from pipeline.config import EvaluateConfig, PrepareConfig, SegmentConfig, TrainConfig
from pipeline.load_config import load_config
from pipeline.patient_s3 import PatientS3
from pipeline.scenes import render_scene, write_davis_layout, write_video
from tests import few_workers
from tests.fault_proxy import SHARES, Faults, fault_proxy

CONFIGS = {
    "prepare": PrepareConfig,
    "train": TrainConfig,
    "segment": SegmentConfig,
    "evaluate": EvaluateConfig,
}
SEQUENCES = ("blackswan", "camel")
NUM_FRAMES = 10
EXPERIMENT = "end-to-end"

PREPARE = ("estimate_flow.estimator=dis", "decode.clip_frames=6")
TRAIN = (
    "segmenter.architecture=unet",
    "segmenter.num_masks=3",
    "segmenter.height_px=48",
    "segmenter.width_px=80",
    "segmenter.hidden_channels=8",
    "num_steps=4",
    "batch_size=2",
    "log_every_steps=2",
    "checkpoint_every_steps=2",
    "picture_every_steps=4",
)
SEGMENT = ("chunk_images=8", "batch_size=4")
DEFAULT_WORKERS: Mapping[str, Sequence[str]] = {"prepare": (), "segment": (), "evaluate": ()}


def run(command: str, *words: str) -> dict[str, Any]:
    """One command through its page, as the command line calls it; returns the summary."""
    page: Callable[[Any], dict[str, Any]] = getattr(import_module(f"pipeline.{command}"), command)
    return page(load_config(CONFIGS[command], None, words))


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where one run of the four commands reads and writes."""

    root: str
    summaries: dict[str, dict[str, Any]]

    def files(self, folder: str) -> dict[str, bytes]:
        """Every file below a folder of the place, by its path."""
        url = storage.join(self.root, folder)
        return {storage.relative(file, url): storage.read_bytes(file) for file in storage.list_files(url)}


def commands(root: str, model: str, placement: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Words to prepare, train, segment with `model` and score below `root`; `placement` has words for some commands."""
    at = {name: storage.join(root, name) for name in ("videos", "flow", "model", "masks", "scores", "davis")}
    images = storage.join(at["davis"], "JPEGImages/480p")
    flow, masks = (f"output={at['flow']}", *PREPARE), (f"output={at['masks']}", *SEGMENT)
    scores = (f"masks={at['masks']}", f"output={at['scores']}", "protocol=official", *placement["evaluate"])
    return {
        "prepare": [f"videos={at['videos']}", *flow, *placement["prepare"]],
        "train": [f"flow={at['flow']}", f"output={at['model']}", *TRAIN],
        "segment": [f"images={images}", f"model={model}", *masks, *placement["segment"]],
        "evaluate": ["dataset=davis2016", f"data={at['davis']}", *scores],
    }


def run_all(root: str, model: str, placement: Mapping[str, Sequence[str]], *more: str) -> Place:
    """The four commands below `root`."""
    words = commands(root, model, placement)
    return Place(root=root, summaries={name: run(name, *words[name], *more) for name in words})


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rendered scenes: as videos to learn from, and in the folders of DAVIS to segment and score."""
    root = tmp_path_factory.mktemp("material")
    scenes = {
        name: render_scene(seed, num_frames=NUM_FRAMES, height_px=64, width_px=112)
        for seed, name in enumerate(SEQUENCES)
    }
    (root / "videos").mkdir()
    for name, scene in scenes.items():
        write_video(root / "videos" / f"{name}.mp4", scene.frames)
    write_davis_layout(root / "davis", scenes)
    return root


def uploaded(material: Path, bucket: Any, *folders: str) -> str:
    """Puts folders of the material into a bucket; returns the prefix that they are below."""
    root = storage.join(bucket.url, "project")
    for folder in folders:
        fsspec.filesystem("s3").put(f"{material}/{folder}/", f"{root}/{folder}/", recursive=True)
    return root


@pytest.fixture(scope="module")
def in_bucket(material: Path, make_bucket: Callable[[], Any], ray_local: None, mlflow_server: str) -> Place:
    """The four commands on the S3 server."""
    root = uploaded(material, make_bucket(), "videos", "davis")
    # A cluster that is named: its Ray Train starts the worker, which on the disk below is the command itself.
    more = ("placement.address=auto", f"tracking.uri={mlflow_server}", f"tracking.experiment={EXPERIMENT}")
    return run_all(root, storage.join(root, "model"), DEFAULT_WORKERS, *more)


@pytest.fixture(scope="module")
def on_disk(material: Path, in_bucket: Place, ray_local: None) -> Place:
    """The same by fewer workers on the local disk; the images are segmented by the model of the bucket."""
    return run_all(str(material), storage.join(in_bucket.root, "model"), few_workers.WORDS)


def test_every_command_does_all_its_units(in_bucket: Place) -> None:
    for command, summary in in_bucket.summaries.items():
        assert summary["units"]["done"] > 0, command
        assert summary["units"]["quarantined"] == 0, command
    assert in_bucket.summaries["prepare"]["units"]["done"] == 4  # two clips of each video
    assert in_bucket.summaries["prepare"]["rows"] == len(SEQUENCES) * NUM_FRAMES


def test_summaries_lie_beside_the_results(in_bucket: Place) -> None:
    for command, folder in (
        ("prepare", "flow"),
        ("train", "model"),
        ("segment", "masks"),
        ("evaluate", "scores"),
    ):
        stored = json.loads(storage.read_bytes(storage.join(in_bucket.root, folder, "summary.json")))
        assert stored["command"] == command
        assert stored["fingerprint"] == in_bucket.summaries[command]["fingerprint"]


def test_flow_shards_are_the_same_bytes_in_a_bucket_and_on_disk(in_bucket: Place, on_disk: Place) -> None:
    assert in_bucket.files("flow/shards")
    assert in_bucket.files("flow/shards") == on_disk.files("flow/shards")


def test_mask_shards_of_one_model_are_the_same_bytes(in_bucket: Place, on_disk: Place) -> None:
    assert in_bucket.files("masks/shards")
    assert in_bucket.files("masks/shards") == on_disk.files("masks/shards")
    assert sorted(in_bucket.files("masks/overlays")) == [f"{sequence}.mp4" for sequence in sorted(SEQUENCES)]
    assert in_bucket.files("masks/overlays") == on_disk.files("masks/overlays")


@pytest.mark.parametrize("folder", ["masks", "scores"])
def test_reports_show_the_same_pictures(folder: str, in_bucket: Place, on_disk: Place) -> None:
    name = f"{folder}/report.html"
    pages = [storage.read_bytes(storage.join(place.root, name)).decode() for place in (in_bucket, on_disk)]
    first, second = (re.findall(r'src="(data:[^"]+)" alt="([^"]+)"', page) for page in pages)
    assert first
    assert first == second


@pytest.mark.parametrize("dataset", ["flow", "masks"])
def test_manifests_are_the_same_bytes(dataset: str, in_bucket: Place, on_disk: Place) -> None:
    name = f"{dataset}/manifest.parquet"
    bytes_in_bucket = storage.read_bytes(storage.join(in_bucket.root, name))
    assert bytes_in_bucket == storage.read_bytes(storage.join(on_disk.root, name))


@pytest.mark.parametrize("dataset", ["flow", "masks"])
def test_descriptions_differ_in_nothing_but_places(dataset: str, in_bucket: Place, on_disk: Place) -> None:
    descriptions = [
        json.loads(storage.read_bytes(storage.join(place.root, dataset, "dataset.json")).decode())
        for place in (in_bucket, on_disk)
    ]
    for description in descriptions:
        del description["fingerprint"]
        for place in ("videos", "images", "model"):
            description["config"].pop(place, None)
    assert descriptions[0] == descriptions[1]


def test_training_on_the_same_shards_gives_the_same_segmenter(in_bucket: Place, on_disk: Place) -> None:
    for name in ("segmenter.json", "segmenter.safetensors"):
        in_bucket_bytes = storage.read_bytes(storage.join(in_bucket.root, "model", name))
        assert in_bucket_bytes == storage.read_bytes(storage.join(on_disk.root, "model", name))


def test_scores_are_equal_and_fractions(in_bucket: Place, on_disk: Place) -> None:
    summary = in_bucket.summaries["evaluate"]
    assert set(summary["sequences"]) == set(SEQUENCES)
    assert 0 <= summary["j_mean"] <= 1
    assert summary["sequences"] == on_disk.summaries["evaluate"]["sequences"]


def test_a_second_run_finds_everything_done(in_bucket: Place) -> None:
    before = in_bucket.files("flow/shards")
    words = (f"videos={in_bucket.root}/videos", f"output={in_bucket.root}/flow")
    summary = run("prepare", *words, *PREPARE, *few_workers.WORDS["prepare"])
    assert summary["units"] == {"done": 0, "skipped": 4, "quarantined": 0}
    assert in_bucket.files("flow/shards") == before


def tracked_runs(server: str) -> Iterator[Run]:
    client = mlflow.MlflowClient(server)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    yield from client.search_runs([experiment.experiment_id])


def test_each_command_is_one_finished_run_on_the_tracking_server(
    in_bucket: Place, mlflow_server: str
) -> None:
    runs = {run.info.run_name.split()[0]: run for run in tracked_runs(mlflow_server)}
    assert len(list(tracked_runs(mlflow_server))) == len(runs) == 4
    assert set(runs) == set(CONFIGS)
    for command, tracked in runs.items():
        assert tracked.info.status == "FINISHED", command
        assert tracked.data.params, command
        assert tracked.data.metrics, command
    assert runs["prepare"].data.params["estimate_flow.estimator"] == "dis"
    assert runs["train"].data.params["segmenter.num_masks"] == "3"
    assert "loss" in runs["train"].data.metrics


def test_the_runs_lead_from_one_to_the_next(in_bucket: Place, mlflow_server: str) -> None:
    """By the flow that prepare wrote and train read, train's model, and the masks that evaluate scored."""
    client = mlflow.MlflowClient(tracking_uri=mlflow_server)
    whole = [client.get_run(run.info.run_id) for run in tracked_runs(mlflow_server)]
    runs = {run.info.run_name.split()[0]: run for run in whole}

    def datasets(command: str, context: str) -> list[str]:
        used = runs[command].inputs.dataset_inputs
        return [one.dataset.digest for one in used if [tag.value for tag in one.tags] == [context]]

    assert datasets("prepare", "output") == datasets("train", "training") != []
    assert datasets("segment", "output") == datasets("evaluate", "evaluation") != []
    (trained,) = runs["train"].outputs.model_outputs
    for command in ("segment", "evaluate"):
        assert [used.model_id for used in runs[command].inputs.model_inputs] == [trained.model_id]
    scores = {metric.key: metric.value for metric in client.get_logged_model(trained.model_id).metrics}
    assert scores["j_official"] == in_bucket.summaries["evaluate"]["j_mean"]


# A server that fails


COMMANDS_IN_ONE_PROCESS = """
import json, sys
from pipeline.cli import main
sys.exit(max(main(words) for words in json.loads(sys.argv[1])))
"""
RESULTS = (
    "flow/shards",
    "flow/manifest.parquet",
    "masks/shards",
    "masks/manifest.parquet",
    "model/segmenter",
)
BAD_DAY = Faults(slow_down=0.3, reset=0.04, lost_answer=0.04, cut_short=0.08, stall=0.04, outage_after=40)


def gwm(*several: list[str], endpoint: str) -> subprocess.CompletedProcess[str]:
    """Commands one after another in a process of their own, whose S3 server is at `endpoint`."""
    process = [sys.executable, "-c", COMMANDS_IN_ONE_PROCESS, json.dumps(several)]
    environment = {**os.environ, "AWS_ENDPOINT_URL": endpoint}
    return subprocess.run(process, capture_output=True, text=True, check=False, env=environment, timeout=570)


def results(root: str) -> dict[str, bytes]:
    """Every file that is a result, by its path."""
    files = ((storage.relative(url, root), url) for url in storage.list_files(root))
    return {name: storage.read_bytes(url) for name, url in files if name.startswith(RESULTS)}


@pytest.mark.parametrize(
    ("stall_s", "outage_s"), [(1.0, 8.0), pytest.param(5.0, 30.0, marks=pytest.mark.slow)]
)
def test_a_bad_server_changes_no_byte(
    stall_s: float,
    outage_s: float,
    s3_server: str,
    make_bucket: Callable[[], Any],
    material: Path,
    on_disk: Place,
) -> None:
    root = uploaded(material, make_bucket(), "videos", "davis")
    words = commands(root, storage.join(root, "model"), few_workers.WORDS)
    faults = replace(BAD_DAY, stall_s=stall_s, outage_s=outage_s)
    with fault_proxy(s3_server, faults, seed=1) as proxy:
        done = gwm(
            *([name, *words[name]] for name in ("prepare", "train", "segment")), endpoint=proxy.endpoint
        )
    print(f"{proxy.requests} requests, {dict(proxy.counts)}")
    assert done.returncode == 0, done.stderr
    assert results(root) == results(on_disk.root)
    assert len(results(root)) == 12  # 4 clips, 4 chunks, 2 manifests, 2 files of the model
    assert all(proxy.counts[kind] for kind in (*SHARES, "outage")), proxy.counts


@pytest.mark.usefixtures("tracked")
def test_a_server_that_refuses_shards_ends_the_job_with_one_sentence(
    s3_server: str, make_bucket: Callable[[], Any], material: Path
) -> None:
    root = uploaded(material, make_bucket(), "videos")

    def refuse(method: str, target: str) -> tuple[int, str] | None:
        return (403, "AccessDenied") if method in ("PUT", "POST") and "/shards/" in target else None

    prepare = commands(root, "", few_workers.WORDS)["prepare"]
    with fault_proxy(s3_server, Faults(refuse=refuse)) as proxy:
        done = gwm(["prepare", *prepare], endpoint=proxy.endpoint)
    assert done.returncode == 1
    sentences = [line for line in done.stderr.splitlines() if line.startswith("gwm: ")]
    assert len(sentences) == 2, done.stderr  # that MLflow has no place, and the error
    assert "Access denied to" in sentences[1]
    assert "Traceback" not in done.stderr + done.stdout
    left = [storage.relative(url, f"{root}/flow") for url in storage.list_files(f"{root}/flow")]
    assert "dataset.json" in left
    assert set(left) <= {"dataset.json", "progress.json"}  # the latter from a job of ten seconds on


# Errors that a user can act on


NO_CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": None,
    "AWS_SECRET_ACCESS_KEY": None,
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
}


@pytest.fixture
def environment(request: pytest.FixtureRequest, s3: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Variables changed or (None) removed; no client of before or after knows of it."""
    for name, value in request.param.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    PatientS3.clear_instance_cache()
    yield
    PatientS3.clear_instance_cache()


@pytest.mark.parametrize(
    ("role", "bucket", "environment", "words"),
    [
        ("videos", "no-such-bucket", {}, "no-such-bucket"),
        ("output", "no-such-bucket", {}, "no-such-bucket"),
        ("videos", None, NO_CREDENTIALS, "credentials"),
        ("videos", None, {"AWS_SECRET_ACCESS_KEY": "wrong-secret"}, "AWS_SECRET_ACCESS_KEY"),
        ("output", None, {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "AWS_ENDPOINT_URL"),
    ],
    indirect=["environment"],
    ids=["no bucket to read", "no bucket to write", "no credentials", "wrong secret", "no server"],
)
def test_storage_errors_are_one_sentence(
    role: str,
    bucket: str | None,
    environment: None,
    words: str,
    s3: Any,
    material: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    url = f"s3://{bucket or s3.name}/project"
    places = {"videos": str(material / "videos"), "output": str(tmp_path / "flow"), role: url}
    given = [f"{name}={place}" for name, place in places.items()]
    code = main(["prepare", *given, *PREPARE])
    said = capfd.readouterr()
    assert code == 1, said.err
    assert said.out == ""
    (sentence,) = said.err.strip().splitlines()
    assert words in sentence
    assert not any(secret in sentence for secret in ("wrong-secret", "gwm-tests-secret"))
