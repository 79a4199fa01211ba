"""Pages do what they say: their blocks are run, in order, in a folder with small datasets.

Blocks of `bash`, `python` and `sql` run; those of python share their names. A block that needs what a test does not
have says so above itself or in its heading: "(needs Docker)". What is only to be read is a block of no language, or of
another.
"""

import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import duckdb
import pytest

from pipeline import cli, storage
from pipeline.scenes import render_scene, write_davis_layout

PROJECT = Path(__file__).parents[2]
PAGES = (PROJECT / "README.md", *sorted((PROJECT / "infra" / "guides").glob("*.md")))
BLOCK = re.compile(r"^```([^\n`]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NEED = re.compile(r"\(needs ([^)]+)\)")
NEEDS = {
    "AWS",
    "Docker",
    "Kubernetes",
    "a Ray cluster",
    "a network",
    "credentials",
    "its data set",
    "weights",
}
RUNS = ("bash", "python", "sql")
WITH_RAY = {"evaluating.md", "first-bucket.md", "your-own-video.md"}
"""Pages whose commands start Ray, with a bucket at hand."""
COMMAND = re.compile(
    r"^(gwm|infra/scripts/\S+|pip|python|export|docker|kubectl|ray|import|from|select) ", re.M
)
PAGE_COMMANDS = ("prepare", "train", "segment", "evaluate")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One fenced block of a page."""

    page: str
    language: str
    text: str
    """Padded with the lines above it, so that an error names the page's line."""
    need: str | None
    """What it says it needs."""

    @property
    def runs(self) -> bool:
        """Whether a test runs it."""
        return self.language in RUNS and self.need is None

    def commands(self) -> list[list[str]]:
        """The words of its lines, with continued lines as one."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks(page: Path) -> list[Block]:
    """All blocks of a page."""
    text = page.read_text()
    return [
        Block(
            page=page.name,
            language=found[1].strip(),
            text="\n" * text[: found.start(2)].count("\n") + found[2],
            need=need_of(text[: found.start()]),
        )
        for found in BLOCK.finditer(text)
    ]


def need_of(above: str) -> str | None:
    """What the paragraph right above a block, or the heading that it stands under, says it needs."""
    headings = [line for line in BLOCK.sub("", above).splitlines() if line.startswith("#")]
    paragraph = above.rstrip().rpartition("\n\n")[2]
    found = NEED.search(paragraph) or NEED.search(headings[-1] if headings else "")
    return " ".join(found[1].split()) if found else None


BLOCKS = [block for page in PAGES for block in blocks(page)]
WITH_A_SERVER = {"mlflow.md"}
"""Run by test_mlflow_guide.py."""
RUN = sorted({block.page for block in BLOCKS if block.runs} - WITH_A_SERVER)


def test_no_block_escapes() -> None:
    for block in BLOCKS:
        if block.language in RUNS:
            assert block.need is None or block.need in NEEDS, f"{block.page}: what is {block.need}?"
        else:
            shown = block.text.strip()
            assert not COMMAND.search(shown), f"{block.page} shows commands that no test looks at: {shown}"


def test_a_need_is_found_above_a_block() -> None:
    assert need_of("# Title\n\n## Away (needs Docker)\n\nWords.\n\n") == "Docker"
    assert need_of("## Here\n\nThis too (needs AWS):\n\n") == "AWS"
    assert need_of("## Away (needs Docker)\n\n## Here\n\nWords (needs AWS).\n\nOthers.\n") is None
    assert need_of("## Here\n\n```bash\n# (needs AWS)\n```\n\nWords.\n") is None


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.need], ids=lambda block: block.page)
def test_commands_that_are_not_run_are_taken(
    block: Block, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(PROJECT)
    for words in block.commands():
        same = [word for word in words[1:] if word not in ("submit", "--follow")]
        if words[0] == "gwm" and same[0] in PAGE_COMMANDS:
            assert cli.main([*same, "--print-config"]) == 0, capfd.readouterr().err
            assert "???" not in capfd.readouterr().out, words
        elif words[0].startswith("infra/"):
            assert os.access(PROJECT / words[0], os.X_OK), words[0]


@pytest.fixture
def material(
    rendered_flow: str, rendered_masks: str, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Folder of `videos`, `my.mp4`, `flow`, `masks`, `model`, `DAVIS`, `photo.jpg`, `conf`; a `gwm` on the path."""
    links = {"flow": rendered_flow, "masks": rendered_masks, "model": tiny_model, "conf": PROJECT / "conf"}
    for name, target in {**links, "videos": Path(rendered_flow).parent / "videos"}.items():
        (tmp_path / name).symlink_to(target)
    scenes = {name: render_scene(seed, num_frames=6) for seed, name in enumerate(("blackswan", "camel"))}
    write_davis_layout(tmp_path / "DAVIS", scenes)
    (tmp_path / "photo.jpg").symlink_to(tmp_path / "DAVIS" / "JPEGImages" / "480p" / "camel" / "00000.jpg")
    shutil.copy(tmp_path / "videos" / "0.mp4", tmp_path / "my.mp4")
    command = tmp_path / "bin" / "gwm"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pipeline "$@"\n')
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", [page for page in RUN if page not in WITH_RAY])
def test_every_block_runs(page: str, material: Path) -> None:
    run_blocks(page)


@pytest.mark.parametrize("page", sorted(WITH_RAY))
def test_every_block_runs_on_ray_and_a_bucket(page: str, material: Path, s3: Any, ray_local: None) -> None:
    for video in storage.list_files(str(material / "videos")):
        storage.write_bytes(storage.join(s3.url, f"videos/{Path(video).name}"), storage.read_bytes(video))
    run_blocks(page, {"s3://bucket": s3.url})


def run_blocks(page: str, places: Mapping[str, str] = MappingProxyType({})) -> int:
    """Runs the blocks of a page that say no need, with a test's places for theirs; returns how many there are."""
    names: dict[str, Any] = {"__name__": "guide"}
    run = [block for block in BLOCKS if block.page == page and block.runs]
    for block in run:
        for theirs, ours in places.items():
            block = replace(block, text=block.text.replace(theirs, ours))
        text = block.text
        if block.language == "python":
            exec(compile(text, page, "exec"), names)
        elif block.language == "sql":
            assert duckdb.sql(text).fetchall(), text
        else:
            run_commands(page, text, block.commands())
    return len(run)


def run_commands(page: str, text: str, commands: list[list[str]]) -> None:
    """A block that is nothing but commands of gwm runs in this process, which has imported what they need."""
    plain = all(words[0] == "gwm" for words in commands) and not re.search(r"[$|<>;&]", text)
    if plain:
        lines = text.replace("\\\n", " ").splitlines()
        for words in (shlex.split(line, comments=True) for line in lines):
            assert not words or cli.main(words[1:]) == 0, f"{page}: {shlex.join(words)}"
        return
    done = subprocess.run(["bash", "-euc", text], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{page}: {text.strip()}\n{done.stderr}"
