"""A flame graph of py-spy as a table: `python profile_table.py PICTURE.svg`.

A function's share counts whatever it calls. The functions of this project have lines, and the loading of modules.
"""

import html
import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

FRAME = re.compile(r'<title>([^<]*) \([\d,]+ samples, [^<]*</title><rect [^>]*fg:x="(\d+)" fg:w="(\d+)"')
OURS = re.compile(r"^(?!<module>).*\((?:gwm_model|pipeline)/")
IMPORTS = "loading modules"
LEAST_SHARE = 0.01


def covered(spans: Iterable[tuple[int, int]]) -> int:
    """Samples in at least one of the spans: a function that calls itself counts once."""
    total = end = 0
    for start, stop in sorted(spans):
        total += max(0, stop - max(start, end))
        end = max(end, stop)
    return total


def shares(svg: str) -> dict[str, float]:
    """Shares of all samples by function, the largest first."""
    spans = defaultdict(list)
    for name, start, width in FRAME.findall(svg):
        frame = html.unescape(name)
        kind = IMPORTS if frame.startswith("_find_and_load ") else frame
        spans[kind].append((int(start), int(start) + int(width)))
    total = covered(spans["all"])
    found = {
        name: covered(each) / total for name, each in spans.items() if name == IMPORTS or OURS.match(name)
    }
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def main() -> None:
    """Prints the table."""
    print("| function | % of samples |\n|---|---|")
    for name, share in shares(Path(sys.argv[1]).read_text()).items():
        if share >= LEAST_SHARE:
            print(f"| `{name}` | {100 * share:.1f} |")


if __name__ == "__main__":
    main()
