"""Guides do what they say: their blocks are run, in order, in a folder with small datasets.

Blocks of `bash`, `python` and `sql` run; those of python share their names. What is only to be read is a block of
another language.
"""

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pytest

from pipeline.dataset import Dataset
from pipeline.masks import MASK_SCHEMA_VERSION
from pipeline.records import FLOW_SCHEMA_VERSION

PROJECT = Path(__file__).parents[2]
GUIDES = ("formats.md", "your-own-video.md")
BLOCK = re.compile(r"^```(bash|python|sql)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(guide: str) -> list[tuple[str, str]]:
    """Language and text of the blocks to run; python is padded, so that an error names the guide's line."""
    text = (PROJECT / "infra" / "guides" / guide).read_text()
    return [
        (found[1], "\n" * text[: found.start(2)].count("\n") + found[2]) for found in BLOCK.finditer(text)
    ]


@pytest.fixture
def material(
    stages: Any,
    segment_stages: Any,
    make_video: Any,
    make_frame_folder: Any,
    tiny_model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """The folder with `videos`, `my.mp4`, `flow`, `masks`, `model`, and a `gwm` on the path that is this project's."""
    shutil.copy(make_video("clip.mp4", num_frames=10), tmp_path / "my.mp4")
    make_frame_folder("sequence", num_frames=6)
    prepare, segment = stages.config(), segment_stages.config()
    flow = Dataset.open(prepare.output, kind="flow", config=prepare, schema_version=FLOW_SCHEMA_VERSION)
    masks = Dataset.open(segment.output, kind="masks", config=segment, schema_version=MASK_SCHEMA_VERSION)
    stages.run(prepare)
    segment_stages.run(segment)
    flow.write_manifest()
    masks.write_manifest()
    (tmp_path / "model").symlink_to(tiny_model)
    command = tmp_path / "bin" / "gwm"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pipeline "$@"\n')
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("guide", GUIDES)
def test_every_block_of_a_guide_runs(guide: str, material: Path) -> None:
    names: dict[str, Any] = {"__name__": "guide"}
    found = blocks(guide)
    assert found
    for language, text in found:
        if language == "python":
            exec(compile(text, guide, "exec"), names)
        elif language == "sql":
            assert duckdb.sql(text).fetchall(), text
        else:
            done = subprocess.run(
                ["bash", "-euc", text], cwd=material, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{guide}: {text.strip()}\n{done.stderr}"
