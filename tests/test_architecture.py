"""The laws of the source tree that keep it readable and gwm_model pure."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import gwm_model
from pipeline.config import EvaluateConfig, PrepareConfig, SegmentConfig, TrainConfig
from pipeline.load_config import config_yaml, load_config

PROJECT = Path(__file__).parents[1]
SOURCES = sorted([*(PROJECT / "gwm_model").rglob("*.py"), *(PROJECT / "pipeline").rglob("*.py")])
COMMANDS = {
    "prepare": PrepareConfig,
    "train": TrainConfig,
    "segment": SegmentConfig,
    "evaluate": EvaluateConfig,
}

MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_PAGE_LINES = 80

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(path: Path) -> list[tuple[str, int]]:
    """Name and number of lines of each function and method of a module."""
    tree = ast.parse(path.read_text())
    found = [node for node in ast.walk(tree) if isinstance(node, Function)]
    return [(node.name, (node.end_lineno or node.lineno) - node.lineno + 1) for node in found]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_modules_and_functions_stay_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_MODULE_LINES
    page = path.stem if path.parent.name == "pipeline" and path.stem in COMMANDS else None
    long = [
        (name, lines)
        for name, lines in functions(path)
        if lines > (MAX_PAGE_LINES if name == page else MAX_FUNCTION_LINES)
    ]
    assert not long


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_one_function_of_its_page(command: str) -> None:
    assert command in dict(functions(PROJECT / "pipeline" / f"{command}.py"))


def test_public_names_are_sorted_and_importable() -> None:
    assert list(gwm_model.__all__) == sorted(set(gwm_model.__all__))
    for name in gwm_model.__all__:
        assert getattr(gwm_model, name) is not None


BLOCKED_IMPORT = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ImportError("blocked: " + name)

sys.meta_path.insert(0, Blocked())
{statements}
"""


def run_with_blocked(blocked: set[str], statements: str) -> str:
    """Standard error of a fresh Python in which some packages cannot be imported."""
    code = BLOCKED_IMPORT.format(blocked=blocked, statements=statements)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    return done.stderr if done.returncode else ""


def module_names(folder: str) -> list[str]:
    paths = [path.relative_to(PROJECT).with_suffix("") for path in SOURCES if folder in path.parts]
    return sorted(".".join(path.parts).removesuffix(".__init__") for path in paths)


def test_gwm_model_needs_nothing_of_the_pipeline() -> None:
    blocked = {"ray", "mlflow", "omegaconf", "fsspec", "s3fs", "pyarrow", "av", "rich", "typer", "pipeline"}
    blocked |= {"pydensecrf"}  # an extra
    statements = "\n".join(f"import {name}" for name in module_names("gwm_model"))
    assert run_with_blocked(blocked, statements) == ""


def test_stages_and_their_records_work_without_ray_and_mlflow() -> None:
    modules = [
        *module_names("stages"),
        "pipeline.records",
        "pipeline.config",
        "pipeline.storage",
        "pipeline.dataset",
    ]
    statements = "\n".join(f"import {name}" for name in modules)
    assert run_with_blocked({"ray", "mlflow", "pydensecrf"}, statements) == ""


def test_a_blocked_import_is_noticed() -> None:
    assert "blocked: ray" in run_with_blocked({"ray"}, "import pipeline.placement")


def test_commands_import_no_library_that_they_may_not_need() -> None:
    """Each takes seconds, in every worker: RAFT needs torchvision, backbones timm, numbered objects scipy.

    Stages without a network, and formats of masks and flow, need no torch.
    """
    pages = "import pipeline.prepare, pipeline.train, pipeline.segment, pipeline.evaluate"
    assert run_with_blocked({"torchvision", "timm", "scipy", "mlflow"}, pages) == ""
    around = (
        "plan_clips",
        "decode_clip",
        "write_flow_shard",
        "plan_chunks",
        "load_chunk",
        "write_mask_shard",
    )
    imports = "\n".join(f"import pipeline.stages.{stage}" for stage in around) + "\nimport pipeline.export"
    assert run_with_blocked({"torch", "scipy", "mlflow"}, imports) == ""


def test_configuration_is_read_without_torch() -> None:
    assert run_with_blocked({"torch", "torchvision", "timm", "cv2"}, "import pipeline.config") == ""


CONFIGURATIONS = sorted((PROJECT / "conf").rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: str(path.relative_to(PROJECT)))
def test_every_configuration_file_loads(path: Path) -> None:
    command = path.stem.partition("_")[0]
    assert command in COMMANDS, "a configuration file is named after its command"
    resolved = OmegaConf.create(config_yaml(COMMANDS[command], str(path), []))
    unset = sorted(OmegaConf.missing_keys(resolved))
    load_config(COMMANDS[command], str(path), [f"{key}=images" for key in unset])


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_its_configuration_file(command: str) -> None:
    assert (PROJECT / "conf" / f"{command}.yaml").is_file()
