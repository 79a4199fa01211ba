"""Training under real faults: a rank or the command is killed, the command is terminated, a machine is taken away.

Runs of two ranks are Ray's; a single one on this machine trains in the command's own process.

Each time the run ends as one that nothing happened to, bit for bit, and MLflow has each step once.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest
from mlflow import MlflowClient
from omegaconf import OmegaConf

from gwm_model.config import SegmenterConfig
from pipeline.config import CacheConfig, TrainConfig
from pipeline.errors import GwmError
from pipeline.train import train

pytestmark = pytest.mark.usefixtures("tracked")

PATIENCE_S = 180.0


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def checkpointed_steps(config: TrainConfig) -> list[int]:
    names = [path.name for path in Path(config.output, "training").glob("step_*")]
    return sorted(int(name.removeprefix("step_").partition("-")[0]) for name in names)


def learned(config: TrainConfig) -> list[tuple[float, float, float]]:
    """What training computed at each logged step, without the times that it took."""
    entries = json.loads(Path(config.output, "metrics.json").read_text())
    return [(entry["step"], entry["loss"], entry["gradient_norm"]) for entry in entries]


def assert_equal_results(left: TrainConfig, right: TrainConfig) -> None:
    names = ("segmenter.safetensors", "segmenter.json")
    for name in names:
        assert Path(left.output, name).read_bytes() == Path(right.output, name).read_bytes()
    assert learned(left) == learned(right)


def tracked_losses(config: TrainConfig, status: str = "FINISHED") -> list[tuple[int, float]]:
    """Steps and values of the loss in the run's MLflow store, as they were logged."""
    client = MlflowClient(f"sqlite:///{config.output}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("gwm").experiment_id])
    assert run.info.status == status
    return sorted(
        (metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "loss")
    )


def logged_losses(config: TrainConfig) -> list[tuple[int, float]]:
    return [(int(step), loss) for step, loss, _ in learned(config)]


def ranks() -> list[int]:
    """Process numbers of the training workers of this process's Ray."""
    parents = {}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if b"RayTrainWorker" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue  # it has just ended

    def is_ours(process: int) -> bool:
        return process == os.getpid() or (process in parents and is_ours(parents[process]))

    return [process for process in found if is_ours(process)]


def test_a_run_goes_on_when_one_of_two_ranks_is_killed(
    train_config: TrainConfig, one_process, ray_local: None
) -> None:
    together = replace(
        train_config,
        output=train_config.output + "-together",
        num_workers=2,
        num_steps=72,
        checkpoint_every_steps=12,
        picture_every_steps=1000,
    )
    train(together)
    alone_steps = 20
    alone = one_process.train(replace(together, num_steps=alone_steps, output=train_config.output + "-alone"))
    losses = [event["values"]["loss"] for event in alone if "values" in event]
    half = alone_steps // 2  # from there on masks train themselves, in the short run only
    assert [loss for _, loss, _ in learned(together)[:half]] == pytest.approx(losses[:half], rel=1e-3)

    struck = replace(together, output=train_config.output + "-struck")
    killed: list[int] = []

    def strike() -> None:
        wait_until(lambda: bool(checkpointed_steps(struck)))
        killed.append(ranks()[-1])
        os.kill(killed[0], signal.SIGKILL)
        killed.extend(checkpointed_steps(struck)[-1:])

    striker = Thread(target=strike)
    striker.start()
    summary = train(struck)
    striker.join()
    assert killed[1] < struck.num_steps  # it was killed on the way
    assert summary["units"]["done"] == 1
    assert_equal_results(struck, together)
    assert tracked_losses(struck) == logged_losses(together)


def test_a_run_goes_on_with_another_number_of_workers(
    train_config: TrainConfig, one_process, ray_local: None
) -> None:
    """The same frames in the same global batches; the sums are taken in another order."""
    alone = replace(train_config, output=train_config.output + "-alone")
    losses = [event["values"]["loss"] for event in one_process.train(alone) if "values" in event]
    one_process.interrupt(train_config, in_step=8)
    together = replace(train_config, num_workers=2)
    train(together)
    assert [loss for _, loss, _ in learned(together)] == pytest.approx(losses, rel=1e-3)
    assert [loss for _, loss, _ in learned(together)][:6] == losses[:6]  # kept from the checkpoint
    finished = train(together)  # a finished run is not trained again
    assert finished["units"] == {"done": 0, "skipped": 1, "quarantined": 0}
    with pytest.raises(GwmError, match="num_steps"):
        train(replace(together, num_steps=13))


def test_two_ranks_skip_the_same_bad_batches(
    train_config: TrainConfig, one_process, poison, ray_local: None
) -> None:
    """The bad frame is in one rank's part of the batch; they train on as one process does, and end where it would."""
    poison(train_config, range(1))
    alone = one_process.train(replace(train_config, output=train_config.output + "-alone"))[-1]["state"]
    bad = [int(entry["step"]) for entry in alone.history if "loss" not in entry]
    together = replace(train_config, num_workers=2, max_bad_batches=len(bad) - 1)
    with pytest.raises(GwmError, match=f"more than max_bad_batches={len(bad) - 1}") as caught:
        train(together)
    assert f"the last was step {bad[-1]}" in str(caught.value)
    assert not Path(together.output, "segmenter.json").exists()
    expected = [(entry["step"], entry["loss"]) for entry in alone.history[: bad[-1]] if "loss" in entry]
    losses = tracked_losses(together, "FAILED")
    assert [step for step, _ in losses] == [step for step, _ in expected]
    assert [loss for _, loss in losses] == pytest.approx([loss for _, loss in expected], rel=1e-3)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[TrainConfig], subprocess.Popen[str]]]:
    """Starts `gwm train` as a process; what it leaves behind is ended."""
    mark = f"GWM_TEST={tmp_path}"

    def begin(config: TrainConfig) -> subprocess.Popen[str]:
        OmegaConf.save(OmegaConf.structured(config), tmp_path / "train.yaml")
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline", "train", "--config", str(tmp_path / "train.yaml")],
            env=os.environ | {"GWM_TEST": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    yield begin
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                os.kill(int(folder.name), signal.SIGKILL)
        except OSError:
            continue


@pytest.mark.parametrize("num_workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_terminated_and_a_killed_command_go_on_when_they_are_run_again(
    num_workers: int,
    train_config: TrainConfig,
    maskformer: SegmenterConfig,
    one_process,
    start: Callable[[TrainConfig], subprocess.Popen[str]],
) -> None:
    config = replace(
        train_config,
        num_workers=num_workers,
        segmenter=maskformer,
        num_steps=240,
        checkpoint_every_steps=20,
        log_every_steps=20,
        picture_every_steps=1000,
        output=train_config.output + "-struck",
    )
    terminated = start(config)
    wait_until(lambda: bool(checkpointed_steps(config)))
    terminated.send_signal(signal.SIGTERM)
    began = time.monotonic()
    _, errors = terminated.communicate(timeout=PATIENCE_S)
    print(f"130 after {time.monotonic() - began:.1f} s")
    assert terminated.returncode == 130
    assert errors.endswith("gwm: interrupted; the same command goes on where this one stopped.\n")
    reached = checkpointed_steps(config)[-1]

    killed = start(config)
    wait_until(lambda: checkpointed_steps(config)[-1] > reached)
    killed.kill()
    killed.communicate(timeout=PATIENCE_S)
    assert not Path(config.output, "segmenter.json").exists()

    last = start(config)
    output, errors = last.communicate(timeout=PATIENCE_S)
    assert last.returncode == 0, errors
    assert json.loads(output.splitlines()[-1])["fallbacks"] == []
    whole = replace(
        config, output=train_config.output, cache=CacheConfig(directory=train_config.output + "-cache")
    )
    if num_workers == 1:
        one_process.train(whole)
    else:
        start(whole).communicate(timeout=PATIENCE_S)
    assert_equal_results(config, whole)
    assert tracked_losses(config) == logged_losses(whole)


MACHINE_IS_TAKEN_AWAY = """
import sys, time
from threading import Thread
import ray
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DrainNodeReason
from pipeline.config import TrainConfig
from pipeline.load_config import load_config
from pipeline.train import train
from pathlib import Path

config = load_config(TrainConfig, sys.argv[1], [])
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
machines = [cluster.add_node(num_cpus=1) for _ in range(2)]
ray.init(address=cluster.address, log_to_driver=False)

def worker_node():
    for actor in ray._private.state.actors().values():
        if actor["ActorClassName"] == "RayTrainWorker" and actor["State"] == "ALIVE":
            return actor["Address"]["NodeID"]

def take_away():
    while not list(Path(config.output, "pictures").glob("*.jpg")):
        time.sleep(0.05)
    node = worker_node()
    client = ray._raylet.GcsClient(address=cluster.address)
    deadline_ms = int(time.time() * 1000) + 15_000
    accepted, reason = client.drain_node(
        node, DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"), "taken away", deadline_ms
    )
    assert accepted, reason
    while not list(Path(config.output, "training").glob("step_*")):
        time.sleep(0.05)
    (checkpoint,) = Path(config.output, "training").glob("step_*")
    print("notice", checkpoint.name.partition("-")[0].removeprefix("step_"), flush=True)
    cluster.remove_node(next(machine for machine in machines if machine.node_id == node))
    while worker_node() in (None, node):
        time.sleep(0.05)
    print("moved", flush=True)

thread = Thread(target=take_away)
thread.start()
train(config)
thread.join()
"""


@pytest.mark.slow
def test_a_run_moves_on_when_its_machine_is_taken_away(
    train_config: TrainConfig, one_process, tmp_path: Path
) -> None:
    """A cluster of three Ray nodes; the one with the worker is drained, as before a preemption, and then removed."""
    config = replace(
        train_config,
        num_steps=1000,
        checkpoint_every_steps=100_000,  # so the notice alone brings a checkpoint
        log_every_steps=10,
        picture_every_steps=20,
        output=train_config.output + "-moved",
    )
    OmegaConf.save(OmegaConf.structured(config), tmp_path / "train.yaml")
    done = subprocess.run(
        [sys.executable, "-c", MACHINE_IS_TAKEN_AWAY, str(tmp_path / "train.yaml")],
        env=os.environ
        | {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1", "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5"},
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    print(lines[:2])
    step = int(lines[0].removeprefix("notice "))
    assert 0 < step < 1000
    assert lines[1] == "moved"
    whole = replace(config, output=train_config.output)
    one_process.train(whole)
    assert_equal_results(config, whole)
    assert tracked_losses(config) == logged_losses(whole)
