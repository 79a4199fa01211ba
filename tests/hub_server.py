"""What the Hugging Face hub answers for files of a repository, on loopback: enough for its clients to list and read."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c" * 40
API = re.compile(r"/api/(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)(?P<rest>/.*)?")
FILE = re.compile(r"/(?P<kind>datasets/)?(?P<repo>[^/]+/[^/]+)/resolve/[^/]+/(?P<path>.+)")

Repositories = Mapping[str, Mapping[str, bytes]]
"""Files by path, by `models/me/name` and `datasets/me/name`."""


@contextmanager
def hub_server(repositories: Repositories) -> Iterator[tuple[str, list[str]]]:
    """A server of these repositories: its address, for HF_ENDPOINT, and the paths that were asked for."""
    asked: list[str] = []

    handler = type("Handler", (_Handler,), {"repositories": repositories, "asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    repositories: Repositories
    asked: list[str]

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.asked.append(f"{self.command} {path}")
        if (api := API.fullmatch(path)) is not None:
            self._describe(api["kind"], api["repo"], (api["rest"] or "").strip("/"))
        elif (file := FILE.fullmatch(path)) is not None:
            kind = "datasets" if file["kind"] else "models"
            self._send_file(self.repositories.get(f"{kind}/{file['repo']}", {}).get(file["path"]))
        else:
            self._send(404, b"")

    do_HEAD = do_GET  # noqa: N815  the server looks for this name

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.asked.append(f"POST {path}")
        sent = self.rfile.read(int(self.headers["Content-Length"])).decode()
        wanted = (
            json.loads(sent)["paths"] if "json" in self.headers["Content-Type"] else parse_qs(sent)["paths"]
        )
        api = API.fullmatch(path)
        files = self.repositories.get(f"{api['kind']}/{api['repo']}") if api else None
        if files is None:
            self._send_error("RepoNotFound")
            return
        found = [entry for entry in _tree(files) if entry["path"] in [name.strip("/") for name in wanted]]
        self._send(200, json.dumps(found).encode(), "application/json")

    def _describe(self, kind: str, repo: str, rest: str) -> None:
        files = self.repositories.get(f"{kind}/{repo}")
        if files is None:
            self._send_error("RepoNotFound")
        elif rest.startswith("tree/"):
            folder = "/".join(rest.split("/")[2:])
            query = parse_qs(urlsplit(self.path).query)
            is_recursive = query.get("recursive", ["False"])[0].lower() == "true"
            entries = [entry for entry in _tree(files) if _is_below(entry["path"], folder, is_recursive)]
            if folder and not entries:
                self._send_error("EntryNotFound")
            else:
                self._send(200, json.dumps(entries).encode(), "application/json")
        else:
            siblings = [{"rfilename": name} for name in files]
            described = {"id": repo, "sha": COMMIT, "private": False, "tags": [], "siblings": siblings}
            self._send(200, json.dumps(described).encode(), "application/json")

    def _send_file(self, content: bytes | None) -> None:
        if content is None:
            self._send_error("EntryNotFound")
            return
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            self._send(200, content, **headers)
            return
        first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self._send(206, content[first : last + 1], **headers)

    def _send_error(self, code: str) -> None:
        self._send(404, b"{}", **{"X-Error-Code": code})

    def _send(self, status: int, body: bytes, kind: str = "application/octet-stream", **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Type": kind, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        pass


def _tree(files: Mapping[str, bytes]) -> list[dict[str, object]]:
    """All files and folders of a repository."""
    parts = {"/".join(name.split("/")[:count]) for name in files for count in range(1, name.count("/") + 1)}
    folders = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": name} for name in sorted(parts)]
    return folders + [
        {"type": "file", "oid": hashlib.sha1(data).hexdigest(), "size": len(data), "path": name}
        for name, data in sorted(files.items())
    ]


def _is_below(path: str, folder: str, is_recursive: bool) -> bool:
    inner = path.removeprefix(f"{folder}/") if folder else path
    return (not folder or path.startswith(f"{folder}/")) and (is_recursive or "/" not in inner)
