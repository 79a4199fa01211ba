"""Where stages run: Ray's start, its settings, and the resources of each stage as Ray Data words."""

import logging
import os
from collections.abc import Iterator
from typing import Any, Literal

import ray
from ray.data import ActorPoolStrategy, DataContext

from pipeline.config import StagePlacement
from pipeline.errors import GwmError

NO_PROGRESS_TIMEOUT_S = 3600.0


def start_ray(address: str | None) -> None:
    """Joins the cluster at `address` or RAY_ADDRESS, or starts a local Ray; a running one is used as it is.

    Raises GwmError where the cluster does not answer.
    """
    if not ray.is_initialized():
        cluster = address or os.environ.get("RAY_ADDRESS")
        if cluster:
            _join(cluster)
        else:
            _start_local()
    _set_data_context(DataContext.get_current())


def tasks(place: StagePlacement) -> dict[str, Any]:
    """Keyword arguments of Dataset.map or flat_map for a stateless stage.

    Resources are stated even where they are Ray's default: neighbours without any would be fused into the
    next stage's actors.
    """
    return {"num_cpus": place.num_cpus} | ({"num_gpus": place.num_gpus} if place.num_gpus > 0 else {})


def actor_pool(place: StagePlacement) -> dict[str, Any]:
    """Keyword arguments of Dataset.map for a stage that holds a model: a pool of fixed size."""
    return {"compute": ActorPoolStrategy(size=place.num_actors), **tasks(place)}


def torch_device(place: StagePlacement) -> Literal["cuda", "cpu"]:
    """The device of a stage: CUDA exactly where a GPU is reserved for it."""
    return "cuda" if place.num_gpus > 0 else "cpu"


def torch_threads(place: StagePlacement) -> int:
    """Threads that a stage's worker gives to torch: its CPUs, so that workers do not fight for cores."""
    return max(1, int(place.num_cpus))


def unwrap(error: BaseException) -> BaseException:
    """The GwmError inside the exceptions of Ray, Ray Data and Ray Train; otherwise the error itself."""
    return next((found for found in _chain(error) if isinstance(found, GwmError)), error)


def _join(cluster: str) -> None:
    try:
        ray.init(address=cluster, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise GwmError(f"Cannot join the Ray cluster at {cluster}: {reason}") from error


def _start_local() -> None:
    # A Ray of our own listens on this machine only. Unless the user chose a mode, Ray 2.60 would turn token
    # authentication on and leave ~/.ray/auth_token behind, which changes how the next `ray start` behaves.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)


def _set_data_context(context: DataContext) -> None:
    """States the settings of Ray Data that decide whether rows can be lost, and what is printed."""
    # A failed block would vanish silently; stages catch what a single unit can do wrong, so any other error
    # stops the job.
    context.max_errored_blocks = 0
    # Exceptions of a stage are answers, not accidents: trying again gives the same. Ray still repeats tasks
    # whose worker or machine died.
    context.retried_map_errors = False
    context.actor_task_retry_on_errors = False
    context.actor_init_retry_on_errors = False
    # Every unit names its own shard, so the order of rows does not matter and nothing waits for a slow one.
    context.execution_options.preserve_order = False
    # A cluster that grows on demand may give us nothing for a while.
    context.execution_no_progress_timeout_s = NO_PROGRESS_TIMEOUT_S
    # The commands print their own progress and one sentence for an error; Ray's log files keep the rest.
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.log_internal_stack_trace = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, its causes, and what Ray wraps in attributes, each once."""
    pending: list[object] = [error]
    seen: set[int] = set()
    while pending:
        current = pending.pop(0)
        if not isinstance(current, BaseException) or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        pending += [current.__cause__, current.__context__, getattr(current, "cause", None)]
        failures = getattr(current, "worker_failures", None)
        pending += list(failures.values()) if isinstance(failures, dict) else []
