"""What a command did: summary.json in its output, and a table on the screen."""

import json
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline import storage
from pipeline.errors import printable
from pipeline.progress import print_result
from pipeline.storage_errors import without_secrets

RATED = ("rows", "bytes", "steps", "images")


def version() -> str:
    """The installed version of gwm, or `source` when it runs from a checkout that was never installed."""
    try:
        return installed_version("gwm")
    except PackageNotFoundError:
        return "source"


def write_summary(
    output: str,
    *,
    command: str,
    fingerprint: str,
    counts: Mapping[str, int],
    seconds: Mapping[str, float],
    **extra: Any,
) -> dict[str, Any]:
    """Writes and returns summary.json.

    `counts` are units done, skipped and quarantined; `seconds` has one entry for each stage, and `total` for
    the wall clock, by which the rates are taken.
    """
    units = {"done": 0, "skipped": 0, "quarantined": 0} | dict(counts)
    summary = {
        "command": command,
        "version": version(),
        "fingerprint": fingerprint,
        "output": storage.absolute(output),
        "units": units,
        **extra,
        "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
        "rates": _rates({"units": units["done"]} | extra, seconds.get("total", 0.0)),
    }
    write_json(storage.join(output, "summary.json"), summary)
    return summary


def write_json(url: str, content: Any) -> None:
    """Writes readable JSON in one piece; what URLs hold of secrets is left out."""
    storage.write_bytes(url, (without_secrets(json.dumps(content, indent=1)) + "\n").encode())


def show_summary(summary: Mapping[str, Any], next_command: str | None) -> None:
    """Shows a table and the next command on a terminal, otherwise one line of JSON on stdout."""
    if not sys.stdout.isatty():
        line = dict(summary) | ({"next": next_command} if next_command else {})
        print_result(without_secrets(json.dumps(line)) + "\n")
        return
    console = Console()
    table = Table(title=f"gwm {summary.get('command', '')}", show_header=False, title_justify="left")
    for key, value in summary.items():
        if key not in ("command", "version", "fingerprint"):
            table.add_row(key, without_secrets(_cell(value)))
    console.print(table)
    if next_command:
        console.print("Next:", style="bold")
        console.print(f"  {without_secrets(next_command)}", soft_wrap=True, highlight=False, markup=False)


def _rates(values: Mapping[str, Any], seconds: float) -> dict[str, float]:
    counted = {name: values[name] for name in ("units", *RATED) if isinstance(values.get(name), int | float)}
    return {f"{name}_per_s": round(value / seconds, 3) for name, value in counted.items() if seconds > 0}


def _cell(value: object) -> str:
    if isinstance(value, Mapping):
        return "  ".join(f"{escape(printable(name))} {_cell(inner)}" for name, inner in value.items())
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return (
        f"{value:,}"
        if isinstance(value, int) and not isinstance(value, bool)
        else escape(printable(str(value)))
    )
