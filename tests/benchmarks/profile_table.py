"""A flame graph of py-spy as a table: `python profile_table.py PICTURE.svg`; names the picture's processes briefly.

A function's share counts whatever it calls. The functions of this project have lines, and the loading of modules.
"""

import html
import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

FRAME = re.compile(r'<title>([^<]*) \([\d,]+ samples, [^<]*</title><rect [^>]*fg:x="(\d+)" fg:w="(\d+)"')
PROCESS = re.compile(r"process \d+:&quot;([^<]*?)(?:&quot;|\.\.(?=<)|(?= \([\d,]+ samples))")
TITLE = re.compile(r'(<text id="title"[^>]*>)[^<]*')
OURS = re.compile(r"^(?!<module>)(.*) \((?:gwm_model|pipeline)/")
IMPORTS = "loading modules"
LEAST_SHARE = 0.01


def short_name(command: str) -> str:
    """A process without its options and folders: `raylet`, `pipeline prepare`, `ray::Map(load_chunk)`."""
    words = [word for word in html.unescape(command).split() if not word.startswith("-")]
    if words and PurePosixPath(words[0]).name.startswith("python"):
        words = words[1:3] if {"-m", "-c"} & set(command.split()) else words[1:2]
    return " ".join(PurePosixPath(word).name if "/" in word else word for word in words[:2])


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
        ours = OURS.match(frame)
        kind = IMPORTS if frame.startswith("_find_and_load ") else ours[1] if ours else frame
        if ours or kind in (IMPORTS, "all"):
            spans[kind].append((int(start), int(start) + int(width)))
    total = covered(spans.pop("all"))
    found = {name: covered(each) / total for name, each in spans.items()}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def main() -> None:
    """Prints the table."""
    picture = Path(sys.argv[1])
    svg = PROCESS.sub(lambda found: f"process {html.escape(short_name(found[1]))}", picture.read_text())
    picture.write_text(TITLE.sub(rf"\1{picture.stem}", svg))
    print("| function | % of samples |\n|---|---|")
    for name, share in shares(svg).items():
        if share >= LEAST_SHARE:
            print(f"| `{name}` | {100 * share:.1f} |")


if __name__ == "__main__":
    main()
