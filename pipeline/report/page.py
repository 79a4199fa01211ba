"""The page itself: its content as dataclasses, and how they become HTML."""

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from pipeline import storage
from pipeline.errors import printable
from pipeline.report.curves import Curve
from pipeline.storage_errors import without_secrets

NAME = "report.html"
SAMPLES_ON_A_PAGE = 24
HEAD_BYTES = 4096
"""The page begins with what it says about itself."""
FILES = Path(__file__).parent
UNITS = {"prepare": "clips", "train": "models", "segment": "chunks", "evaluate": "sequences"}
RATES = {"rows": "frames", "steps": "steps", "images": "images"}
"""What the page calls a summary's rates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One image or frame and what was made of it."""

    name: str
    frame_index: int | None = None
    score: float | None = None
    """By which samples are ranked, 0 to 1; none comes first."""
    note: str = ""
    pictures: Mapping[str, bytes | None]
    """WebP by title, in the order of the slider; the same titles in every sample, none where there is no picture."""

    @property
    def title(self) -> str:
        """The sample in words."""
        return self.name if self.frame_index is None else f"{self.name}, frame {self.frame_index}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceScores:
    """J of one sequence."""

    name: str
    num_frames: int
    means: Mapping[str, float]
    """By protocol, 0 to 1."""
    lowest: str
    """The worst frame, in words."""
    curve: Curve


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What an evaluation found."""

    figures: Mapping[str, Mapping[str, float]]
    """Statistics by protocol, 0 to 1; the first protocol is the one that was asked for."""
    sequences: Sequence[SequenceScores]
    num_left_out: int = 0
    """Sequences that are not shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandTime:
    """What one command cost."""

    command: str
    units: str
    """What was done, in words."""
    seconds: float
    rates: str
    num_bytes: int = 0
    """Written into shards."""
    stages: Mapping[str, float] = field(default_factory=dict)
    """Seconds by stage, summed over its workers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Undone:
    """An input without a result, and why."""

    source: str
    stage: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The content of report.html."""

    title: str
    lead: str
    facts: Mapping[str, str] = field(default_factory=dict)
    headline: tuple[str, str] | None = None
    """One figure, and what it is."""
    samples: Sequence[Sample] = ()
    ranked_by: str = ""
    """What the samples' scores are, in a word; empty where they have none."""
    scores: Scores | None = None
    losses: Curve | None = None
    undone: Sequence[Undone] = ()
    num_undone: int = 0
    """At least as many as `undone` lists."""
    times: Sequence[CommandTime] = ()
    links: Sequence[str] = ()
    """Files beside the report, by their paths relative to it."""
    state: str = ""
    """What the content depends on, except for times: a report of the same state is not drawn again."""


def command_time(summary: Mapping[str, Any]) -> CommandTime:
    """A command's cost, from its summary."""
    outcomes = ", ".join(f"{number:,} {outcome}" for outcome, number in summary["units"].items() if number)
    rates = summary["rates"]
    shown = [(name, rates[f"{name}_per_s"]) for name in RATES if rates.get(f"{name}_per_s")]
    seconds = dict(summary["seconds"])
    return CommandTime(
        command=f"gwm {summary['command']}",
        units=f"{UNITS[summary['command']]}: {outcomes}",
        seconds=float(seconds.pop("total", 0.0)),
        rates=", ".join(f"{value:,.1f} {RATES[name]} a second" for name, value in shown),
        num_bytes=int(summary.get("bytes", 0)),
        stages=seconds,
    )


def is_drawn(url: str, state: str) -> bool:
    """Whether a report of this state is there."""
    if not storage.exists(url):
        return False
    with storage.open_read(url) as file:
        return _mark(state).encode() in file.read(HEAD_BYTES)


def write_report(url: str, report: Report) -> None:
    """Writes one HTML file with all pictures inside."""
    with storage.open_write(url) as file:
        for piece in pieces(report):
            file.write(piece.encode())


def render(report: Report) -> str:
    """The whole page."""
    return "".join(pieces(report))


def pieces(report: Report) -> Iterator[str]:
    """The page as HTML, part by part. All text is escaped, on one line, and without secrets in URLs.

    The samples with the lowest scores come first. The first few are in the page; the others are text in `script`
    elements, one figure a line, which the page's own script puts into it a few at a time. A policy in the page lets no
    other script run and loads nothing from anywhere.
    """
    ranked = sorted(report.samples, key=_rank)
    groups = [ranked[first : first + SAMPLES_ON_A_PAGE] for first in range(0, len(ranked), SAMPLES_ON_A_PAGE)]
    script = (FILES / "page.js").read_text(encoding="utf-8")
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    titles = dict.fromkeys(title for sample in ranked for title in sample.pictures)
    return _template().generate(
        report=report,
        mark=Markup(_mark(report.state)),  # noqa: S704  a digest
        style=Markup((FILES / "page.css").read_text(encoding="utf-8")),  # noqa: S704  our own file
        script=Markup(script),  # noqa: S704  our own file
        allowed=allowed,
        titles=list(titles),
        first=groups[0] if groups else (),
        others=groups[1:],
        index=[[sample.title, sample.score] for sample in ranked],
        per_page=SAMPLES_ON_A_PAGE,
    )


def _rank(sample: Sample) -> tuple[float, str, int]:
    score = -1.0 if sample.score is None else sample.score
    return score, sample.name, sample.frame_index or 0


def _mark(state: str) -> str:
    return f'<meta name="state" content="{state}">'


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FILES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters |= {
        "data_url": _data_url,
        "json": _json,
        "link": _link,
        "per_cent": _per_cent,
        "size": _size,
    }
    return environment.get_template("page.html")


def _shown(value: object) -> object:
    """What is written of a value: a text on one line and without secrets; what is HTML already stays."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return printable(without_secrets(value))
    return value


def _data_url(picture: bytes) -> Markup:
    return Markup(f"data:image/webp;base64,{base64.b64encode(picture).decode()}")  # noqa: S704  no character of HTML


def _link(path: str) -> str:
    return quote(without_secrets(path))


def _json(value: object) -> Markup:
    """JSON inside a `script` element."""
    text = without_secrets(json.dumps(value, separators=(",", ":")))
    return Markup(text.replace("<", "\\u003c"))  # noqa: S704  no tag can begin in it


def _per_cent(fraction: float | None) -> str:
    return "" if fraction is None else f"{100 * fraction:.1f}"


def _size(num_bytes: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.1f} TB"
