"""Runs killed at any moment, on a real cluster of three nodes: a rerun ends with the bytes of an undisturbed run."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from ray.cluster_utils import Cluster

PATIENCE_S = 240.0
STOP_S = 10.0
"""An interrupted command is gone within this time."""
POLL_S = 0.05
"""Between two looks at a run; to look all the time takes a core from it."""

NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20}

Shards = dict[str, bytes]


@pytest.fixture(scope="module")
def cluster(s3_environment: str) -> Iterator[Cluster]:
    """Three nodes on this machine, one of which holds all the CPUs that one run needs."""
    head = NODE | {"num_cpus": 2, "include_dashboard": False}
    made = Cluster(initialize_head=True, connect=False, head_node_args=head)
    for _ in range(2):
        made.add_node(**NODE)
    yield made
    made.shutdown()


@dataclass
class Job:
    """One command with its output, started as a process as often as a test wants."""

    words: list[str]
    output: Path

    def start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "pipeline", *self.words, f"output={self.output}"]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def expect_done(self, process: subprocess.Popen[str]) -> None:
        _, errors = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, errors

    def finish(self) -> None:
        self.expect_done(self.start())

    def shard_files(self) -> list[Path]:
        """Finished shards; a file that a kill left before its rename is none."""
        return list(self.output.glob("shards/[!.]*"))

    def shards(self) -> Shards:
        """What is in the finished shards."""
        return {path.name: path.read_bytes() for path in self.shard_files()}

    def drawings(self) -> Shards:
        """Overlays of the videos, and the contact sheet."""
        files = [*self.output.glob("overlays/[!.]*"), *self.output.glob("contact_sheet.*")]
        return {path.name: path.read_bytes() for path in files}

    def into(self, output: Path) -> "Job":
        return Job(self.words, output)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six videos, and forty pictures that are not numbered frames."""
    folder = tmp_path_factory.mktemp("inputs")
    generator = np.random.default_rng(0)
    for number in range(6):
        with av.open(str(folder / f"{number}.mp4"), "w") as container:
            stream: Any = container.add_stream("mpeg4", rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for _ in range(24):
                pixels = generator.integers(0, 255, (48, 64, 3)).astype(np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())
    for number in range(40):
        picture = generator.integers(0, 255, (30, 40, 3)).astype(np.uint8)
        cv2.imwrite(str(folder / f"{number}-picture.png"), picture)
    return folder


@pytest.fixture(scope="module")
def prepare_reference(cluster: Cluster, inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """An undisturbed run of prepare."""
    words = ["prepare", f"videos={inputs}", "estimate_flow.estimator=dis", "decode.clip_frames=4"]
    stages = ("plan_clips", "decode_clip", "write_flow_shard")
    words += few_workers(cluster, "estimate_flow", *stages)
    job = Job(words, tmp_path_factory.mktemp("prepare") / "reference")
    job.finish()
    assert len(job.shards()) == 36
    return job


@pytest.fixture(scope="module")
def segment_reference(
    cluster: Cluster, inputs: Path, tiny_model: str, tmp_path_factory: pytest.TempPathFactory
) -> Job:
    """An undisturbed run of segment."""
    words = ["segment", f"images={inputs}", f"model={tiny_model}", "chunk_images=4", "report.num_samples=0"]
    stages = ("plan_chunks", "load_chunk", "write_mask_shard")
    words += few_workers(cluster, "segment_images", *stages)
    job = Job(words, tmp_path_factory.mktemp("segment") / "reference")
    job.finish()
    assert len(job.shards()) == 46
    assert len(job.drawings()) == 7
    return job


def few_workers(cluster: Cluster, pool: str, *stages: str) -> list[str]:
    """Whole CPUs: each run starts its own workers, and a start costs more than all their work here."""
    return [
        f"placement.address={cluster.address}",
        f"placement.{pool}.num_actors=1",
        *(f"placement.{stage}.num_cpus=1" for stage in stages),
    ]


def wait_until(condition: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    """What the condition finds, or None where the process ended before."""
    deadline = time.monotonic() + PATIENCE_S
    while process.poll() is None:
        if found := condition():
            return found
        assert time.monotonic() < deadline
        time.sleep(POLL_S)
    return None


def is_part_of(shards: Shards, reference: Shards) -> bool:
    return shards.items() <= reference.items()


def kill_again_and_again(job: Job, reference: Shards, num_kills: int, seed: int) -> int:
    """Kills runs over one output at moments drawn over their whole course; returns how many kills hit one."""
    generator = random.Random(seed)
    moments = sorted(generator.randrange(len(reference)) for _ in range(num_kills))
    hit = 0
    for moment in moments:
        process = job.start()
        wait_until(lambda moment=moment: len(job.shard_files()) >= moment, process)
        time.sleep(generator.uniform(0.0, 1.0))  # the moment itself is random
        hit += process.poll() is None
        process.kill()
        process.communicate()
        assert is_part_of(job.shards(), reference)
    return hit


def workers_of(nodes: Iterable[Any], stage: str) -> list[int]:
    """Process ids of the nodes' workers that are busy with a stage."""
    raylets = {node.all_processes["raylet"][0].process.pid for node in nodes}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent in raylets and stage in (folder / "cmdline").read_text():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def same_as(job: Job, reference: Job) -> bool:
    manifests = [(each.output / "manifest.parquet").read_bytes() for each in (job, reference)]
    drawn = job.drawings() == reference.drawings()
    return job.shards() == reference.shards() and manifests[0] == manifests[1] and drawn


@pytest.mark.ray
@pytest.mark.parametrize("num_kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_prepare_killed_again_and_again_ends_with_the_same_bytes(
    prepare_reference: Job, tmp_path: Path, num_kills: int
) -> None:
    job = prepare_reference.into(tmp_path / "flow")
    assert kill_again_and_again(job, prepare_reference.shards(), num_kills, seed=num_kills) >= num_kills - 1
    job.finish()
    assert same_as(job, prepare_reference)


@pytest.mark.ray
@pytest.mark.parametrize("num_kills", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_segment_killed_again_and_again_ends_with_the_same_bytes(
    segment_reference: Job, tmp_path: Path, num_kills: int
) -> None:
    job = segment_reference.into(tmp_path / "masks")
    assert kill_again_and_again(job, segment_reference.shards(), num_kills, seed=num_kills) >= num_kills - 1
    job.finish()
    assert same_as(job, segment_reference)


@pytest.mark.ray
def test_killed_workers_and_a_lost_node_take_nothing_along(
    cluster: Cluster, prepare_reference: Job, tmp_path: Path
) -> None:
    job = prepare_reference.into(tmp_path / "flow")
    process = job.start()
    for stage in ("decode_clip", "EstimateFlow"):
        for worker in wait_until(lambda stage=stage: workers_of(cluster.list_all_nodes(), stage), process):
            os.kill(worker, signal.SIGKILL)
    wait_until(job.shard_files, process)
    # The flow worker's machine, if it is not the head.
    lost = max(cluster.worker_nodes, key=lambda node: len(workers_of([node], "EstimateFlow")))
    cluster.remove_node(lost, allow_graceful=False)
    try:
        job.expect_done(process)
    finally:
        cluster.add_node(**NODE)
    assert same_as(job, prepare_reference)


@pytest.mark.ray
def test_two_runs_at_once_over_one_output_do_not_disturb_each_other(
    prepare_reference: Job, tmp_path: Path
) -> None:
    job = prepare_reference.into(tmp_path / "flow")
    for process in [job.start(), job.start()]:
        job.expect_done(process)
    assert same_as(job, prepare_reference)


@pytest.mark.ray
def test_an_interrupted_run_says_so_and_a_rerun_goes_on(prepare_reference: Job, tmp_path: Path) -> None:
    job = prepare_reference.into(tmp_path / "flow")
    for number in (signal.SIGINT, signal.SIGTERM):
        before = job.shards()
        process = job.start()
        wait_until(lambda before=before: len(job.shard_files()) > len(before), process)
        process.send_signal(number)
        _, errors = process.communicate(timeout=STOP_S)
        assert process.returncode == 130
        assert errors.splitlines()[-1] == "gwm: interrupted; the same command goes on where this one stopped."
        assert before.items() < job.shards().items()
    assert is_part_of(job.shards(), prepare_reference.shards())
