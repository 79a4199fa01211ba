"""The image cannot be built here: its lines against the files and versions that they name."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml

PROJECT = Path(__file__).parents[2]
DOCKER = PROJECT / "infra" / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
INSTRUCTIONS = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE)).splitlines()


def instructions(kind: str) -> list[str]:
    return [line.removeprefix(f"{kind} ") for line in INSTRUCTIONS if line.startswith(f"{kind} ")]


def pip_installs() -> list[list[str]]:
    runs = [line for line in instructions("RUN") if "pip install" in line]
    return [shlex.split(run.split("pip install", 1)[1]) for run in runs]


def test_stages_follow_from_each_other_and_the_base_is_pinned() -> None:
    (base,) = [line for line in instructions("ARG") if line.startswith("PYTHON=")]
    assert re.fullmatch(r"PYTHON=3\.\d+\.\d+-slim-\w+", base)
    known = {"python:${PYTHON}"}
    for line in instructions("FROM"):
        source, _, name = line.partition(" AS ")
        assert source in known
        known.add(name)
    assert {"cpu", "gpu"} <= known
    for line in instructions("COPY"):
        if line.startswith("--from="):
            assert line.split()[0].removeprefix("--from=") in known


def test_both_images_run_as_somebody_who_is_not_root_and_say_how_they_are() -> None:
    assert instructions("USER") == ["ray", "ray"]
    assert INSTRUCTIONS[-1] == "USER ray"
    (check,) = [line for line in INSTRUCTIONS if line.startswith("HEALTHCHECK")]
    assert "local_raylet_healthz" in check


def test_what_is_copied_exists_and_is_sent_to_the_builder() -> None:
    sent = {
        line[1:] for line in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines() if line[0] == "!"
    }
    copied = {
        word for line in instructions("COPY") if not line.startswith("--from=") for word in line.split()[:-1]
    }
    assert copied == sent
    assert all((PROJECT / path).exists() for path in sent)


def test_every_dependency_is_installed_in_its_tested_version(tmp_path: Path) -> None:
    installs = [words for words in pip_installs() if "/wheels/*.whl" not in words]
    assert len(installs) == 4
    for words in installs:
        assert words[words.index("--constraint") + 1] == "constraints.txt"
        assert "requirements.txt" in words or words[-2:] == ["torch", "torchvision"]
    (listing,) = [line for line in instructions("RUN") if "tomllib" in line]
    code = shlex.split(listing)[2]
    project = (PROJECT / "pyproject.toml").read_text()
    (tmp_path / "pyproject.toml").write_text(project)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.splitlines() == tomllib.loads(project)["project"]["dependencies"]


def test_the_images_of_all_files_are_the_ones_that_are_built() -> None:
    version = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"]
    texts = [path.read_text() for path in (PROJECT / "infra").rglob("*.yaml")]
    named = {image for text in texts for image in re.findall(r"\bgwm:[\w.-]+", text)}
    built = {line.split()[-2] for line in DOCKERFILE.splitlines() if line.startswith("#   docker build")}
    assert named == built == {f"gwm:{version}-cpu", f"gwm:{version}-gpu"}


def test_compose_builds_a_target_of_the_dockerfile() -> None:
    build = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]["ray"]["build"]
    assert (DOCKER / build["context"]).resolve() == PROJECT
    assert (PROJECT / build["dockerfile"]) == DOCKER / "Dockerfile"
    assert any(line.endswith(f" AS {build['target']}") for line in instructions("FROM"))
