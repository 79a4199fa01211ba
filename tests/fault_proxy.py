"""A proxy on loopback between an S3 client and a real server, which does to requests what bad networks do.

The client's Host header is passed on unchanged: it is part of the signature.
"""

import asyncio
import random
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

SHARES = ("slow_down", "reset", "lost_answer", "cut_short", "stall")


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What happens to requests; the first five are shares of them, 0 to 1 in sum."""

    slow_down: float = 0.0
    """503 SlowDown; the server never hears of the request."""
    reset: float = 0.0
    """The connection is reset before the server hears of the request."""
    lost_answer: float = 0.0
    """The server does what was asked, and the connection is reset instead of its answer."""
    cut_short: float = 0.0
    """Half of the answer's body, then the end of the connection; a lost answer where there is no body."""
    stall: float = 0.0
    """An answer that comes `stall_s` late."""
    stall_s: float = 0.0
    outage_after: int | None = None
    """Once this many requests came, nothing listens for `outage_s`; open connections are reset."""
    outage_s: float = 0.0
    refuse: Callable[[str, str], tuple[int, str] | None] = lambda _method, _target: None
    """Status and code for a request that is refused for good, by method and target; None lets it pass."""
    condition: str | None = None
    """What a 412 names in its Condition element; '' takes the element out."""


class FaultProxy:
    """Runs in a thread until `stop`; `counts` has the faults by kind, `requests` all requests that came."""

    def __init__(self, server: str, faults: Faults, seed: int = 0) -> None:
        self.faults = faults
        self.counts: Counter[str] = Counter()
        self.requests = 0
        self._random = random.Random(seed)
        self._server = urlsplit(server)
        self._open: set[asyncio.StreamWriter] = set()
        self._outage: asyncio.Task[None] | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._listener = self._do(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self._port: int = self._listener.sockets[0].getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{self._port}"

    def stop(self) -> None:
        """Closes the port and ends the thread."""
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _end(self) -> None:
        self._listener.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, one request."""
        self._open.add(writer)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.requests += 1
            if self.requests == self.faults.outage_after:
                self._outage = asyncio.create_task(self._be_out())
                return
            await self._answer(head, await _body(head, reader, writer), writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()

    async def _answer(self, head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        method, target, _ = head.decode("latin-1").split(" ", 2)
        refused = self.faults.refuse(method, target)
        if refused is not None:
            self.counts[refused[1]] += 1
            writer.write(_error(*refused, with_body=method != "HEAD"))
            await writer.drain()
            return
        fault = self._fault()
        if fault == "slow_down":
            self.counts[fault] += 1
            writer.write(_error(503, "SlowDown", with_body=method != "HEAD"))
            await writer.drain()
            return
        if fault == "reset":
            self.counts[fault] += 1
            _reset(writer)
            return
        if fault == "stall":
            self.counts[fault] += 1
            await asyncio.sleep(self.faults.stall_s)
        answer = self._with_condition(await self._forward(head, body))
        if fault in ("lost_answer", "cut_short"):
            end = answer.index(b"\r\n\r\n") + 4
            if fault == "lost_answer" or len(answer) == end:
                self.counts["lost_answer"] += 1
                _reset(writer)
                return
            self.counts[fault] += 1
            answer = answer[: end + (len(answer) - end) // 2]
        writer.write(answer)
        await writer.drain()

    async def _forward(self, head: bytes, body: bytes) -> bytes:
        """The server's whole answer; the server closes the connection after it."""
        address = self._server.hostname, self._server.port
        reader, writer = await asyncio.open_connection(*address, limit=2**26)
        try:
            lines = [line for line in head[:-4].split(b"\r\n") if not _is_between_neighbours(line)]
            writer.write(b"\r\n".join([*lines, b"Connection: close", b"", b""]) + body)
            await writer.drain()
            return await reader.read()
        finally:
            writer.close()

    def _fault(self) -> str | None:
        draw = self._random.random()
        for name in SHARES:
            draw -= getattr(self.faults, name)
            if draw < 0:
                return name
        return None

    def _with_condition(self, answer: bytes) -> bytes:
        if self.faults.condition is None or not answer.startswith(b"HTTP/1.1 412"):
            return answer
        self.counts["412"] += 1
        element = f"<Condition>{self.faults.condition}</Condition>" if self.faults.condition else ""
        return _error(412, "PreconditionFailed", with_body=True, element=element)

    async def _be_out(self) -> None:
        """Nothing listens on the port for a while."""
        self._listener.close()
        for writer in list(self._open):
            _reset(writer)
        self.counts["outage"] += 1
        await asyncio.sleep(self.faults.outage_s)
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", self._port)


@contextmanager
def fault_proxy(server: str, faults: Faults, seed: int = 0) -> Iterator[FaultProxy]:
    """A running proxy in front of `server`."""
    proxy = FaultProxy(server, faults, seed)
    try:
        yield proxy
    finally:
        proxy.stop()


async def _body(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    if re.search(rb"(?i)\r\nexpect: *100-continue", head):
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return await reader.readexactly(int(length[1])) if length else b""


def _is_between_neighbours(line: bytes) -> bool:
    return line.lower().startswith((b"connection:", b"keep-alive:", b"expect:"))


def _error(status: int, code: str, *, with_body: bool, element: str = "") -> bytes:
    text = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>injected</Message>{element}</Error>'
    head = (
        f"HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\nContent-Length: {len(text)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return (head + (text if with_body else "")).encode()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Ends a connection with RST instead of FIN."""
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
