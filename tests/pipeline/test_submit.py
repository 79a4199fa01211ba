"""Jobs on a real cluster of two nodes, with a token, on videos in a real bucket."""

import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import cli, storage
from pipeline.config import PrepareConfig
from pipeline.job_metrics import COUNTERS
from pipeline.load_config import load_config
from pipeline.scenes import render_scene, write_video
from pipeline.status import output_status
from pipeline.submit import job_name
from tests import few_workers

WORDS = ("estimate_flow.estimator=dis", *few_workers.WORDS["prepare"])


class Cluster:
    """The command line beside a cluster, with one bucket."""

    def __init__(self, running: Any, root: str) -> None:
        self.running, self.root = running, root
        places = (f"videos={root}/videos", f"output={root}/flow")
        self.submit = ("submit", "prepare", *places, *WORDS, "--address", running.address)

    def gwm(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pipeline", *words],
            capture_output=True,
            text=True,
            check=False,
            env=self.running.environment | environment,
            timeout=300,
        )

    def jobs(self) -> list[dict[str, Any]]:
        done = self.gwm("status", "--address", self.running.address)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for seed in (0, 1):
        scene = render_scene(seed, num_frames=6, height_px=48, width_px=64)
        write_video(folder / f"{seed}.mp4", scene.frames)
    return folder


@pytest.fixture(scope="module")
def cluster(ray_cluster: Any, make_bucket: Callable[[], Any], videos: Path) -> Cluster:
    """Beside a bucket with one whole video and one that has lost its index."""
    root = make_bucket().url
    whole = (videos / "0.mp4").read_bytes()
    storage.write_bytes(f"{root}/videos/0.mp4", whole)
    storage.write_bytes(f"{root}/videos/1.mp4", whole[:100])
    return Cluster(ray_cluster, root)


def test_one_command_is_one_job_until_it_ends_and_its_exit_code_arrives(
    cluster: Cluster, videos: Path
) -> None:
    first = cluster.gwm(*cluster.submit)
    assert first.returncode == 0, first.stderr
    again = cluster.gwm(*cluster.submit, "--follow")
    assert "gwm: submitted already." in again.stderr
    assert again.returncode == 2, again.stdout
    assert '"units": {"done": 1, "skipped": 0, "quarantined": 1}' in again.stdout

    storage.write_bytes(f"{cluster.root}/videos/1.mp4", (videos / "1.mp4").read_bytes())
    retried = cluster.gwm(*cluster.submit, "retry_quarantined=true", "--follow")
    assert retried.returncode == 0, retried.stdout
    assert '"units": {"done": 1, "skipped": 1, "quarantined": 0}' in retried.stdout
    jobs = cluster.jobs()
    assert first.stdout.endswith("-1\n")
    assert [job["id"] for job in jobs] == [first.stdout.replace("-1\n", f"-{number}") for number in (1, 2)]
    assert [(job["status"], job["exit_code"]) for job in jobs] == [("failed", 2), ("succeeded", 0)]
    assert {(job["command"], job["output"]) for job in jobs} == {("prepare", f"{cluster.root}/flow")}
    flow = output_status(f"{cluster.root}/flow")
    assert (flow["state"], flow["done"], flow["total"], flow["quarantined"]) == ("finished", 2, 2, 0)


def test_what_jobs_have_done_is_exported_for_prometheus(cluster: Cluster) -> None:
    """Under the names that the dashboard asks for (tests/infra/test_guide.py); needs the jobs of the test above."""
    exported = set()
    for address in cluster.running.metrics:
        with urllib.request.urlopen(address, timeout=60) as answer:
            exported |= set(re.findall(r"^ray_(gwm_\w+)\{", answer.read().decode(), re.MULTILINE))
    counters = {f"{name}_total" for name in COUNTERS if name != "gwm_images"}
    assert exported == counters | {"gwm_progress", "gwm_progress_total"}


def test_a_mistake_that_only_the_cluster_can_see_is_one_sentence_and_1(cluster: Cluster) -> None:
    done = cluster.gwm(*cluster.submit, f"videos={cluster.root}/nothing", "--follow")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith("gwm: ")
    assert f"{cluster.root}/nothing" in done.stdout.splitlines()[-1]


def test_no_job_without_the_token(cluster: Cluster) -> None:
    for environment in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "0" * 64}):
        done = cluster.gwm(*cluster.submit, **environment)
        assert done.returncode == 1
        (sentence,) = done.stderr.splitlines()
        assert "wants its token" in sentence
        assert cluster.running.environment["RAY_AUTH_TOKEN"] not in sentence


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["prepare", "videos=videos", "output=s3://b/flow"], "videos=videos is a path on this machine"),
        (["prepare", "videos=s3://b/videos", "ouput=s3://b/flow"], "did you mean 'output'?"),
        (["demo"], "'demo' cannot be submitted"),
        (["prepare", "videos=s3://b/v", "output=s3://b/f", "--address", "head:8265"], "cannot be head:8265"),
        (["prepare", "videos=s3://b/v", "output=s3://b/f"], "--address is missing"),
        (
            ["prepare", "videos=s3://b/v", "output=s3://b/f", "--address", "http://127.0.0.1:1"],
            "No Ray job server answers at http://127.0.0.1:1.",
        ),
        (
            ["prepare", "videos=s3://b/v", "output=s3://b/f", "--env", "NO_SUCH_NAME"],
            "--env NO_SUCH_NAME: there is no such variable",
        ),
    ],
)
def test_what_can_be_refused_here_is_not_sent(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    assert cli.main(["submit", *words]) == 1
    assert said in capfd.readouterr().err


def test_a_name_says_what_is_computed_and_where() -> None:
    def name(*words: str) -> str:
        config = load_config(PrepareConfig, None, ["videos=s3://b/videos", "output=s3://b/flow", *words])
        return job_name("prepare", config)

    assert name() == name("placement.estimate_flow.num_gpus=1", "retry_quarantined=true")
    assert len({name(), name("output=s3://b/other"), name("decode.stride=2")}) == 3
