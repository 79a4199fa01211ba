import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.data

from pipeline.errors import GwmError
from pipeline.placement import actor_pool, start_ray, tasks, torch_device, torch_threads, unwrap
from pipeline.placement_config import ClusterPlacement, StagePlacement


class Refuses:
    """A stage whose every row is an answer for the user."""

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        raise GwmError(f"row {row['item']} cannot be written: the disk is full.")


def refuses(row: dict[str, Any]) -> dict[str, Any]:
    return Refuses()(row)


def breaks(row: dict[str, Any]) -> dict[str, Any]:
    raise ZeroDivisionError(f"row {row['item']}")


def test_resources_become_ray_words() -> None:
    cpu, gpu = StagePlacement(num_cpus=0.25), StagePlacement(num_cpus=4, num_gpus=0.5, num_actors=3)
    assert tasks(cpu) == {"num_cpus": 0.25, "max_retries": 3}
    assert tasks(gpu) == {"num_cpus": 4, "num_gpus": 0.5, "max_retries": 3}
    assert actor_pool(gpu)["compute"] == ray.data.ActorPoolStrategy(size=3)
    assert (torch_device(cpu), torch_threads(cpu)) == ("cpu", 1)
    assert (torch_device(gpu), torch_threads(gpu)) == ("cuda", 4)


@pytest.mark.usefixtures("ray_local")
def test_a_pool_of_no_stated_size_fills_the_cpus_and_leaves_room_for_the_stages_around() -> None:
    num_cpus = int(ray.cluster_resources()["CPU"])
    words = actor_pool(StagePlacement())
    assert words["compute"] == ray.data.ActorPoolStrategy(size=num_cpus)
    assert num_cpus * words["num_cpus"] <= num_cpus - 1
    of_two = actor_pool(StagePlacement(num_cpus=2))
    assert of_two["compute"] == ray.data.ActorPoolStrategy(size=num_cpus // 2)


@pytest.mark.usefixtures("ray_local")
def test_a_running_ray_is_used_with_settings_that_lose_nothing() -> None:
    before = ray.get_runtime_context().get_job_id()
    start_ray(ClusterPlacement())
    assert ray.get_runtime_context().get_job_id() == before
    context = ray.data.DataContext.get_current()
    assert context.max_errored_blocks == 0
    assert not context.retried_map_errors
    assert not context.enable_progress_bars


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("stage", ["task", "actor"])
def test_a_sentence_from_a_worker_arrives_as_it_was(stage: str) -> None:
    start_ray(ClusterPlacement())
    place = StagePlacement(num_cpus=0.5)
    rows = ray.data.from_items([{"item": 7}])
    failing = rows.map(refuses, **tasks(place)) if stage == "task" else rows.map(Refuses, **actor_pool(place))
    with pytest.raises(Exception, match="the disk is full") as raised:
        list(failing.iter_rows())
    answer = unwrap(raised.value)
    assert type(answer) is GwmError
    assert str(answer) == "row 7 cannot be written: the disk is full."
    assert answer.__cause__ is raised.value


@pytest.mark.usefixtures("ray_local")
def test_another_error_in_a_worker_stops_the_job() -> None:
    start_ray(ClusterPlacement())
    with pytest.raises(ZeroDivisionError) as raised:
        list(ray.data.from_items([{"item": 7}]).map(breaks, **tasks(StagePlacement())).iter_rows())
    assert unwrap(raised.value) is raised.value


def test_unwrap_looks_through_causes() -> None:
    inner = GwmError("a sentence")
    outer = RuntimeError("outer")
    outer.__cause__ = ValueError("between")
    outer.__cause__.__context__ = inner
    assert str(unwrap(outer)) == "a sentence"
    lone = ValueError("other")
    assert unwrap(lone) is lone
    assert str(unwrap(pickle.loads(pickle.dumps(inner)))) == "a sentence"


def test_a_cluster_that_is_not_there_is_named() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    code = (
        "from pipeline.placement_config import ClusterPlacement\n"
        "from pipeline.placement import start_ray; from pipeline.errors import GwmError\n"
        f"try: start_ray(ClusterPlacement(address='127.0.0.1:{port}'))\n"
        "except GwmError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"Cannot join the Ray cluster at 127.0.0.1:{port}: Connection refused.\n"


@pytest.mark.ray
def test_a_local_ray_is_quiet_and_kept_to_this_machine(tmp_path: Path) -> None:
    """It leaves no token behind either. infra/README.md names the addresses on which Ray's processes listen."""
    code = (
        "from pipeline.local_ray import keep_ray_to_this_machine\n"
        "keep_ray_to_this_machine(None)\n"
        "import signal, psutil, ray\n"  # Ray brings psutil along
        "from pipeline.placement import start_ray, tasks, actor_pool\n"
        "from pipeline.placement_config import ClusterPlacement, StagePlacement\n"
        "class Same:\n"
        "    def __call__(self, row): return row\n"
        "signal.signal(signal.SIGTERM, signal.default_int_handler)\n"
        "start_ray(ClusterPlacement())\n"
        "assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler\n"
        "rows = ray.data.range(4).map(Same, **actor_pool(StagePlacement(num_cpus=0.5)))\n"
        "print(sum(1 for _ in rows.iter_rows()))\n"
        "this = psutil.Process()\n"
        "for process in (this, *this.children(recursive=True)):\n"
        "    for connection in process.net_connections(kind='inet'):\n"
        "        if connection.status == psutil.CONN_LISTEN:\n"
        "            print(connection.laddr.ip)\n"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {"HOME": str(tmp_path), "RAY_DEFAULT_OBJECT_STORE_MEMORY_PROPORTION": "0.05"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    num_rows, *addresses = done.stdout.split()
    assert num_rows == "4"
    assert len(addresses) > 5
    assert set(addresses) <= {"127.0.0.1", "::ffff:127.0.0.1"}
    assert not (tmp_path / ".ray").exists()


@pytest.mark.ray
def test_actors_that_leave_no_room_are_refused(tmp_path: Path) -> None:
    code = (
        "from pipeline.placement_config import ClusterPlacement, StagePlacement\n"
        "from pipeline.errors import GwmError\n"
        "from pipeline.placement import start_ray\n"
        "try:\n"
        "    start_ray(ClusterPlacement(), StagePlacement(num_cpus=0.75, num_actors=1000))\n"
        "except GwmError as error:\n"
        "    print(error)\n"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {"HOME": str(tmp_path), "RAY_DEFAULT_OBJECT_STORE_MEMORY_PROPORTION": "0.05"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.startswith("The actors of one stage reserve 750 of this machine's")
