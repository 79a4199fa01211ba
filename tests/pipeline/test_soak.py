"""Long runs: thousands of inputs through prepare and segment, with memory, files and spilling watched from outside.

Run by hand (`pytest -m slow tests/pipeline/test_soak.py`); GWM_SOAK_PICTURE=FILE.png draws the curves.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import av
import cv2
import numpy as np
import pytest

NUM_VIDEOS, NUM_IMAGES = 3000, 20000
SECONDS_BETWEEN_LOOKS = 1.0
GROWTH = 1.1
"""The mean of the last quarter is at most this times the mean of the second."""

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(7200)]


@dataclass
class Watch:
    """What a command and its Ray used over time."""

    seconds: list[float] = field(default_factory=list)
    driver_bytes: list[int] = field(default_factory=list)
    worker_bytes: list[int] = field(default_factory=list)
    """The largest worker."""
    open_files: list[int] = field(default_factory=list)
    """Of the driver and the worker that has most."""

    def look(self, driver: int, began: float) -> None:
        workers = [pid for pid in descendants(driver) if name_of(pid).startswith("ray::")]
        self.seconds.append(time.monotonic() - began)
        self.driver_bytes.append(anonymous_bytes(driver))
        self.worker_bytes.append(max((anonymous_bytes(pid) for pid in workers), default=0))
        self.open_files.append(max((open_files(pid) for pid in [driver, *workers]), default=0))

    def growth(self, values: list[int]) -> float:
        """Last quarter against the second."""
        quarter = len(values) // 4
        return mean(values[-quarter:]) / mean(values[quarter : 2 * quarter])


def descendants(root: int) -> Iterator[int]:
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text()
        except OSError:
            continue
        parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
    for pid in parents:
        ancestor = pid
        while ancestor in parents and ancestor != root:
            ancestor = parents[ancestor]
        if ancestor == root and pid != root:
            yield pid


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def anonymous_bytes(pid: int) -> int:
    """Memory of a process's own; the object store, which all share, is not part of it."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def open_files(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208
    except OSError:
        return 0


def watched(words: list[str], temporary: Path) -> Watch:
    """Runs a command with a Ray of its own to its end, and watches it."""
    environment = os.environ | {"RAY_TMPDIR": str(temporary)}
    command = [sys.executable, "-m", "pipeline", *words]
    with (temporary / "output").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        watch, began = Watch(), time.monotonic()
        while process.poll() is None:
            watch.look(process.pid, began)
            time.sleep(SECONDS_BETWEEN_LOOKS)
    assert process.returncode == 0, (temporary / "output").read_text()[-3000:]
    return watch


def check(watch: Watch, temporary: Path, title: str) -> None:
    values = {
        "driver": watch.driver_bytes,
        "largest worker": watch.worker_bytes,
        "open files": watch.open_files,
    }
    growth = {name: round(watch.growth(series), 3) for name, series in values.items()}
    print(json.dumps({"soak": title, "seconds": round(watch.seconds[-1]), "growth": growth}))
    draw(watch, title)
    assert all(value <= GROWTH for value in growth.values()), growth
    assert not [path for path in temporary.rglob("ray_spilled_objects*") if any(path.iterdir())]


def draw(watch: Watch, title: str) -> None:
    if picture := os.environ.get("GWM_SOAK_PICTURE"):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 3), layout="constrained")
        memory, files = figure.subplots(1, 2)
        memory.plot(watch.seconds, np.array(watch.driver_bytes) / 2**20, label="driver")
        memory.plot(watch.seconds, np.array(watch.worker_bytes) / 2**20, label="largest worker")
        memory.set(xlabel="seconds", ylabel="own memory, MiB", ylim=(0, None), title=title)
        memory.legend()
        files.plot(watch.seconds, watch.open_files)
        files.set(xlabel="seconds", ylabel="open files of one process", ylim=(0, None))
        path = Path(picture)
        figure.savefig(path.with_name(f"{path.stem}-{title}{path.suffix}"), dpi=80)


@pytest.fixture
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ray's sockets need a short path."""
    return tmp_path_factory.mktemp("r")


def test_thousands_of_videos_through_prepare(tmp_path: Path, short: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    generator = np.random.default_rng(0)
    texture = cv2.resize(generator.integers(0, 255, (20, 24, 3)).astype(np.uint8), (192, 160))
    for number in range(NUM_VIDEOS):
        with av.open(str(folder / f"{number:05d}.mp4"), "w") as container:
            stream: Any = container.add_stream("mpeg4", rate=25)
            stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
            for t in range(4):
                pixels = np.ascontiguousarray(texture[t + number % 80 :][:64, 2 * t :][:, :96])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())
    output = tmp_path / "flow"
    watch = watched(["prepare", f"videos={folder}", f"output={output}", "estimate_flow.estimator=dis"], short)
    summary = json.loads((output / "summary.json").read_text())
    assert summary["units"] == {"done": NUM_VIDEOS, "skipped": 0, "quarantined": 0}
    assert summary["rows"] == summary["dataset"]["num_rows"] == 4 * NUM_VIDEOS
    check(watch, short, "prepare")


def test_thousands_of_images_through_segment(tmp_path: Path, short: Path, tiny_model: str) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(NUM_IMAGES):
        picture = cv2.resize(generator.integers(0, 255, (6, 8, 3)).astype(np.uint8), (64, 48))
        cv2.imwrite(str(folder / f"{number:05d}-picture.jpg"), picture)
    output = tmp_path / "masks"
    watch = watched(["segment", f"images={folder}", f"model={tiny_model}", f"output={output}"], short)
    summary = json.loads((output / "summary.json").read_text())
    assert summary["images"] == summary["dataset"]["num_rows"] == NUM_IMAGES
    assert (summary["units"]["quarantined"], summary["errors"]) == (0, 0)
    check(watch, short, "segment")
