"""Real faults in the decoding process, with small limits: it dies, and this process goes on."""

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.config import DecodeLimits
from pipeline.contained import contained
from pipeline.errors import GwmError, UnitError
from pipeline.images import read_image
from pipeline.inputs import Source
from pipeline.video import decode_frames, probe

LIMITS = DecodeLimits(timeout_s=60.0, max_bytes=64 * 2**20)
SHORT = DecodeLimits(timeout_s=0.5, max_bytes=64 * 2**20)


@pytest.mark.parametrize(
    ("limits", "fault", "arguments", "reason"),
    [
        (LIMITS, ctypes.string_at, (0,), r"decoding crashed \(segmentation fault\)"),
        (LIMITS, os.abort, (), r"decoding crashed \(aborted\)"),
        (LIMITS, os._exit, (3,), r"decoding ended early \(exit code 3\)"),
        (SHORT, signal.pause, (), r"decoding took longer than decode.timeout_s \(0.5 s\)"),
        # this one never lets another thread of its process run
        (SHORT, re.match, ("(a+)+$", "a" * 60 + "b"), r"decoding took longer than decode.timeout_s"),
        (LIMITS, np.ones, (2**27,), r"decoding needed more memory than decode.max_bytes \(67108864\)"),
        (LIMITS, bytearray, (2**40,), "decoding needed more memory"),
    ],
)
def test_a_fault_is_a_failed_unit_after_two_attempts(limits, fault, arguments, reason):
    with pytest.raises(UnitError, match=f"^{reason}") as caught:
        contained(limits, fault, *arguments)
    assert caught.value.attempts == 2
    assert contained(LIMITS, os.getpid) != os.getpid()


def test_one_process_does_all_jobs_until_it_fails():
    first = contained(LIMITS, os.getpid)
    assert contained(LIMITS, os.getpid) == first
    with pytest.raises(UnitError):
        contained(LIMITS, os.abort)
    assert contained(LIMITS, os.getpid) != first


def test_a_fault_that_happens_once_costs_nothing(tmp_path):
    mark = tmp_path / "tried"
    script = "import os, sys\nif not os.path.exists(sys.argv[1]): open(sys.argv[1], 'w').close(); os.abort()"
    code = f"import sys\nsys.argv = ['', {str(mark)!r}]\n{script}"
    assert contained(LIMITS, exec, code) is None
    assert mark.exists()


def test_errors_of_the_job_arrive_as_they_are(tmp_path):
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    with pytest.raises(UnitError, match="is not a video") as caught:
        contained(LIMITS, probe, Source(url=str(text), name="text.mp4", kind="video"))
    assert caught.value.attempts == 1
    assert "pipeline/video.py" in caught.value.__notes__[0]
    with pytest.raises(GwmError, match="unknown kind of URL"):
        contained(LIMITS, probe, Source(url="nowhere://a.mp4", name="a.mp4", kind="video"))
    with pytest.raises(ValueError, match="invalid literal"):
        contained(LIMITS, int, "x")


def test_the_environment_of_the_call_counts(monkeypatch):
    monkeypatch.setenv("GWM_ANY", "new")
    assert contained(LIMITS, os.getenv, "GWM_ANY") == "new"
    monkeypatch.delenv("GWM_ANY")
    assert contained(LIMITS, os.getenv, "GWM_ANY") is None


@pytest.mark.parametrize("name", ["v.mp4", "v.avi"])
def test_frames_are_those_of_decoding_in_this_process(make_video, name):
    path = make_video(name, num_frames=20, codec={"v.mp4": "libx264", "v.avi": "mpeg4"}[name])
    index = probe(Source(url=str(path), name=name, kind="video"))
    wanted = (str(path), index.pts.tolist())
    size = {"seek_pts": None, "timed": index.timed, "height_px": 33, "width_px": 47}
    here, there = decode_frames(*wanted, **size), contained(LIMITS, decode_frames, *wanted, **size)
    assert (here == there).all()
    assert there.flags.writeable


def test_the_bound_is_what_a_picture_may_need(tmp_path):
    picture = np.zeros((4000, 5000), np.uint8)
    cv2.imwrite(str(tmp_path / "large.png"), picture)
    url = str(tmp_path / "large.png")
    assert contained(DecodeLimits(max_bytes=2**30), read_image, url).shape == (4000, 5000, 3)
    with pytest.raises(UnitError, match=r"more pixels than decode\.max_bytes allows"):
        contained(LIMITS, read_image, url)


def test_a_forked_process_has_its_own():
    mine = contained(LIMITS, os.getpid)
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        os.write(writer, str(contained(LIMITS, os.getpid)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 100) != str(mine).encode()
    assert contained(LIMITS, os.getpid) == mine


ORPHAN = """
import os, re, signal, threading
from pipeline.config import DecodeLimits
from pipeline.contained import contained

limits = DecodeLimits()
print(contained(limits, os.getpid), flush=True)
threading.Thread(target=contained, args=(limits, re.match, "(a+)+$", "a" * 60 + "b")).start()
input()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks processes up in /proc")
def test_the_process_ends_with_its_parent_also_amid_an_endless_loop():
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHAN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    status = Path(f"/proc/{int(parent.stdout.readline())}/status")
    assert "State:" in status.read_text()
    parent.communicate("now\n")
    deadline = time.monotonic() + 60
    while status.exists() and "State:\tZ" not in status.read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not status.exists() or "State:\tZ" in status.read_text()
