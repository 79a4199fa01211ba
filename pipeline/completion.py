"""Completion in a shell: the keys of `key=value` words, and the values that can be named."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from pipeline.config_schema import Schema

Completions = list[tuple[str, str]]
"""Words, each with what it means; a shell that can shows both."""


def complete_command(ctx: typer.Context, incomplete: str) -> list[str]:
    """The commands that take `key=value` words; a cluster runs no export."""
    from pipeline.config_schema import CONFIGS

    offered = CONFIGS.keys() - ({"export"} if ctx.info_name == "submit" else set())
    return sorted(command for command in offered if command.startswith(incomplete))


def complete_word(ctx: typer.Context, incomplete: str) -> Completions:
    """Keys of the command's values; once a key is whole, the values that it may have, or files."""
    from pipeline.config_schema import CONFIGS, config_schema, is_text, leaves

    command = ctx.params.get("command") or ctx.info_name  # `gwm submit` is told whose words follow
    if command not in CONFIGS:
        return []
    values, given = leaves(config_schema(command)), ctx.params.get("words") or []
    if given[-1:] == ["="]:  # bash takes it for a word of its own, and completes what comes after
        leaf = values.get(given[-2]) if len(given) > 1 else None
        return _values(leaf, incomplete) if leaf else []
    key, equals, text = incomplete.partition("=")
    matching = [key] if equals and key in values else [name for name in values if name.startswith(incomplete)]
    if len(matching) != 1:
        return [(f"{name}=", values[name].get("description", "")) for name in matching]
    (key,) = matching
    found = _paths(text) if is_text(values[key]) else _values(values[key], text)
    words = [(f"{key}={value}", meaning) for value, meaning in found]
    return words if equals else [(f"{key}=", values[key].get("description", "")), *words]


def see_equals_sign() -> None:
    """Tells typer that behind the `=` of `key=` bash completes a new word, which is empty still."""
    words, position = os.environ.get("COMP_WORDS", "").split("\n"), os.environ.get("COMP_CWORD", "")
    if position.isdigit() and words[int(position) :] == ["="]:
        os.environ["COMP_CWORD"] = str(len(words))


def _values(leaf: "Schema", start: str) -> Completions:
    """The values that begin so: all that there are, or the default where they cannot be counted; none of a text."""
    from pipeline.config_schema import choices, is_text

    default = json.dumps(leaf.get("default"), separators=(",", ":")).strip('"')
    named = choices(leaf) or ([] if is_text(leaf) else [default])
    return [(value, "default" if value == default else "") for value in named if value.startswith(start)]


def _paths(start: str) -> Completions:
    """Files here that begin so; a bucket is not asked."""
    folder, name = os.path.split(start)
    try:
        found = sorted(path for path in Path(folder or ".").iterdir() if path.name.startswith(name))
    except OSError:
        return []
    shown = [path for path in found if name.startswith(".") or not path.name.startswith(".")]
    return [(os.path.join(folder, path.name) + "/" * path.is_dir(), "") for path in shown]  # noqa: PTH118
