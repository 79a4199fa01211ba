"""The commands on an object store that fails: the same output as on the local disk, or one sentence."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.cli import main
from pipeline.scenes import render_scene, write_video
from tests import few_workers
from tests.fault_proxy import Faults, fault_proxy

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

BAD_DAY: dict[str, float] = {
    "slow_down": 0.3,
    "reset": 0.04,
    "lost_answer": 0.04,
    "cut_short": 0.08,
    "stall": 0.04,
}


def commands(root: str, model: str) -> list[list[str]]:
    """prepare, train and segment below `root`; small enough for a test."""
    flow = ["estimate_flow.estimator=dis", "decode.clip_frames=4", *few_workers.WORDS["prepare"]]
    chunks = ["chunk_images=4", *few_workers.WORDS["segment"]]
    sizes = ["segmenter.height_px=32", "segmenter.width_px=48", "segmenter.hidden_channels=8"]
    steps = ["num_steps=4", "batch_size=2", "log_every_steps=2", "checkpoint_every_steps=2"]
    network = [
        "segmenter.architecture=unet",
        "segmenter.num_masks=3",
        *sizes,
        *steps,
        "picture_every_steps=4",
    ]
    return [
        ["prepare", f"videos={root}/videos", f"output={root}/flow", *flow],
        ["train", f"flow={root}/flow", f"output={root}/model", *network],
        ["segment", f"images={root}/videos", f"model={model}", f"output={root}/masks", *chunks],
    ]


def gwm(*several: list[str], endpoint: str) -> subprocess.CompletedProcess[str]:
    """Commands one after another in a process of their own, whose S3 server is at `endpoint`."""
    process = [sys.executable, "-c", COMMANDS_IN_ONE_PROCESS, json.dumps(several)]
    environment = {**os.environ, "AWS_ENDPOINT_URL": endpoint}
    return subprocess.run(process, capture_output=True, text=True, check=False, env=environment, timeout=570)


def results(root: str) -> dict[str, bytes]:
    """Every file that is a result, by its path."""
    files = ((storage.relative(url, root), url) for url in storage.list_files(root))
    return {name: storage.read_bytes(url) for name, url in files if name.startswith(RESULTS)}


@pytest.fixture(scope="module")
def on_disk(ray_local: None, tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The videos and what the commands make of them on the local disk."""
    root = tmp_path_factory.mktemp("good")
    (root / "videos").mkdir()
    for seed in range(2):
        scene = render_scene(seed, num_frames=8, height_px=48, width_px=64)
        write_video(root / "videos" / f"{seed}.mp4", scene.frames)
    for words in commands(str(root), tiny_model):
        assert main(words) == 0
    return root


@pytest.fixture
def in_bucket(on_disk: Path, make_bucket: Callable[[], Any]) -> str:
    """A prefix with the videos."""
    root = f"{make_bucket().url}/project"
    for video in (on_disk / "videos").iterdir():
        storage.write_bytes(f"{root}/videos/{video.name}", video.read_bytes())
    return root


def check_same_results(faults: Faults, server: str, root: str, good: Path, model: str) -> None:
    with fault_proxy(server, faults, seed=1) as proxy:
        done = gwm(*commands(root, model), endpoint=proxy.endpoint)
    print(f"{proxy.requests} requests, {dict(proxy.counts)}")
    assert done.returncode == 0, done.stderr
    assert results(root) == results(str(good))
    assert len(results(root)) == 12  # 4 clips, 4 chunks, 2 manifests, 2 files of the model
    for kind in (*BAD_DAY, "outage"):
        assert proxy.counts[kind], proxy.counts


def test_a_bad_server_changes_no_byte(s3_server: str, in_bucket: str, on_disk: Path, tiny_model: str) -> None:
    faults = Faults(**BAD_DAY, stall_s=1.0, outage_after=40, outage_s=8.0)
    check_same_results(faults, s3_server, in_bucket, on_disk, tiny_model)


@pytest.mark.slow
def test_half_a_minute_without_a_server_and_stalls(
    s3_server: str, in_bucket: str, on_disk: Path, tiny_model: str
) -> None:
    faults = Faults(**BAD_DAY, stall_s=5.0, outage_after=40, outage_s=30.0)
    check_same_results(faults, s3_server, in_bucket, on_disk, tiny_model)


@pytest.mark.usefixtures("tracked")
def test_a_server_that_refuses_shards_ends_the_job_with_one_sentence(
    s3_server: str, in_bucket: str, tiny_model: str
) -> None:
    def refuse(method: str, target: str) -> tuple[int, str] | None:
        return (403, "AccessDenied") if method in ("PUT", "POST") and "/shards/" in target else None

    with fault_proxy(s3_server, Faults(refuse=refuse)) as proxy:
        done = gwm(commands(in_bucket, tiny_model)[0], endpoint=proxy.endpoint)
    assert done.returncode == 1
    sentences = [line for line in done.stderr.splitlines() if line.startswith("gwm: ")]
    assert len(sentences) == 2, done.stderr  # that MLflow has no place, and the error
    assert "Access denied to" in sentences[1]
    assert "Traceback" not in done.stderr + done.stdout
    left = [storage.relative(url, f"{in_bucket}/flow") for url in storage.list_files(f"{in_bucket}/flow")]
    assert "dataset.json" in left
    assert set(left) <= {"dataset.json", "progress.json"}  # the latter from a job of ten seconds on
