import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.summary import show_summary, version, write_summary


def test_summary_holds_units_seconds_and_rates(tmp_path: Path) -> None:
    summary = write_summary(
        str(tmp_path),
        command="prepare",
        fingerprint="f",
        counts={"done": 10},
        seconds={"decode_clip": 4.0, "total": 5.0},
        rows=100,
        bytes=1000,
        note="x",
    )
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert summary["version"] == version()
    assert summary["units"] == {"done": 10, "skipped": 0, "quarantined": 0}
    assert summary["rates"] == {"units_per_s": 2.0, "rows_per_s": 20.0, "bytes_per_s": 200.0}
    assert (summary["rows"], summary["note"], summary["output"]) == (100, "x", str(tmp_path))


def test_no_time_gives_no_rates(tmp_path: Path) -> None:
    summary = write_summary(
        str(tmp_path), command="train", fingerprint="f", counts={}, seconds={"total": 0.0}
    )
    assert summary["rates"] == {}


def test_one_line_of_json_when_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    show_summary({"command": "prepare", "rows": 3}, "gwm train flow=x")
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {"command": "prepare", "rows": 3, "next": "gwm train flow=x"}


def test_a_table_and_the_next_command_on_a_terminal() -> None:
    parent, child = pty.openpty()
    code = (
        "from pipeline.summary import show_summary\n"
        "show_summary({'command': 'prepare', 'units': {'done': 12345}}, 'gwm train flow=[x]')"
    )
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    subprocess.run([sys.executable, "-c", code], stdout=child, check=True, env=environment)
    os.close(child)
    shown = os.read(parent, 100_000).decode()
    os.close(parent)
    assert "done 12,345" in shown
    assert "gwm train flow=[x]" in shown
