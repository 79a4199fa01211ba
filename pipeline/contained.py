"""Decoding in a child process: what hostile bytes do to a codec costs one unit, and never the job.

Every worker keeps one child. A job is a function of ours with its arguments: named and not copied, so that
the child imports what the function's module imports, and nothing of Ray or torch. Messages are pickles, and
arrays follow them as raw bytes. The child ends when its parent does, whatever it is doing then.
"""

import fcntl
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np

from pipeline.config import DecodeLimits
from pipeline.errors import UnitError

P = ParamSpec("P")
T = TypeVar("T")

ATTEMPTS = 2
START_TIMEOUT_S = 300.0
"""Importing the codecs on a busy machine; the job's own time begins afterwards."""
PIPE_BYTES = 2**20
"""As large as Linux allows every user: an array passes in fewer turns."""


def contained(limits: DecodeLimits, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of a module's function, computed in the child and within the limits.

    What the function raises arrives unchanged. UnitError: it crashed, took longer than `timeout_s` or needed
    more memory than `max_bytes`, and did so once more in a fresh child.
    """
    job = pickle.dumps((_environment(limits), function, args, kwargs), protocol=pickle.HIGHEST_PROTOCOL)
    reason = ""
    for _ in range(ATTEMPTS):
        try:
            with _lock:
                return cast("T", _current_child(limits).run(job, limits))
        except _Fault as fault:
            reason = str(fault)
    error = UnitError(f"decoding {reason}")
    error.attempts = ATTEMPTS
    raise error


class _Fault(Exception):  # noqa: N818  it never leaves this module
    """What went wrong with a child, to be read after the word 'decoding'."""


class _Child:
    """A process that runs one job after another."""

    def __init__(self, limits: DecodeLimits) -> None:
        self.max_bytes, self.parent, self.is_alive = limits.max_bytes, os.getpid(), True
        jobs, send_jobs = os.pipe()
        receive_answers, answers = os.pipe()
        lifeline, self._lifeline = os.pipe()  # closed by the kernel when this process ends
        ends = (jobs, answers, lifeline)
        self._process = subprocess.Popen(  # noqa: S603  this Python, this module
            [sys.executable, "-c", f"from pipeline.contained import serve; serve{(*ends, limits.max_bytes)}"],
            pass_fds=ends,
            env={**_environment(limits), "PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # codecs complain there, in the words of the file
            start_new_session=True,  # an interrupt at the terminal is this process's to answer
        )
        for end in ends:
            os.close(end)
        self._jobs = Connection(send_jobs, readable=False)
        self._answers = Connection(receive_answers, writable=False)

    def run(self, job: bytes, limits: DecodeLimits) -> object:
        """The job's result. _Fault: there is none, and this child has ended."""
        try:
            self._jobs.send_bytes(job)
            self._receive(START_TIMEOUT_S, f"did not begin within {START_TIMEOUT_S:g} s")
            late = f"took longer than decode.timeout_s ({limits.timeout_s:g} s)"
            error, result = self._receive(limits.timeout_s, late)
        except (EOFError, OSError):
            how = self._last_words()
            self.end()
            raise _Fault(how) from None
        except BaseException:
            self.end()  # an answer that is still to come would be taken for the next job's
            raise
        if isinstance(error, MemoryError):
            self.end()
            raise _Fault(f"needed more memory than decode.max_bytes ({limits.max_bytes})")
        if error is not None:
            raise error
        return result

    def end(self) -> None:
        """Kills the process."""
        self.is_alive = False
        self._process.kill()
        self._process.wait()
        self._jobs.close()
        self._answers.close()
        os.close(self._lifeline)

    def _receive(self, timeout_s: float, late: str) -> tuple[Exception | None, object]:
        """The next message; _Fault `late` if it does not come in time, EOFError if the process has ended."""
        if not self._answers.poll(timeout_s):
            raise _Fault(late)
        message, sizes = self._answers.recv()
        buffers = [_read(self._answers.fileno(), size) for size in sizes]
        return cast("tuple[Exception | None, object]", pickle.loads(message, buffers=buffers))  # noqa: S301

    def _last_words(self) -> str:
        code = self._process.wait()  # its end of the pipe is closed
        if code >= 0:
            return f"ended early (exit code {code})"
        return f"crashed ({(signal.strsignal(-code) or f'signal {-code}').lower()})"


_lock = threading.Lock()
_child: _Child | None = None


def _environment(limits: DecodeLimits) -> dict[str, str]:
    return {**os.environ, "OPENCV_IO_MAX_IMAGE_PIXELS": str(limits.max_pixels)}


def _current_child(limits: DecodeLimits) -> _Child:
    """This process's child: a new one after a fault, after a fork, and for another bound."""
    global _child
    if _child is not None and _child.parent == os.getpid() and _child.max_bytes != limits.max_bytes:
        _child.end()
    if _child is None or not _child.is_alive or _child.parent != os.getpid():
        _child = _Child(limits)
    return _child


def serve(jobs_fd: int, answers_fd: int, lifeline_fd: int, max_bytes: int) -> None:
    """The child: answers jobs until its parent ends."""
    _end_with_parent(lifeline_fd)
    jobs, answers = Connection(jobs_fd, writable=False), Connection(answers_fd, readable=False)
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with suppress(OSError):
            fcntl.fcntl(answers_fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    is_bound = False
    while True:
        try:
            job = jobs.recv_bytes()
        except EOFError:
            return
        environment, function, args, kwargs = pickle.loads(job)  # noqa: S301
        if environment != dict(os.environ):  # credentials may be new
            os.environ.clear()
            os.environ.update(environment)
        if not is_bound:
            _bound_memory(max_bytes)
            is_bound = True
        _send(answers, None, None)
        try:
            _send(answers, None, function(*args, **kwargs))
        except Exception as error:
            _send(answers, _portable(error), None)


def _end_with_parent(lifeline_fd: int) -> None:
    """Lets the kernel end this process when the pipe's other end is closed: also amid a codec's endless loop."""
    fcntl.fcntl(lifeline_fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline_fd, fcntl.F_SETFL, fcntl.fcntl(lifeline_fd, fcntl.F_GETFL) | os.O_ASYNC)


def _bound_memory(max_bytes: int) -> None:
    """Allows this process `max_bytes` more of private memory than it has now, where Linux counts it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    statm = Path("/proc/self/statm")
    if statm.exists():
        has_bytes = int(statm.read_text().split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (has_bytes + max_bytes, resource.RLIM_INFINITY))


def _send(answers: Connection, error: Exception | None, result: object) -> None:
    buffers: list[pickle.PickleBuffer] = []
    message = pickle.dumps((error, result), protocol=5, buffer_callback=buffers.append)
    views = [buffer.raw() for buffer in buffers]
    answers.send((message, [view.nbytes for view in views]))
    for view in views:
        _write(answers.fileno(), view)


def _portable(error: Exception) -> Exception:
    """The error with its traceback as text, as one that survives the way to the parent."""
    lines = "".join(traceback.format_exception(error))
    try:
        error = cast("Exception", pickle.loads(pickle.dumps(error)))  # noqa: S301
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(f"In the decoding process:\n{lines}")
    return error


def _write(fd: int, view: memoryview) -> None:
    while view.nbytes:
        view = view[os.write(fd, view) :]


def _read(fd: int, size: int) -> Any:
    """`size` bytes into new memory that arrays can own."""
    buffer = np.empty(size, np.uint8)
    view = buffer.data
    while view.nbytes:
        count = os.readv(fd, [view])
        if count == 0:
            raise EOFError
        view = view[count:]
    return buffer
