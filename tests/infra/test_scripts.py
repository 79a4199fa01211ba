import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]

# A Python that writes down how it is called, and whose virtual environments hold the same.
FAKE_PYTHON = """#!/usr/bin/env bash
echo "$@" >> "$CALLS"
if [ "$1" = -c ] && [ -n "${TOO_OLD:-}" ] && [ -n "$2" ]; then exit 1; fi
if [ "$1" = --version ]; then echo "Python 3.9.1"; fi
if [ "$1 $2" = "-m venv" ]; then
    mkdir -p "$4/bin"
    for name in python gwm ruff mypy lint-imports; do cp "$0" "$4/bin/$name"; done
fi
if [ "$1 $2" = "-m pip" ] && [ -n "${NO_NETWORK:-}" ]; then exit 7; fi
"""


class Checkout:
    """A copy of the scripts with a Python that only writes down its calls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "a project"
        shutil.copytree(PROJECT / "infra", self.folder / "infra")
        shutil.copy(PROJECT / "pyproject.toml", self.folder)
        self.python = folder / "fake-python"
        self.python.write_text(FAKE_PYTHON)
        self.python.chmod(0o755)
        self.log = folder / "calls"

    def run(self, script: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        self.log.write_text("")
        return subprocess.run(
            [self.folder / "infra" / "scripts" / script, *words],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            env=os.environ | {"PYTHON": str(self.python), "CALLS": str(self.log)} | environment,
        )

    def calls(self, start: str) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if line.startswith(start)]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_demo_installs_once_and_runs_in_any_folder(checkout: Checkout) -> None:
    first = checkout.run("demo", "--output", "x y")
    assert first.returncode == 0, first.stderr
    (install,) = checkout.calls("-m pip install")
    assert f"--constraint {checkout.folder}/infra/constraints.txt --editable {checkout.folder}" in install
    assert checkout.calls("demo") == ["demo --output x y"]
    second = checkout.run("demo")
    assert (second.returncode, second.stderr) == (0, "")
    assert checkout.calls("-m pip install") == checkout.calls("-m venv") == []


def test_other_versions_install_again(checkout: Checkout) -> None:
    checkout.run("demo")
    with (checkout.folder / "infra" / "constraints.txt").open("a") as file:
        file.write("new==1.0\n")
    checkout.run("demo")
    assert len(checkout.calls("-m pip install")) == 1
    assert checkout.calls("-m venv") == []


def test_a_failed_installation_is_tried_again(checkout: Checkout) -> None:
    assert checkout.run("demo", NO_NETWORK="1").returncode == 7
    assert checkout.calls("demo") == []
    assert checkout.run("demo").returncode == 0
    assert len(checkout.calls("-m pip install")) == 1


def test_test_checks_and_then_runs_pytest_with_the_test_extra(checkout: Checkout) -> None:
    done = checkout.run("test", "-k", "motion")
    assert done.returncode == 0, done.stderr
    (install,) = checkout.calls("-m pip install")
    assert install.endswith(f"--editable {checkout.folder}[test]")
    assert checkout.calls("format --check") == ["format --check ."]
    (tests,) = checkout.calls("-m pytest")
    assert tests == "-m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder -k motion"
    checkout.run("demo")
    assert checkout.calls("-m pip install") == []


def test_benchmark_data_passes_its_words_on(checkout: Checkout) -> None:
    done = checkout.run("benchmark-data", "fbms59", "my downloads", "s3://bucket/FBMS59", "--partial")
    assert done.returncode == 0, done.stderr
    called = "-m pipeline.benchmark_data fbms59 my downloads s3://bucket/FBMS59 --partial"
    assert checkout.calls("-m pipeline") == [called]


def test_an_old_python_gets_a_sentence(checkout: Checkout) -> None:
    done = checkout.run("demo", TOO_OLD="1")
    assert done.returncode == 1
    assert "gwm needs Python 3.11 or newer" in done.stderr
    assert "Python 3.9.1" in done.stderr
    assert not (checkout.folder / ".venv").exists()


def test_every_dependency_has_a_tested_version_and_nothing_else_is_written_there() -> None:
    lines = (PROJECT / "infra" / "constraints.txt").read_text().splitlines()
    pins = dict(line.lower().split("==") for line in lines if not line.startswith("#"))
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    names = {re.split(r"[\[><=~! ]", requirement)[0].lower() for requirement in needed}
    assert names <= pins.keys()
    assert all(re.fullmatch(r"[\w.+!]+", version) for version in pins.values())


def test_continuous_integration_runs_what_everyone_runs() -> None:
    for script in (".ci/run", "infra/scripts/demo", "infra/scripts/test", "infra/scripts/check"):
        assert os.access(PROJECT / script, os.X_OK)
    assert "infra/scripts/test" in (PROJECT / ".ci" / "run").read_text()
