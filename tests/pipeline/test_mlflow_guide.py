"""The guide about MLflow does what it says: its blocks are run, in order, against a real server."""

import os
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from signal import SIGKILL

import pytest

from pipeline.pictures import encode_jpeg
from pipeline.scenes import render_scene
from tests.pipeline.test_guides import run_blocks

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def material(
    rendered_flow: str, mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """The folder, with `gwm` and `mlflow` on the path; the guide's server ends with the test."""
    (tmp_path / "flow").symlink_to(rendered_flow)
    (tmp_path / "conf").symlink_to(PROJECT / "conf")
    (tmp_path / "photo.jpg").write_bytes(encode_jpeg(render_scene(5, num_frames=1).frames[0]))
    command = tmp_path / "bin" / "gwm"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec env PYTHONPATH="{PROJECT}" "{sys.executable}" -m pipeline "$@"\n')
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    places = (command.parent, Path(sys.executable).parent, os.environ["PATH"])
    monkeypatch.setenv("PATH", os.pathsep.join(map(str, places)))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    monkeypatch.setattr(sys, "path", list(sys.path))  # MLflow adds the code of a model that it loads
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    with suppress(FileNotFoundError):
        print((tmp_path / "serve.log").read_text())
    with suppress(FileNotFoundError, ProcessLookupError):
        os.kill(int((tmp_path / "serve.pid").read_text()), SIGKILL)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def test_every_block_runs(material: Path, mlflow_server: str, ray_local: None) -> None:
    assert run_blocks("mlflow.md", {"http://127.0.0.1:5000": mlflow_server, "5001": str(free_port())}) > 10
    assert (material / "masks" / "models" / "gwm" / "1" / "segmenter.json").is_file()
