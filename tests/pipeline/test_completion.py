"""Completion as shells ask for it: bash by the script that --show-completion prints, others by their protocol."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
BASH = ("bash", "--norc", "-c")
"""The shell that asks: gwm looks for it among its parents."""

ASK_BASH = """
source gwm.sh
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_gwm_completion gwm
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One in which `gwm` is a program, and home has a folder, a video, and the script that completes."""
    folder = tmp_path_factory.mktemp("completion")
    program = folder / "bin" / "gwm"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m pipeline "$@"\n')
    program.chmod(0o755)
    home = folder / "home"
    (home / "videos").mkdir(parents=True)
    (home / "clip.mp4").touch()
    python_path = os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])
    path = f"{program.parent}:{os.environ['PATH']}"
    there = os.environ | {"PATH": path, "PYTHONPATH": python_path, "HOME": str(home)}
    shown = subprocess.run(
        [*BASH, "gwm --show-completion && exit"], env=there, capture_output=True, check=True
    )
    (home / "gwm.sh").write_bytes(shown.stdout)
    return there


def asked(words: list[str], environment: dict[str, str]) -> list[str]:
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, env=environment, cwd=environment["HOME"]
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("eval", ["evaluate"]),
        ("submit ex", []),
        ("schema ex", ["export"]),
        ("prepare decode.f", ["decode.fps=", "decode.fps=null"]),
        ("prepare decode.str", ["decode.stride=", "decode.stride=1"]),
        ("prepare --config x.yaml videos=a store", ["store.height_px=", "store.width_px="]),
        ("train objective.ki", ["objective.kind=", "objective.kind=expected", "objective.kind=composite"]),
        # bash parts words at an equals sign, and completes what is behind it
        ("prepare estimate_flow.estimator =", ["raft_large", "raft_small", "dis"]),
        ("prepare estimate_flow.estimator = ra", ["raft_large", "raft_small"]),
        ("submit segment adapt = t", ["true"]),
        ("prepare estimate_flow.g", ["estimate_flow.gaps=", "estimate_flow.gaps=[1,-1]"]),
        ("prepare vid", ["videos=", "videos=clip.mp4", "videos=gwm.sh", "videos=videos/"]),
        ("prepare videos = cl", []),  # files are then bash's own
    ],
)
def test_bash(words: str, offered: list[str], environment: dict[str, str]) -> None:
    asking = [*BASH, ASK_BASH, "bash", "gwm", *words.split()]
    assert asked(asking, environment) == offered


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("gwm prepare estimate_flow.precision=b", ["estimate_flow.precision=bfloat16"]),
        ("gwm prepare videos=c", ["videos=clip.mp4"]),
        ("gwm prepare videos=nowhere/c", []),
        ("gwm prepare nothing=c", []),
    ],
)
def test_shells_that_keep_a_word_whole(words: str, offered: list[str], environment: dict[str, str]) -> None:
    said = {"_TYPER_COMPLETE_ARGS": words, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    asking = environment | said | {"_GWM_COMPLETE": "complete_fish"}
    assert asked(["gwm"], asking) == offered


def test_it_is_installed_for_every_shell_to_come(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [*BASH, "gwm --install-completion && exit"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "bash completion installed" in done.stdout
    new_shell = ["bash", "-c", "source ~/.bashrc; complete -p gwm"]
    assert asked(new_shell, environment)[-1] == "gwm"


def test_completion_loads_no_heavy_library() -> None:
    code = (
        "import sys; from pipeline.completion import complete_word\n"
        "class Context: info_name, params = 'train', {}\n"
        "assert len(complete_word(Context(), 'segmenter.')) > 5\n"
        "print(sorted({'torch', 'ray', 'mlflow', 'timm', 'av', 'pyarrow', 'fsspec'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
