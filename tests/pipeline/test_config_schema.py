import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from omegaconf import OmegaConf

from pipeline.config_schema import CONFIGS, choices, config_schema, leaves, schema_json
from pipeline.errors import GwmError
from pipeline.load_config import flatten

CONF = Path(__file__).parents[2] / "conf"
FILES = sorted(CONF.rglob("*.yaml"))


def problems(command: str, values: Any) -> list[str]:
    return [error.message for error in Draft202012Validator(config_schema(command)).iter_errors(values)]


@pytest.mark.parametrize("command", CONFIGS)
def test_a_schema_is_one_and_has_every_value_of_its_command(command: str) -> None:
    schema = config_schema(command)
    Draft202012Validator.check_schema(schema)
    defaults = flatten(CONFIGS[command]())
    assert leaves(schema).keys() == defaults.keys()
    every = json.loads(json.dumps(dataclasses.asdict(CONFIGS[command]())))
    assert problems(command, every | {"extends": "other.yaml"}) == []


@pytest.mark.parametrize("path", sorted(CONF.glob("schema/*.json")), ids=lambda path: path.stem)
def test_committed_schemas_are_the_generated_ones(path: Path) -> None:
    assert path.read_text() == schema_json(path.stem), "see conf/README.md for the line that writes them anew"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONF)))
def test_every_configuration_file_names_its_schema_and_fits_it(path: Path) -> None:
    command = path.stem.partition("_")[0]
    first = path.read_text().splitlines()[0]
    named = first.removeprefix("# yaml-language-server: $schema=")
    assert (path.parent / named).resolve() == CONF / "schema" / f"{command}.json"
    assert problems(command, OmegaConf.to_container(OmegaConf.load(path))) == []


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"vidoes": "in"}, "'vidoes' was unexpected"),
        ({"decode": {"strid": 2}}, "'strid' was unexpected"),
        ({"decode": {"stride": "fast"}}, "does not match"),
        ({"decode": {"stride": 1.5}}, "1.5 is not of type 'integer'"),
        ({"decode": 3}, "3 is not of type 'object'"),
        (
            {"estimate_flow": {"estimator": "raft"}},
            "'raft' is not one of ['raft_large', 'raft_small', 'dis']",
        ),
        ({"estimate_flow": {"gaps": 1}}, "1 is not of type 'array'"),
        ({"retry_quarantined": 1}, "1 is not of type 'boolean'"),
    ],
)
def test_mistakes_do_not_fit(values: dict[str, Any], said: str) -> None:
    (problem,) = problems("prepare", values)
    assert said in problem


def test_values_from_the_environment_fit() -> None:
    values = {"videos": "${oc.env:VIDEOS}", "decode": {"stride": "${oc.env:STRIDE}", "fps": None}}
    assert problems("prepare", values) == []


def test_descriptions_defaults_and_choices_come_from_the_dataclasses() -> None:
    values = leaves(config_schema("prepare"))
    stride = "Keep every n-th frame in presentation order; gaps count kept frames."
    assert values["decode.stride"]["description"] == stride
    assert values["decode.timeout_s"]["description"].startswith("Longest time")  # of the class it extends
    assert values["estimate_flow.gaps"]["default"] == (1, -1)
    assert "default" not in values["videos"]
    assert choices(values["estimate_flow.precision"]) == ["float32", "bfloat16"]
    assert choices(values["retry_quarantined"]) == ["true", "false"]
    assert choices(values["decode.stride"]) == choices(values["videos"]) == []
    assert json.loads(schema_json("prepare"))["title"] == "gwm prepare"


def test_another_command_is_a_sentence() -> None:
    with pytest.raises(GwmError, match="'demo' has no configuration: choose prepare, train"):
        config_schema("demo")
