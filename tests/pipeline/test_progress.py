import json
import os
import pty
import re
import subprocess
import sys

import pytest

from pipeline import progress
from pipeline.progress import Progress, Rate

COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-9][0-9;]*m")
USE = "from pipeline.progress import Progress\nwith Progress(total=2, unit='clips') as p: p.advance(2, loss=0.25)"


def on_terminal(code: str, **environment: str) -> str:
    """What a script shows on a terminal as its stderr."""
    parent, child = pty.openpty()
    given = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    given |= {"TERM": "xterm", "COLUMNS": "100"} | environment
    subprocess.run([sys.executable, "-c", code], stderr=child, check=True, env=given)
    os.close(child)
    shown = os.read(parent, 100_000).decode()
    os.close(parent)
    return shown


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
    shown = on_terminal(USE)
    assert "2/2" in shown
    assert "loss 0.25" in shown
    assert "{" not in shown
    assert COLOUR.search(shown)


def test_no_color_leaves_the_bar_without_colours() -> None:
    shown = on_terminal(USE, NO_COLOR="1")
    assert "2/2" in shown
    assert not COLOUR.search(shown)


def test_a_dumb_terminal_gets_lines() -> None:
    (line,) = on_terminal(USE, TERM="dumb").splitlines()
    assert json.loads(line)["done"] == 2


def test_forced_colours_turn_no_pipe_into_a_terminal() -> None:
    code = f"{USE}\nfrom pipeline.summary import show_summary\nshow_summary({{'rows': 3}}, None)"
    forced = os.environ | {"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=forced
    )
    assert json.loads(done.stdout) == {"rows": 3}
    assert json.loads(done.stderr)["done"] == 2


def test_readers_that_have_seen_enough_end_no_work() -> None:
    code = (
        "import sys, os; from pipeline.progress import Progress, print_result, say\n"
        "with Progress(total=2) as p: p.advance(2)\n"
        "say('x'); print_result('y'); print_result('z')\n"
        "sys.exit(7)"
    )
    read, write = os.pipe()
    os.close(read)
    for closed, other in (("stdout", "stderr"), ("stderr", "stdout")):
        streams = {closed: write, other: subprocess.PIPE}
        done = subprocess.run([sys.executable, "-c", code], **streams, text=True, check=False)  # type: ignore[call-overload]
        assert done.returncode == 7
        assert "Error" not in (done.stderr or "")
        assert getattr(done, other).splitlines()[-1] == ("x" if other == "stderr" else "yz")
    os.close(write)


def test_the_rate_is_that_of_the_last_minutes() -> None:
    rate = Rate()
    assert rate.per_s() is rate.left_s(10) is None
    for now_s, done in ((0.0, 0), (0.1, 500), (10.0, 510), (20.0, 520)):  # 500 were done already
        rate.see(now_s, done)
    assert rate.per_s() == pytest.approx(20 / 19.9)
    assert rate.left_s(720) == pytest.approx(200 * 19.9 / 20)
    assert rate.left_s(None) is None
    for now_s, done in ((400.0, 900), (600.0, 1000)):
        rate.see(now_s, done)
    assert rate.per_s() == 0.5
    assert rate.left_s(900) == 0.0


def test_rate_and_time_left_are_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    seconds = iter(range(0, 1000, 2))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(seconds)))
    with Progress(total=30, unit="steps") as shown:
        shown.reach(10)
        shown.reach(20)
    first, last = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert first["per_s"] is None
    assert last["per_s"] > 0
    assert last["left_s"] == pytest.approx(10 / last["per_s"], rel=0.01)
