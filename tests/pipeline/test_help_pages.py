import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from pipeline import help_pages
from pipeline.cli import app
from pipeline.config_schema import CONFIGS
from pipeline.load_config import load_config

PROJECT = Path(__file__).parents[2]
GROUP: Any = get_command(app)
PAGES = {name: getattr(help_pages, name.upper()) for name in GROUP.commands}
EXAMPLES = [
    line.strip() for page in PAGES.values() for line in page.splitlines() if line.startswith("  gwm ")
]


def test_every_command_shows_examples_and_gwm_what_holds_for_all() -> None:
    for name, page in PAGES.items():
        assert GROUP.commands[name].epilog == page
        assert f"  gwm {name} " in page or f"  gwm {name}\n" in page
    assert GROUP.epilog == help_pages.GWM


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_are_valid(example: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, *words = shlex.split(re.split(r"[|>]", example)[0])[1:]
    monkeypatch.chdir(PROJECT)
    given = GROUP.commands[name].make_context(name, list(words)).params
    command = given.get("command") or name
    if "words" in given:
        load_config(CONFIGS[command], given.get("config"), given["words"] or [])


def test_lines_fit_a_wide_terminal() -> None:
    assert all(len(line) <= 118 for page in (*PAGES.values(), help_pages.GWM) for line in page.splitlines())


def test_every_variable_of_ours_is_named() -> None:
    sources = "".join(path.read_text() for path in (PROJECT / "pipeline").rglob("*.py"))
    ours = set(re.findall(r'"(GWM_[A-Z_]+)"', sources))
    assert "GWM_RAFT_WEIGHTS" in ours
    assert all(name in help_pages.GWM for name in ours)
