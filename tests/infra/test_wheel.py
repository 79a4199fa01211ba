"""What `pip install gwm` gives: built from a source distribution, installed and used far from the checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
from email import message_from_string
from pathlib import Path
from zipfile import ZipFile

import pytest

from pipeline.config_schema import schema_json

PROJECT = Path(__file__).parents[2]
VERSION = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"]
FOLDERS, FILES = (
    ("gwm_model", "pipeline", "conf", "infra", "tests"),
    ("README.md", "pyproject.toml", "LICENSE"),
)
BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"


def build(kind: str, source: Path, to: Path) -> Path:
    """Builds as pip does, with the setuptools that is here; returns the file."""
    command = [sys.executable, "-c", BUILD, f"build_{kind}", str(to)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = to.glob("*.tar.gz" if kind == "sdist" else "*.whl")
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, made from a source distribution that is made from a copy of the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in FOLDERS:
        shutil.copytree(
            PROJECT / name, folder / "checkout" / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in FILES:
        shutil.copy(PROJECT / name, folder / "checkout")
    with tarfile.open(build("sdist", folder / "checkout", folder)) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.4 has it, 3.11.2 not
        archive.extractall(folder)
    return build("wheel", folder / f"gwm-{VERSION}", folder)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel; its dependencies are those of this one."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index"]
    subprocess.run([*install, "--quiet", "--disable-pip-version-check", str(wheel)], check=True)
    (packages,) = (folder / "lib").glob("python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def run(installed: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A program of the environment, in its folder, with nothing of the checkout on the path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    program = [str(installed / "bin" / words[0]), *words[1:]]
    return subprocess.run(
        program, cwd=installed.parent, env=environment, capture_output=True, text=True, check=False
    )


def test_the_wheel_holds_the_packages_their_types_the_demo_and_the_licence(wheel: Path) -> None:
    names = ZipFile(wheel).namelist()
    for package in ("gwm_model", "pipeline"):
        here = {str(path.relative_to(PROJECT)) for path in (PROJECT / package).rglob("*.py")}
        assert here | {f"{package}/py.typed"} <= set(names)
    packed = {name.rpartition("/")[2] for name in names if "/share/gwm/conf/demo/" in name}
    assert packed == {path.name for path in (PROJECT / "conf" / "demo").iterdir()}
    assert f"gwm-{VERSION}.dist-info/licenses/LICENSE" in names


def test_the_wheel_holds_nothing_else(wheel: Path) -> None:
    names = ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        "gwm_model",
        "pipeline",
        f"gwm-{VERSION}.dist-info",
        f"gwm-{VERSION}.data",
    }
    inside = [name for name in names if ".dist-info/" not in name]
    assert {Path(name).suffix for name in inside} == {".py", ".yaml", ".typed", ".html", ".css", ".js"}


def test_metadata(wheel: Path) -> None:
    text = ZipFile(wheel).read(f"gwm-{VERSION}.dist-info/METADATA").decode()
    metadata = message_from_string(text)
    assert metadata["Version"] == VERSION
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert "Typing :: Typed" in (metadata.get_all("Classifier") or [])
    assert metadata["Project-URL"] is metadata["Home-page"] is None


def test_the_installed_commands_need_no_checkout(installed: Path) -> None:
    where = run(
        installed, "python", "-c", "import gwm_model, pipeline; print(gwm_model.__file__, pipeline.__file__)"
    )
    assert all(str(installed) in path for path in where.stdout.split())
    assert run(installed, "gwm", "--version").stdout == f"gwm {VERSION}\n"
    told = run(installed, "gwm", "--help")
    assert (told.returncode, told.stderr) == (0, "")
    assert "Exit codes:" in told.stdout
    assert run(installed, "gwm", "schema", "train").stdout == schema_json("train")
    values = installed / "share" / "gwm" / "conf" / "demo" / "prepare.yaml"
    printed = run(installed, "gwm", "prepare", "--config", str(values), "--print-config")
    assert (printed.returncode, printed.stderr) == (0, "")
