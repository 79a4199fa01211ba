"""Where stages run: Ray's start, its settings, and the resources of each stage as Ray Data words."""

import contextlib
import logging
import math
import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from typing import Any, Literal

import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.exceptions import RayError, RayTaskError

from gwm_model.errors import first_line
from pipeline.errors import GwmError
from pipeline.failure_policy import (
    LOCAL_ENVIRONMENT,
    actor_words,
    failure_sentence,
    set_data_context,
    task_words,
)
from pipeline.local_ray import keep_ray_to_this_machine
from pipeline.placement_config import ClusterPlacement, StagePlacement

CONNECT_TIMEOUT_S = 10.0
MAX_TRAINING_CPUS = 8
SHARE_OF_OTHER_STAGES = 1 / 8
"""Of a cluster's CPUs, where a stage's workers compute on CPUs and fill it."""
WORKER_BYTES = 2 * 2**30
"""Memory counted for such a worker."""

_started_local = False


def start_ray(at: ClusterPlacement, pool: StagePlacement | None = None) -> None:
    """Joins the cluster at `at.address` or RAY_ADDRESS, or starts a local Ray; a running one is used as it is.

    Raises GwmError where the cluster does not answer, or where a local Ray has no room beside the actors of `pool`.
    """
    if not ray.is_initialized():
        cluster = at.address or os.environ.get("RAY_ADDRESS")
        # Ray's C++ core writes warnings about its own internals to the terminal; its log files stay complete.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        on_terminate = signal.getsignal(signal.SIGTERM)
        with _stderr_kept_back():
            if cluster:
                _join(cluster)
            else:
                _start_local()
        if pool is not None and not cluster:
            _leave_room(pool)
        if callable(on_terminate):
            # ray.init takes SIGTERM for itself; the command line's handler says that a rerun continues.
            signal.signal(signal.SIGTERM, on_terminate)
    set_data_context(DataContext.get_current(), at.no_progress_timeout_s)
    silence("ray.data")
    silence("ray.train")


def is_one_machine(at: ClusterPlacement) -> bool:
    """Whether there is but this machine: no cluster is named, and no Ray runs that a command did not start itself."""
    named = at.address or os.environ.get("RAY_ADDRESS")
    return not named and (_started_local or not ray.is_initialized())


def tasks(place: StagePlacement) -> dict[str, Any]:
    """Keyword arguments of Dataset.map or flat_map for a stateless stage.

    Resources are stated even where they are Ray's default: neighbours without any would be fused into the
    next stage's actors.
    """
    return _resources(place) | task_words()


def actor_pool(place: StagePlacement) -> dict[str, Any]:
    """Keyword arguments of Dataset.map for a stage that holds a model: a pool of fixed size.

    A pool of no stated size has a worker for each GPU share, or for each `num_cpus` of the cluster. On CPUs the
    workers reserve a little less than they use: an eighth of the CPUs, and at least one, stays for the other stages,
    which mostly wait.
    """
    num_actors, resources = place.num_actors, _resources(place)
    if num_actors is None:
        num_actors, reserved = _filled(place)
        resources |= {"num_cpus": reserved}
    return {"compute": ActorPoolStrategy(size=num_actors), **resources, **actor_words()}


def training_cpus() -> int:
    """CPUs for training where nobody says how many: those of the cluster's largest machine, up to a few."""
    machines: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    largest = max(machine["Resources"].get("CPU", 1.0) for machine in machines if machine["Alive"])
    return max(1, min(int(largest), MAX_TRAINING_CPUS))


def torch_device(place: StagePlacement) -> Literal["cuda", "cpu"]:
    """The device of a stage: CUDA exactly where a GPU is reserved for it."""
    return "cuda" if place.num_gpus > 0 else "cpu"


def torch_threads(place: StagePlacement) -> int:
    """Threads that a stage's worker gives to torch: its CPUs, so that workers do not fight for cores."""
    return max(1, int(place.num_cpus))


def silence(name: str) -> None:
    """Takes a logger off the terminal; its log file stays."""
    logger = logging.getLogger(name)
    for handler in list(logger.handlers):
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            logger.removeHandler(handler)
    logger.propagate = False


def unwrap(error: BaseException) -> BaseException:
    """The GwmError inside the exceptions of Ray, Ray Data and Ray Train, or one for a failure of theirs.

    Otherwise the error itself.
    """
    sentences = [inner for inner in _chain(error) if isinstance(inner, GwmError)]
    if not sentences:
        failures = (failure_sentence(inner) for inner in _chain(error))
        sentence = next((failure for failure in failures if failure), None)
        if sentence is None:
            return error
        sentence.__cause__ = error
        return sentence
    # Ray raises a copy that is its own error and ours at once; ours alone carries the plain sentence.
    found = next((inner for inner in sentences if not isinstance(inner, RayTaskError)), sentences[0])
    # Ray Data adds advice on retries below the sentence.
    sentence = GwmError(str(found.args[0]).split("\nFailed to apply", 1)[0])
    sentence.__cause__ = error
    return sentence


def _join(cluster: str) -> None:
    _check_answers(cluster)
    try:
        ray.init(address=cluster, log_to_driver=False, logging_level=logging.WARNING)
    except (RayError, ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
        raise GwmError(f"Cannot join the Ray cluster at {cluster}: {first_line(error)}.") from error


def _check_answers(cluster: str) -> None:
    """Raises GwmError where nothing listens; Ray itself would try for minutes and then end the process."""
    host, _, port = cluster.rsplit("/", 1)[-1].rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise GwmError(f"Cannot join the Ray cluster at {cluster}: {reason}.") from error


def _start_local() -> None:
    global _started_local
    keep_ray_to_this_machine(None)
    for name, value in LOCAL_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    _started_local = True


def _leave_room(pool: StagePlacement) -> None:
    if pool.num_actors is None:
        return
    # Actors that hold all CPUs would wait for the stages around them for ever.
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    total, taken = resources.get("CPU", 0.0), pool.num_actors * pool.num_cpus
    if total - taken < 1:
        ray.shutdown()
        raise GwmError(
            f"The actors of one stage reserve {taken:g} of this machine's {total:g} CPUs, and 1 must stay free for the "
            "stages around it: lower that stage's num_actors or num_cpus in placement."
        )


def _filled(place: StagePlacement) -> tuple[int, float]:
    """Workers that fill the cluster, and the CPUs that each reserves."""
    cluster: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    if place.num_gpus > 0:
        return max(1, int(cluster.get("GPU", 0.0) / place.num_gpus)), place.num_cpus
    num_cpus = cluster.get("CPU", 1.0)
    room = min(num_cpus / torch_threads(place), cluster.get("memory", 0.0) / WORKER_BYTES)
    num_actors = max(1, int(room))
    free = max(0.0, num_cpus - max(1.0, num_cpus * SHARE_OF_OTHER_STAGES))
    return num_actors, min(place.num_cpus, math.floor(100 * free / num_actors) / 100)


def _resources(place: StagePlacement) -> dict[str, Any]:
    return {"num_cpus": place.num_cpus} | ({"num_gpus": place.num_gpus} if place.num_gpus > 0 else {})


@contextlib.contextmanager
def _stderr_kept_back() -> Iterator[None]:
    """Keeps what Ray's C++ core prints while it starts, and shows it only if the start fails."""
    shown = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except GwmError:
            raise
        except Exception:
            kept.seek(0)
            os.write(shown, kept.read())
            raise
        finally:
            os.dup2(shown, 2)
            os.close(shown)


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
