"""A headless Chromium that is driven through its DevTools protocol."""

import asyncio
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ANSWER_TIMEOUT_S = 60.0
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39, "PageDown": 34, "Home": 36}


class Browser:
    """One page in a browser."""

    def __init__(self, folder: Path, *switches: str) -> None:
        self._process = subprocess.Popen(
            [
                str(CHROMIUM),
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--remote-debugging-port=0",
                f"--user-data-dir={folder}",
                *switches,
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr is not None
        said = next(line for line in self._process.stderr if line.startswith("DevTools listening on "))
        self._port = said.split(":")[2].split("/")[0]
        self._loop = asyncio.new_event_loop()
        self._number = 0
        self.events: list[dict[str, Any]] = []
        self._loop.run_until_complete(self._connect())
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    async def _connect(self) -> None:
        self._session = aiohttp.ClientSession()
        async with self._session.get(f"http://127.0.0.1:{self._port}/json") as answer:
            (page,) = [target for target in await answer.json() if target["type"] == "page"]
        self._socket = await self._session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to a command of the protocol; events that come before it are kept in `events`."""
        self._number += 1
        return self._loop.run_until_complete(self._send(self._number, method, parameters))

    async def _send(self, number: int, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = await self._message()
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    async def _message(self) -> dict[str, Any]:
        return json.loads((await self._socket.receive(timeout=ANSWER_TIMEOUT_S)).data)

    async def _until(self, event: str) -> None:
        while event not in {each["method"] for each in self.events}:
            self.events.append(await self._message())

    def open(self, path: Path) -> None:
        """Opens a file and waits until it is loaded."""
        self.events.clear()
        self.send("Page.navigate", url=path.as_uri())
        self._loop.run_until_complete(self._until("Page.loadEventFired"))

    def run(self, script: str) -> Any:
        """The value of an expression in the page; what the page itself throws fails."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """Presses a key where the focus is."""
        words = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
        text = {"text": "\r"} if key == "Enter" else {}
        self.send("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **words, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", **words)

    def focused(self) -> str:
        """The name of what has the focus, once events that wait are handled: its id, its label or its text."""
        name = "(one => one.id || one.ariaLabel || one.textContent.trim())(document.activeElement)"
        return str(self.run(f"new Promise(tell => setTimeout(() => tell({name})))"))

    def complaints(self) -> list[dict[str, Any]]:
        """What the console was told: errors of the script, and what the page's policy stopped."""
        kinds = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
        return [event for event in self.events if event["method"] in kinds]

    def requests(self) -> list[str]:
        """Addresses that the page asked for, except for those inside it."""
        asked = [
            e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in asked if not url.startswith("data:")]

    def close(self) -> None:
        """Ends the browser."""
        self._loop.run_until_complete(self._socket.close())
        self._loop.run_until_complete(self._session.close())
        self._loop.close()
        self._process.terminate()
        self._process.wait()
        assert self._process.stderr is not None
        self._process.stderr.close()


@contextmanager
def browser(*switches: str) -> Iterator[Browser]:
    """A browser with a profile of its own."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        opened = Browser(Path(folder), *switches)
        try:
            yield opened
        finally:
            opened.close()
