import json
import os
import pty
import subprocess
import sys

import pytest

from pipeline import progress
from pipeline.progress import Progress


def test_lines_of_json_when_nobody_looks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with Progress(total=3, unit="clips") as shown:
        shown.advance(2, loss=0.5)
        shown.advance(clips_per_s=1.0)
    captured = capsys.readouterr()
    lines = [json.loads(line) for line in captured.err.splitlines()]
    assert captured.out == ""
    assert [(line["unit"], line["done"], line["total"]) for line in lines] == [
        ("clips", 2, 3),
        ("clips", 3, 3),
    ]
    assert lines[1]["loss"] == 0.5
    assert lines[1]["clips_per_s"] == 1.0


def test_a_fast_job_prints_one_line_at_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(unit="steps") as shown:
        for step in range(1, 1001):
            shown.reach(step)
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["done"] == 1000


def test_a_job_without_work_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(total=5):
        pass
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_bar_on_a_terminal() -> None:
    parent, child = pty.openpty()
    code = "from pipeline.progress import Progress\nwith Progress(total=2, unit='clips') as p: p.advance(2, loss=0.25)"
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    subprocess.run([sys.executable, "-c", code], stderr=child, check=True, env=environment)
    os.close(child)
    shown = os.read(parent, 100_000).decode()
    os.close(parent)
    assert "2/2" in shown
    assert "loss 0.25" in shown
    assert "{" not in shown
