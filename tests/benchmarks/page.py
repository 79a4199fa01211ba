"""Writes infra/performance.md from the lines that the benchmarks print, on standard input."""

import json
import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "infra" / "performance.md"

HEAD = """# Performance

`infra/scripts/bench` runs every benchmark of tests/benchmarks and writes this page. A ratio compares a reference and
ours in one process on the same input, in turns, after checking that the results agree; where there is no reference, the
value stands alone. Ratios hold on other machines better than seconds do; the machine should do nothing else.

Where the time goes is in [profiles.md](profiles.md), what was tried and what holds a number back in
[lab-notebook.md](lab-notebook.md), what it means for a large job in [scale.md](scale.md).
"""
COLUMNS = ("| case | measured | value | target | met | details |", "|---|---|---|---|---|---|")


def machine() -> str:
    """The machine and the versions that matter, in one sentence."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "ray", "pyarrow", "av"))
    cpu = f"{os.cpu_count()} cores of {names[0] if names else platform.machine()}"
    when = f"{datetime.now(UTC):%Y-%m-%d}"
    return f"Measured on {when}, {cpu}, Python {platform.python_version()}, {packages}."


def row(line: dict[str, Any]) -> str:
    """One line of the table."""
    known = ("benchmark", "case", "measured", "value", "target", "met")
    details = "; ".join(f"{key} {value}" for key, value in line.items() if key not in known)
    met = {True: "yes", False: "**no**", None: ""}[line["met"]]
    return f"| {line['case']} | {line['measured']} | {line['value']} | {line['target']} | {met} | {details} |"


def main() -> None:
    """Reads the lines, writes the page."""
    lines = [json.loads(line) for line in sys.stdin if line.startswith("{")]
    parts = [HEAD, machine(), ""]
    for name, group in groupby(lines, key=itemgetter("benchmark")):
        parts += [f"## {name}", "", *COLUMNS, *map(row, group), ""]
    PAGE.write_text("\n".join(parts))


if __name__ == "__main__":
    main()
