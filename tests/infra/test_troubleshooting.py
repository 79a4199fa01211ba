"""The troubleshooting guide has every sentence that the source can end a command or a unit with, and no other.

A sentence is written in the guide as in the source, with `…` for what is filled in, in the first column of a table.
Whether it ends with a full stop does not matter.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
GUIDE = PROJECT / "infra" / "guides" / "troubleshooting.md"
SOURCES = sorted([*(PROJECT / "pipeline").rglob("*.py"), *(PROJECT / "gwm_model").rglob("*.py")])
TREES = {path: ast.parse(path.read_text()) for path in SOURCES}

ERRORS = {"GwmError": 0, "UnitError": 0, "ValueError": 0, "require": 1}
"""What is called with a sentence, and which argument that is; classes derived from these are found by themselves."""
SENTENCES_RETURNED = {"_no_progress", "_unknown_key", "why_stopped"}
"""Functions whose result is a sentence."""
FORWARDED = {
    *SENTENCES_RETURNED,
    "explain",  # a template of storage_errors.py
    "first_line",  # a library's own words
    "_first_line",
    "split('\\nFailed to apply', 1)[0]",  # a GwmError's sentence again
    "stopped",  # why_stopped
    "row['failure']",  # a unit's sentence again
    "sentence",  # the argument of `require`
}
"""Last names of arguments, or of functions called there, that are no text themselves: that is found elsewhere."""
HOLE = "…"

Function = ast.FunctionDef | ast.AsyncFunctionDef


def template(node: ast.expr) -> str | None:
    """The text of a string, an f-string or a sum of them, with `…` for its holes; None for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"\{url\}", HOLE, node.value)
    if isinstance(node, ast.JoinedStr):
        parts = (part.value if isinstance(part, ast.Constant) else HOLE for part in node.values)
        return re.sub(r"\{url\}", HOLE, "".join(map(str, parts)))
    return None


def derived(trees: Iterator[ast.Module]) -> dict[str, int]:
    """ERRORS and the classes derived from them."""
    found = dict(ERRORS)
    for node in (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        if {base.id for base in node.bases if isinstance(base, ast.Name)} & set(ERRORS):
            found[node.name] = 0
    return found


def arguments(tree: ast.Module, errors: dict[str, int]) -> Iterator[ast.expr]:
    """The expressions that are sentences: an error's argument, what a name of it was given, what a function returns."""
    functions = [node for node in ast.walk(tree) if isinstance(node, Function)]
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in errors):
            continue
        place = errors[node.func.id]
        if len(node.args) > place:
            argument = node.args[place]
            yield from assigned(argument, node, functions) or [argument]
    for function in functions:
        if function.name in SENTENCES_RETURNED:
            yield from (
                node.value for node in ast.walk(function) if isinstance(node, ast.Return) and node.value
            )


def assigned(argument: ast.expr, call: ast.Call, functions: list[Function]) -> list[ast.expr]:
    """What the function around a call gives to the name that is its argument."""
    if not isinstance(argument, ast.Name):
        return []
    around = next(function for function in functions if call in ast.walk(function))
    assignments = (node for node in ast.walk(around) if isinstance(node, ast.Assign))
    return [node.value for node in assignments if ast.dump(node.targets[0]).find(f"'{argument.id}'") >= 0]


def storage_templates() -> Iterator[str]:
    """What storage_errors.py has in its tables."""
    nodes = list(ast.walk(TREES[PROJECT / "pipeline" / "storage_errors.py"]))
    inner = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in nodes:
        if isinstance(node, ast.Constant | ast.JoinedStr) and id(node) not in inner:
            text = template(node)
            if text is not None and HOLE in text:
                yield text


def is_forwarded(argument: ast.expr) -> bool:
    """Whether the argument only hands a sentence on."""
    handed_on = argument.func if isinstance(argument, ast.Call) else argument
    return ast.unparse(handed_on).rpartition(".")[2] in FORWARDED


def source_sentences() -> dict[str, str]:
    """Every sentence and where it stands; without those that hold no word of their own."""
    errors = derived(iter(TREES.values()))
    found = dict.fromkeys(storage_templates(), "pipeline/storage_errors.py")
    for path, tree in TREES.items():
        for argument in arguments(tree, errors):
            text = template(argument)
            where = f"{path.relative_to(PROJECT)}:{argument.lineno}"
            assert text is not None or is_forwarded(argument), f"{where} hides its sentence"
            if text is not None:
                found.setdefault(text, where)
    return {text.rstrip("."): where for text, where in found.items() if re.search(r"\w", text)}


def guide_sentences() -> list[str]:
    """The code in the first column of the guide's tables."""
    cells = [line.split(" | ")[0] for line in GUIDE.read_text().splitlines() if line.startswith("| `")]
    return [found[1].strip(" .") for cell in cells for found in re.findall(r"(`+)(.+?)\1(?!`)", cell)]


def test_the_guide_has_every_sentence_of_the_source() -> None:
    known = set(guide_sentences())
    missing = [f"{where}: {text}" for text, where in source_sentences().items() if text not in known]
    assert not missing, "\n".join(["to be added to infra/guides/troubleshooting.md:", *missing])


def test_the_guide_has_no_other_sentence_and_none_twice() -> None:
    found, real = guide_sentences(), source_sentences()
    assert not [text for text in found if text not in real]
    assert len(found) == len(set(found))


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("raise GwmError(f'There is no {what} in {url}.')", ["There is no … in …."]),
        ("require(x > 0, 'x must be ' 'positive')", ["x must be positive"]),
        ("def f():\n    said = f'{x} is bad'\n    raise UnitError(said) from error", ["… is bad"]),
        ("def why_stopped():\n    return f'{n} batches'", ["… batches"]),
    ],
)
def test_sentences_are_found_where_they_are_written(code: str, expected: list[str]) -> None:
    assert [template(argument) for argument in arguments(ast.parse(code), ERRORS)] == expected
