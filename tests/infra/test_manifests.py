"""The manifests against the schemas of what reads them, and every command in them by our own command line."""

import json
import re
import shlex
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from ray.scripts import scripts as ray_scripts

from pipeline import cli
from pipeline.config import EvaluateConfig, PrepareConfig, SegmentConfig, TrainConfig
from pipeline.load_config import load_config

PROJECT = Path(__file__).parents[2]
KUBERAY = PROJECT / "infra" / "kuberay"
JOBS = sorted(KUBERAY.glob("job-*.yaml"))
CONFIGS = {
    "prepare": PrepareConfig,
    "train": TrainConfig,
    "segment": SegmentConfig,
    "evaluate": EvaluateConfig,
}
POOLS = {"prepare": "estimate_flow", "segment": "segment_images"}
MAX_SECONDS = 60


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


@cache
def schema(data: Path, plural: str) -> dict[str, Any]:
    """The v1 schema of a custom resource, as JSON Schema that refuses unknown fields."""
    (definition,) = yaml.safe_load_all((data / "kuberay" / f"ray.io_{plural}.yaml").read_text())
    versions = {version["name"]: version for version in definition["spec"]["versions"]}
    return strict(versions["v1"]["schema"]["openAPIV3Schema"])


def strict(node: Any) -> Any:
    """Kubernetes' dialect in JSON Schema's words: structural objects are closed, int-or-string and null as meant."""
    if isinstance(node, list):
        return [strict(inner) for inner in node]
    if not isinstance(node, dict):
        return node
    closed = {key: strict(value) for key, value in node.items() if not key.startswith("x-kubernetes-")}
    if node.get("x-kubernetes-int-or-string"):
        closed.pop("type", None)
    if isinstance(node.get("properties"), dict) and "additionalProperties" not in node:
        # metadata's own fields are the API server's; it is checked by the names that we use
        closed["additionalProperties"] = node.get("x-kubernetes-preserve-unknown-fields", False)
    if node.get("nullable"):
        closed = {"anyOf": [closed, {"type": "null"}]}
    return closed


def complaints(path: Path, data: Path, plural: str) -> list[str]:
    validator = jsonschema.Draft202012Validator(schema(data, plural))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(read(path))]


@pytest.mark.parametrize("path", [KUBERAY / "cluster.yaml", *JOBS], ids=lambda path: path.name)
def test_kuberay_takes_the_manifest(path: Path, test_data: Path) -> None:
    plural = "rayclusters" if path.stem == "cluster" else "rayjobs"
    assert complaints(path, test_data, plural) == []


def test_a_wrong_field_of_a_manifest_is_noticed(test_data: Path, tmp_path: Path) -> None:
    job = read(JOBS[0])
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["imag"] = "x"
    job["spec"]["ttlSecondsAfterFinished"] = "600"
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    said = complaints(tmp_path / "job.yaml", test_data, "rayjobs")
    assert len(said) == 2
    assert any("'imag' was unexpected" in line for line in said)


def test_each_command_has_its_job_on_the_same_cluster() -> None:
    cluster = read(KUBERAY / "cluster.yaml")["spec"]
    assert {path.stem.removeprefix("job-") for path in JOBS} == set(CONFIGS)
    for path in JOBS:
        job = read(path)
        assert job["spec"]["rayClusterSpec"] == cluster
        assert shlex.split(job["spec"]["entrypoint"])[1] == path.stem.removeprefix("job-")
        assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gwm"
        assert job["spec"]["ttlSecondsAfterFinished"] > 0
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["rayVersion"] == ray.__version__


def entry(path: Path) -> tuple[str, list[str]]:
    program, command, *words = shlex.split(read(path)["spec"]["entrypoint"])
    assert program == "gwm"
    return command, words


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_our_own_command_line_takes_each_entrypoint(
    path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(PROJECT)
    command, words = entry(path)
    assert cli.main([command, *words, "--print-config"]) == 0, capfd.readouterr().err
    assert "???" not in capfd.readouterr().out


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_a_job_finds_room_on_its_cluster(path: Path) -> None:
    command, words = entry(path)
    config: Any = load_config(CONFIGS[command], str(PROJECT / words[1]), words[2:])
    groups = read(path)["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    machines = {group["groupName"]: (group["maxReplicas"], limits(group)) for group in groups}
    if command == "train":
        place, workers = config.placement.train_worker, config.num_workers
    elif command in POOLS:
        place = getattr(config.placement, POOLS[command])
        workers = place.num_actors
        assert workers, "a pool of no stated size would fill the cluster as it begins: without machines"
    else:
        return
    replicas, gpu_machine = machines["gpu"]
    per_machine = int(gpu_machine["nvidia.com/gpu"]) // place.num_gpus
    assert workers <= replicas * per_machine
    assert per_machine * place.num_cpus < int(gpu_machine["cpu"])


def limits(group: dict[str, Any]) -> dict[str, str]:
    (container,) = group["template"]["spec"]["containers"]
    found: dict[str, str] = container["resources"]["limits"]
    return found


def manifests() -> list[Path]:
    return sorted((PROJECT / "infra").rglob("*.yaml"))


@pytest.mark.parametrize("path", manifests(), ids=lambda path: str(path.relative_to(PROJECT)))
def test_no_manifest_holds_a_secret(path: Path) -> None:
    for name, value in re.findall(r"(\w*(?:SECRET|TOKEN|KEY)\w*):[ \t]*(\S.*)", path.read_text()):
        assert value.startswith("${"), f"{name} in {path.name}"


def test_the_cluster_launcher_takes_its_file() -> None:
    launcher = read(PROJECT / "infra" / "ray" / "aws.yaml")
    ray_schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(launcher, ray_schema)
    for command in launcher["head_start_ray_commands"] + launcher["worker_start_ray_commands"]:
        check_ray_words(command)


def test_compose_names_commands_and_options_that_exist() -> None:
    services = read(PROJECT / "infra" / "docker" / "compose.yaml")["services"]
    check_ray_words(shlex.join(services["ray"]["command"]))
    mlflow = services["mlflow"]["command"]
    assert options(mlflow) <= options_in(help_of("python", "-m", "mlflow", "server", "--help"))
    assert options(services["bucket"]["command"]) <= options_in(help_of("weed", "mini", "-h"))
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def check_ray_words(command: str) -> None:
    """Parses a `ray start` or `ray stop` with Ray's own parser, without running it."""
    words = shlex.split(command.removeprefix("RAY_AUTH_MODE=token "))
    assert words[0] == "ray"
    ray_scripts.cli.commands[words[1]].make_context(words[1], words[2:])


def options(command: list[str]) -> set[str]:
    return {word.partition("=")[0].lstrip("-") for word in command if word.startswith("-")}


def options_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--?([a-z][\w.-]*)", text))


def help_of(*command: str) -> str:
    import sys

    tool = Path(sys.executable).parent / command[0]
    done = subprocess.run(
        [tool, *command[1:]], capture_output=True, text=True, check=False, timeout=MAX_SECONDS
    )
    return done.stdout + done.stderr
