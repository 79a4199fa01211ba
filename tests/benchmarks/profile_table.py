"""A flame graph of py-spy as a table: `python profile_table.py PICTURE.svg`.

A function's share counts whatever it calls. Only functions of this project, and the library calls that take much of
the time in themselves, have a line.
"""

import html
import re
import sys
from pathlib import Path

FRAME = re.compile(r"<title>(.*?) \(([\d,]+) samples, ([\d.]+)%\)</title>")
OURS = ("gwm_model/", "pipeline/")
LEAST_PERCENT = 1.0


def shares(svg: str) -> dict[str, float]:
    """Percent of all samples by frame, where it is at least LEAST_PERCENT."""
    found: dict[str, float] = {}
    for name, _, percent in FRAME.findall(svg):
        frame = html.unescape(name)
        found[frame] = found.get(frame, 0.0) + float(percent)
    return {frame: share for frame, share in found.items() if share >= LEAST_PERCENT}


def main() -> None:
    """Prints the table."""
    found = shares(Path(sys.argv[1]).read_text())
    print("| function | % of samples |")
    print("|---|---|")
    for frame, share in sorted(found.items(), key=lambda item: -item[1]):
        print(f"| {frame} | {share:.1f} |")


if __name__ == "__main__":
    main()
