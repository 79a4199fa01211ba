"""What becomes of a job whose workers die or hang, on a real Ray."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
import ray.data
from ray.data.exceptions import ExecutionTimeoutError

from pipeline import failure_policy
from pipeline.errors import GwmError
from pipeline.failure_policy import failure_sentence
from pipeline.placement import actor_pool, start_ray, tasks, unwrap
from pipeline.placement_config import ClusterPlacement, StagePlacement

PLACE = StagePlacement(num_cpus=0.5)


def crash_on_three(row: dict[str, Any]) -> dict[str, Any]:
    if row["item"] == 3:
        os._exit(1)
    return row


class CrashOnThree:
    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return crash_on_three(row)


class CannotStart:
    def __init__(self) -> None:
        os._exit(1)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return row


class CrashOnce:
    """Dies the first time it sees each row."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        mark = Path(self.folder) / str(row["item"])
        if not mark.exists():
            mark.touch()
            os._exit(1)
        return row


class HangOnThree:
    """Until there is a file `released`: a worker that hung on would keep its CPU from the other tests."""

    def __init__(self, folder: str) -> None:
        self.released = Path(folder) / "released"

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        while row["item"] == 3 and not self.released.exists():
            time.sleep(0.1)
        return row


def rows() -> ray.data.Dataset:
    return ray.data.from_items([{"item": item} for item in range(5)]).repartition(target_num_rows_per_block=1)


def sentence_of(dataset: ray.data.Dataset) -> str:
    with pytest.raises(Exception) as raised:  # noqa: PT011  which of Ray's errors it is, is Ray's affair
        list(dataset.iter_rows())
    answer = unwrap(raised.value)
    assert type(answer) is GwmError, raised.value
    assert "\n" not in str(answer)
    return str(answer)


@pytest.mark.usefixtures("ray_local")
def test_a_unit_that_kills_every_task_ends_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failure_policy, "MAX_TASK_RETRIES", 1)
    start_ray(ClusterPlacement())
    sentence = sentence_of(rows().map(crash_on_three, **tasks(PLACE)))
    assert "died again when the work was repeated" in sentence


@pytest.mark.usefixtures("ray_local")
def test_a_unit_that_kills_every_actor_ends_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failure_policy, "MAX_WORKER_RESTARTS", 1)
    start_ray(ClusterPlacement())
    sentence = sentence_of(rows().map(CrashOnThree, **actor_pool(PLACE)))
    assert "died again when the work was repeated" in sentence


@pytest.mark.usefixtures("ray_local")
def test_an_actor_that_cannot_start_ends_the_job_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failure_policy, "MAX_WORKER_RESTARTS", 1)
    start_ray(ClusterPlacement())
    sentence = sentence_of(rows().map(CannotStart, **actor_pool(PLACE)))
    assert sentence.startswith("A worker of cannot_start died")


@pytest.mark.usefixtures("ray_local")
def test_workers_that_die_now_and_then_lose_nothing(tmp_path: Path) -> None:
    start_ray(ClusterPlacement())
    dying = rows().map(CrashOnce, fn_constructor_kwargs={"folder": str(tmp_path)}, **actor_pool(PLACE))
    assert sorted(row["item"] for row in dying.iter_rows()) == list(range(5))


@pytest.mark.usefixtures("ray_local")
def test_a_stage_that_hangs_is_named(tmp_path: Path) -> None:
    start_ray(ClusterPlacement(no_progress_timeout_s=30))
    hanging = rows().map(HangOnThree, fn_constructor_kwargs={"folder": str(tmp_path)}, **actor_pool(PLACE))
    try:
        sentence = sentence_of(hanging)
    finally:
        (tmp_path / "released").touch()
        start_ray(ClusterPlacement())
    assert sentence.startswith(
        "Nothing moved for 30 s (placement.no_progress_timeout_s): hang_on_three hangs."
    )


def test_a_stage_without_a_worker_is_named() -> None:
    report = (
        "Dataset execution made no progress for at least 9s of scheduling time (timeout: 8s). No output...\n"
        "Operators still running:\n"
        "  - Map(EstimateFlow): 0 active task(s), 5 finished, 5 outputs taken\n"
        "  - Map(write_flow_shard): 0 active task(s), 5 finished, 5 outputs taken\n"
    )
    sentence = str(failure_sentence(ExecutionTimeoutError(report)))
    assert sentence.startswith(
        "Nothing moved for 8 s (placement.no_progress_timeout_s): estimate_flow gets no worker"
    )
    assert failure_sentence(ValueError("other")) is None


def test_waiting_without_end_must_be_asked_for() -> None:
    assert ClusterPlacement(no_progress_timeout_s=-1).no_progress_timeout_s == -1
    with pytest.raises(ValueError, match="no_progress_timeout_s must be positive, or -1, not 0"):
        ClusterPlacement(no_progress_timeout_s=0)
