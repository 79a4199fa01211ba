"""The forms and pages of .github, and the changelog."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).parents[2]
GITHUB = PROJECT / ".github"
FORMS = sorted((GITHUB / "ISSUE_TEMPLATE").glob("*.yml"))
PAGES = sorted([*GITHUB.glob("*.md"), PROJECT / "infra" / "CHANGELOG.md"])


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_forms_are_what_their_host_accepts(path: Path) -> None:
    form = yaml.safe_load(path.read_text())
    assert form.keys() == {"name", "description", "labels", "body"}
    names = [field["id"] for field in form["body"]]
    assert len(set(names)) == len(names)
    for field in form["body"]:
        assert field.keys() <= {"type", "id", "attributes", "validations"}
        assert field["type"] == "textarea"
        assert field["attributes"]["label"]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_files_that_pages_name_exist(path: Path) -> None:
    text = path.read_text()
    named = re.findall(r"`((?:infra|tests|conf|pipeline)/[\w/.-]+)", text)
    linked = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert all((PROJECT / name).exists() for name in named)
    assert all((path.parent / link).exists() for link in linked)


def test_the_changelog_knows_this_version() -> None:
    version = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"]
    headings = re.findall(r"^## (.+)$", (PROJECT / "infra" / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert headings[1] == version
