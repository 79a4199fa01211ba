"""Trying again what a storage server could not do just now; the only place where storage is retried.

A try follows another after a random wait whose bound doubles, for a few minutes at most. Every operation that is
tried again may have been done already: it must be one that can be done twice.
"""

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from pipeline.progress import say
from pipeline.storage_errors import server_code, server_status

T = TypeVar("T")

GIVE_UP_AFTER_S = 180.0
"""How long a server may be out that has answered before."""
FIRST_CONTACT_S = 5.0
"""How long one is tried that never answered: its address may be wrong."""
FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 10.0
SAY_AFTER_S = 10.0

TRANSIENT_STATUS = frozenset({408, 429, 500, 502, 503, 504})
TRANSIENT_CODES = frozenset(
    {
        "BadDigest",
        "ConditionalRequestConflict",
        "IncompleteBody",
        "InternalError",
        "OperationAborted",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "XAmzContentSHA256Mismatch",
    }
)
TRANSIENT_TYPES = frozenset(
    {
        "ChunkedEncodingError",  # requests
        "ClientConnectionError",  # aiohttp
        "ClientPayloadError",
        "ConnectTimeoutError",  # botocore
        "ConnectionError",
        "HTTPClientError",
        "IncompleteReadError",
        "ResponseParserError",
        "Timeout",  # requests
        "TimeoutError",
        "TransportError",  # httpx
    }
)
PERMANENT_TYPES = frozenset({"CertificateError", "ClientSSLError", "OfflineModeIsEnabled", "SSLError"})

_answered: set[str] = set()
_last_said = -float("inf")


class BodyCutShortError(ConnectionError):
    """A server sent fewer bytes than it announced."""


class Patience:
    """How long one operation on one server is tried again."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._began = time.monotonic()
        self._next_bound_s = FIRST_DELAY_S

    def delay_s(self, error: Exception) -> float:
        """Seconds to wait before the next try; raises `error` where trying again is useless or took too long."""
        if server_status(error):
            self.answered()
        waited_s = time.monotonic() - self._began
        if not is_transient(error) or waited_s > self._limit_s():
            raise error
        if waited_s > SAY_AFTER_S:
            _say_waiting(self._server, error)
        bound_s, self._next_bound_s = self._next_bound_s, min(2 * self._next_bound_s, LONGEST_DELAY_S)
        return random.uniform(0, bound_s)  # noqa: S311  spreads the tries of many workers

    def answered(self) -> None:
        """The server is there: from now on, in this process, it may be out for a while."""
        _answered.add(self._server)

    def _limit_s(self) -> float:
        # Ray's workers are started by a command that has reached the storage; Ray sets this name for them.
        is_worker = "RAY_RAYLET_PID" in os.environ
        return GIVE_UP_AFTER_S if is_worker or self._server in _answered else FIRST_CONTACT_S


def retried(server: str, operation: Callable[[], T]) -> T:
    """The operation's result, after as many tries as patience allows; raises the last error."""
    patience = Patience(server)
    while True:
        try:
            result = operation()
        except Exception as error:
            time.sleep(patience.delay_s(error))
        else:
            patience.answered()
            return result


async def retried_async(server: str, operation: Callable[[], Awaitable[T]]) -> T:
    """`retried` for coroutines."""
    patience = Patience(server)
    while True:
        try:
            result = await operation()
        except Exception as error:
            await asyncio.sleep(patience.delay_s(error))
        else:
            patience.answered()
            return result


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later: the server is busy, or the connection broke."""
    if server_status(error) in TRANSIENT_STATUS or server_code(error) in TRANSIENT_CODES:
        return True
    if server_status(error):
        return False
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & TRANSIENT_TYPES) and not names & PERMANENT_TYPES


def _say_waiting(server: str, error: Exception) -> None:
    """Says once a minute why nothing moves."""
    global _last_said
    if time.monotonic() - _last_said > 60:
        _last_said = time.monotonic()
        reason = server_code(error) or type(error).__name__
        minutes = GIVE_UP_AFTER_S / 60
        say(f"gwm: {server} is out ({reason}); trying again for up to {minutes:.0f} minutes.")
