"""JSON Schema of the commands' configurations, for editors and for completion: read off the dataclasses."""

import ast
import dataclasses
import inspect
import itertools
import json
import textwrap
import types
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from pipeline.config import (
    EXTENDS,
    MISSING,
    EvaluateConfig,
    ExportConfig,
    PrepareConfig,
    SegmentConfig,
    TrainConfig,
)
from pipeline.errors import GwmError

CONFIGS: dict[str, type[Any]] = {
    "prepare": PrepareConfig,
    "train": TrainConfig,
    "segment": SegmentConfig,
    "evaluate": EvaluateConfig,
    "export": ExportConfig,
}
"""The commands that take `key=value` words."""

DIALECT = "https://json-schema.org/draft/2020-12/schema"
TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", types.NoneType: "null"}
INTERPOLATION = r"^\$\{.+\}$"
"""A value from elsewhere, such as ${oc.env:NAME}: the one text that may stand where a number is wanted."""

Schema = dict[str, Any]


def config_schema(command: str) -> Schema:
    """The JSON Schema (2020-12) of a command's YAML file; nothing is required, for words may give the rest."""
    if command not in CONFIGS:
        raise GwmError(f"'{command}' has no configuration: choose {', '.join(CONFIGS)}.")
    schema = _section(CONFIGS[command], CONFIGS[command]())
    extends = {
        "type": "string",
        "description": "A file, by its path beside this one, that this one differs from.",
    }
    return {
        "$schema": DIALECT,
        "title": f"gwm {command}",
        **schema,
        "properties": {EXTENDS: extends, **schema["properties"]},
    }


def schema_json(command: str) -> str:
    """The schema as text, as conf/schema/ has it."""
    return json.dumps(config_schema(command), indent=1) + "\n"


def leaves(schema: Schema, prefix: str = "") -> dict[str, Schema]:
    """The values of a configuration under dotted keys, each with its schema."""
    found: dict[str, Schema] = {}
    for name, inner in schema["properties"].items():
        if "properties" in inner:
            found |= leaves(inner, f"{prefix}{name}.")
        elif name != EXTENDS:
            found[f"{prefix}{name}"] = inner
    return found


def is_text(leaf: Schema) -> bool:
    """Whether a leaf takes any text: a path, a name, an address."""
    return "string" in leaf.get("type", ()) and "pattern" not in leaf


def choices(leaf: Schema) -> list[str]:
    """The values that a leaf may have, where they can be counted; as a command line writes them."""
    if "boolean" in leaf.get("type", ()):
        return ["true", "false"]
    return [str(value) for value in leaf.get("enum", ())]


def _section(cls: type[Any], default: Any) -> Schema:
    """A dataclass with its defaults."""
    hints, said = get_type_hints(cls), _field_docs(cls)
    properties = {}
    for field in dataclasses.fields(cls):
        kind, value = hints[field.name], getattr(default, field.name)
        schema = (
            _section(cast("type[Any]", kind), value) if dataclasses.is_dataclass(kind) else _leaf(kind, value)
        )
        about = {"description": said[field.name]} if field.name in said else {}
        properties[field.name] = schema | about
    return {
        "description": _one_line(inspect.getdoc(cls) or ""),
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
    }


def _leaf(kind: Any, default: Any) -> Schema:
    schema = _values(kind)
    names = schema.get("type", ["string"])
    if "string" not in names:
        schema |= {"type": [*names, "string"], "pattern": INTERPOLATION}  # a pattern concerns strings alone
    return schema if default == MISSING else schema | {"default": default}


def _values(kind: Any) -> Schema:
    """The values of a type: text, a number, none, one of some words, a tuple, or one of several of these."""
    if get_origin(kind) in (Union, types.UnionType):
        return {"type": [name for part in get_args(kind) for name in _values(part)["type"]]}
    if get_origin(kind) is Literal:
        return {"enum": list(get_args(kind))}
    if get_origin(kind) is tuple:
        return {"type": ["array"], "items": _values(get_args(kind)[0])}
    return {"type": [TYPES[kind]]}


def _field_docs(cls: type[Any]) -> dict[str, str]:
    """The docstrings under the fields of a dataclass and of those that it extends; Python itself forgets them."""
    said: dict[str, str] = {}
    for base in reversed([base for base in cls.__mro__ if dataclasses.is_dataclass(base)]):
        body = cast("ast.ClassDef", ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]).body
        for field, below in itertools.pairwise(body):
            match field, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    said[name] = _one_line(inspect.cleandoc(text))
    return said


def _one_line(text: str) -> str:
    return " ".join(text.split())
