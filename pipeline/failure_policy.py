"""What happens when something fails inside Ray: every retry and error setting that matters, with its reason.

Two kinds of failure are kept apart. What a stage raises is an answer: units that cannot be done are caught by
the stages and go to quarantine, so any exception that leaves a stage stops the job, and is not tried again. A
worker or a machine that dies is an accident: its work is done again elsewhere, a bounded number of times.
"""

import re
import warnings
from typing import Any

from ray.data import DataContext
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import OutOfMemoryError, RayActorError, WorkerCrashedError

from pipeline.errors import GwmError

MAX_TASK_RETRIES = 3
"""Times that one unit's task is tried again after its worker died. Ray Data's default is without end."""

MAX_WORKER_RESTARTS = 100
"""Times that a worker of a pool is started again; one that dies while it starts would otherwise do so for ever.

It bounds the repetitions of a unit that kills its worker too. Counting those by themselves does not do: Ray takes
every failed call for one, and while nobody knows yet that a worker's machine is gone, calls fail within a second.
"""

MAX_TRAIN_FAILURES = 3
"""Times that training starts again from its last checkpoint after a worker died. Ray Train's default is never."""

ROWS_AHEAD = 64
"""Rows that a running task may finish before they are taken up; stages after planning have one row a task."""

LOCAL_ENVIRONMENT = {
    # Ray kills the newest task when memory runs out and, by default, repeats it without end.
    "RAY_task_oom_retries": str(MAX_TASK_RETRIES),
    # Nobody announces the loss of this machine, and the watcher takes seconds to start.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
"""For the Ray that a command starts itself; a cluster's own settings are its operator's."""


def task_words() -> dict[str, Any]:
    """Arguments of Dataset.map for a stage of tasks."""
    return {"max_retries": MAX_TASK_RETRIES}


def actor_words() -> dict[str, Any]:
    """Arguments of Dataset.map for a stage of actors."""
    return {"max_restarts": MAX_WORKER_RESTARTS, "max_task_retries": -1}


def set_data_context(context: DataContext, no_progress_timeout_s: float) -> None:
    """States the settings of Ray Data that decide whether rows can be lost, and what is printed."""
    # A failed block would vanish silently.
    context.max_errored_blocks = 0
    # Exceptions of a stage are answers, not accidents: trying again gives the same.
    context.retried_map_errors = False
    context.actor_task_retry_on_errors = False
    context.actor_init_retry_on_errors = False
    # A worker that cannot start is started again by Ray itself, MAX_WORKER_RESTARTS times.
    context.max_consecutive_actor_init_deaths = 0
    # Every unit names its own shard, so the order of rows does not matter and nothing waits for a slow one.
    context.execution_options.preserve_order = False
    # Every row is a block, for a row is a unit of work: planned clips go to different workers, one by one.
    context.target_max_block_size = 1
    # The driver looks ten times a second; a planning task that may be two rows ahead of it makes twenty a second.
    context._max_num_blocks_in_streaming_gen_buffer = ROWS_AHEAD
    # A stage that hangs is an error that names it.
    context.execution_no_progress_timeout_s = no_progress_timeout_s
    # The commands print their own progress and one sentence for an error; Ray's log files keep the rest.
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.log_internal_stack_trace = False
    # A GwmError raised in a stage arrives as itself.
    context.raise_original_map_exception = True
    # Ray 2.64 takes away the arguments that bound retries; pyproject.toml admits no such Ray.
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
    # A job of fewer units than the cluster has workers is none to worry about.
    warnings.filterwarnings("ignore", message="The minimum number of concurrent actors")


def failure_sentence(error: BaseException) -> GwmError | None:
    """The sentence for a failure of Ray's, or None where the error is not one."""
    if isinstance(error, ExecutionTimeoutError):
        return GwmError(_no_progress(str(error)))
    if isinstance(error, OutOfMemoryError):
        return GwmError(
            "A worker was stopped because its machine ran out of memory, again and again: smaller clips, chunks or "
            "batches, or fewer workers on a machine, need less. What is finished stays, and a rerun goes on."
        )
    if isinstance(error, RayActorError | WorkerCrashedError):
        return GwmError(
            f"{_workers(str(error))} died, and died again when the work was repeated: the memory of the machine or a "
            "crash in a library are the usual causes, and Ray's logs have the details. What is finished stays, and "
            "a rerun goes on."
        )
    return None


def _no_progress(message: str) -> str:
    """The sentence for Ray Data's report that lists the operators which still run."""
    running = re.findall(r"- (.+): (\d+) active", message)
    busy = [_stage(operator) for operator, active in running if int(active)]
    waiting = [_stage(operator) for operator, _ in running]
    seconds = re.search(r"timeout: (\d+)s", message)
    what = f"{busy[0]} hangs" if busy else f"{waiting[0]} gets no worker" if waiting else "the cluster hangs"
    return (
        f"Nothing moved for {seconds[1] if seconds else '?'} s (placement.no_progress_timeout_s): {what}. "
        "What is finished stays, and a rerun goes on."
    )


def _workers(message: str) -> str:
    actor = re.search(r"class_name: MapWorker\((.+)\)", message)
    return f"A worker of {_stage(actor[1])}" if actor else "A worker"


def _stage(operator: str) -> str:
    """The stage's name in an operator's, which wraps and chains them: `Map(EstimateFlow)` -> estimate_flow."""
    inner = re.findall(r"\((\w+)\)", operator)
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", inner[-1] if inner else operator).lower()
