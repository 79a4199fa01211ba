"""report.html: what a run did and what came out, in one file that needs nothing else."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline import storage
from pipeline.pictures import encode_jpeg
from pipeline.storage_errors import without_secrets

UNITS = {"prepare": "clips", "train": "models", "segment": "chunks", "evaluate": "sequences"}
RATES = {"rows": "frames", "steps": "steps", "images": "frames"}
"""What the report says of a summary's rates, in its words."""

Picture = npt.NDArray[np.uint8]
"""RGB [H, W, 3]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One frame and what was made of it; pictures that do not exist are none."""

    sequence: str
    frame_index: int
    j: float | None
    pictures: Mapping[str, Picture | None]
    """By column title, in the order of the columns; the same titles in every sample."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTime:
    """One command's cost."""

    command: str
    units: str
    """What was done, in words."""
    seconds: float
    rate: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The content of report.html."""

    title: str
    lead: str
    facts: Mapping[str, str]
    scores: Mapping[str, float]
    """J by sequence, 0 to 1; empty where there is no ground truth."""
    j_mean: float | None
    samples: Sequence[Sample]
    losses: Sequence[tuple[int, float]]
    """Step and loss."""
    stages: Sequence[StageTime]


def stage_time(summary: Mapping[str, Any]) -> StageTime:
    """A command's row in the table of times, from its summary."""
    outcomes = ", ".join(f"{number} {outcome}" for outcome, number in summary["units"].items() if number)
    rates = summary["rates"]
    shown = [(name, rates[f"{name}_per_s"]) for name in RATES if rates.get(f"{name}_per_s")]
    return StageTime(
        command=f"gwm {summary['command']}",
        units=f"{UNITS[summary['command']]}: {outcomes}",
        seconds=float(summary["seconds"].get("total", 0.0)),
        rate=", ".join(f"{value:,.1f} {RATES[name]} a second" for name, value in shown),
    )


def read_losses(model: str) -> list[tuple[int, float]]:
    """Step and loss, as logged while a model was trained; where every batch was bad there is none."""
    entries = json.loads(storage.read_bytes(storage.join(model, "metrics.json")))
    return [(int(entry["step"]), float(entry["loss"])) for entry in entries if "loss" in entry]


def write_report(url: str, report: Report) -> None:
    """Writes one HTML file with all pictures inside, readable in light and dark."""
    storage.write_bytes(url, render(report).encode())


def render(report: Report) -> str:
    """The page as HTML; all text is escaped."""
    sections = [
        _header(report),
        _samples(report.samples),
        _scores(report.scores, report.j_mean),
        _loss_curve(report.losses),
        _stages(report.stages),
    ]
    return without_secrets(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.title)}</title><style>{STYLE}</style></head>\n"
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )


def _header(report: Report) -> str:
    score = (
        ""
        if report.j_mean is None
        else f'<div class="score"><b>{100 * report.j_mean:.1f}</b><span>mean J, per cent</span></div>'
    )
    facts = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in report.facts.items()
    )
    return (
        f"<header><div><h1>{escape(report.title)}</h1><p>{escape(report.lead)}</p></div>{score}</header>"
        f'<dl class="facts">{facts}</dl>'
    )


def _samples(samples: Sequence[Sample]) -> str:
    if not samples:
        return ""
    titles = "".join(f"<span>{escape(title)}</span>" for title in samples[0].pictures)
    rows = []
    for sample in samples:
        name = f"{sample.sequence}, frame {sample.frame_index}"
        score = "" if sample.j is None else f" <i>J {100 * sample.j:.1f}</i>"
        pictures = "".join(_picture(f"{name}: {title}", p) for title, p in sample.pictures.items())
        rows.append(
            f'<figure><figcaption>{escape(name)}{score}</figcaption><div class="strip">{pictures}</div></figure>'
        )
    return f'<section><h2>Frames</h2><div class="strip titles">{titles}</div>{"".join(rows)}</section>'


def _picture(description: str, picture: Picture | None) -> str:
    if picture is None:
        return '<span class="none">none</span>'
    data = base64.b64encode(encode_jpeg(picture)).decode()
    height, width = picture.shape[:2]
    return (
        f'<img src="data:image/jpeg;base64,{data}" alt="{escape(description, quote=True)}" '
        f'width="{width}" height="{height}">'
    )


def _scores(scores: Mapping[str, float], j_mean: float | None) -> str:
    if j_mean is None:
        return ""
    rows = "".join(_score_row(name, value) for name, value in scores.items())
    return (
        "<section><h2>J by sequence</h2><p>Intersection over union of the mask and the ground truth, in per "
        "cent. The object was chosen without ground truth.</p>"
        f'<table class="scores">{rows}<tfoot>{_score_row("mean", j_mean)}</tfoot></table></section>'
    )


def _score_row(name: str, value: float) -> str:
    return (
        f'<tr><th>{escape(name)}</th><td class="bar"><div style="width:{100 * value:.1f}%"></div></td>'
        f"<td>{100 * value:.1f}</td></tr>"
    )


def _loss_curve(losses: Sequence[tuple[int, float]]) -> str:
    """An inline SVG, 640 x 200."""
    points = [(step, loss) for step, loss in losses if np.isfinite(loss)]
    if len(points) < 2:
        return ""
    steps, values = np.array(points, np.float64).T
    low, high = float(values.min()), float(values.max())
    x = 56 + 568 * (steps - steps[0]) / (steps[-1] - steps[0])
    y = 168 - 148 * (values - low) / (high - low or 1.0)
    line = " ".join(f"{px:.1f},{py:.1f}" for px, py in zip(x, y, strict=True))
    labels = (
        f'<text x="48" y="24" text-anchor="end">{high:.3g}</text>'
        f'<text x="48" y="172" text-anchor="end">{low:.3g}</text>'
        f'<text x="56" y="192">step {steps[0]:.0f}</text>'
        f'<text x="624" y="192" text-anchor="end">step {steps[-1]:.0f}</text>'
    )
    return (
        '<section><h2>Loss</h2><svg viewBox="0 0 640 200" role="img" aria-label="training loss by step">'
        f'<path class="axis" d="M56 20V168H624"/><polyline points="{line}"/>{labels}</svg></section>'
    )


def _stages(stages: Sequence[StageTime]) -> str:
    rows = "".join(
        f"<tr><th>{escape(stage.command)}</th><td>{escape(stage.units)}</td>"
        f"<td>{stage.seconds:.1f} s</td><td>{escape(stage.rate)}</td></tr>"
        for stage in stages
    )
    return (
        '<section><h2>Time</h2><table class="stages"><thead><tr><th>command</th><th>work</th><th>seconds</th>'
        f"<th>rate</th></tr></thead>{rows}</table></section>"
    )


STYLE = """
:root{color-scheme:light dark;--text:#1c2430;--soft:#5d6978;--line:#dde2e8;--page:#fbfbfa;--card:#fff;
--accent:#d23a5c}
@media(prefers-color-scheme:dark){:root{--text:#e6e9ee;--soft:#98a3b1;--line:#2c343f;--page:#12161c;
--card:#1a2028;--accent:#ff5c7c}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--text);font:16px/1.5 system-ui,-apple-system,"Segoe UI",
Roboto,sans-serif}
main{max-width:1180px;margin:0 auto;padding:40px 24px 64px}
header{display:flex;gap:32px;align-items:flex-end;justify-content:space-between}
h1{margin:0;font-size:30px;letter-spacing:-.02em;line-height:1.2}
h2{margin:0 0 4px;font-size:20px;letter-spacing:-.01em}
p{margin:6px 0 0;color:var(--soft);max-width:70ch}
section{margin-top:48px}
.score{text-align:right;flex:none}
.score b{display:block;font-size:52px;line-height:1;color:var(--accent);font-variant-numeric:tabular-nums}
.score span{color:var(--soft);font-size:13px}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(300px,1fr));gap:1px;margin:28px 0 0;
background:var(--line);border:1px solid var(--line);border-radius:10px;overflow:hidden}
.facts div{background:var(--card);padding:12px 16px}
dt{color:var(--soft);font-size:13px}dd{margin:0;font-size:15px;overflow-wrap:anywhere}
figure{margin:0 0 18px}
figcaption{font-size:14px;margin-bottom:5px}figcaption i{font-style:normal;color:var(--soft);margin-left:8px}
.strip{display:grid;grid-auto-flow:column;grid-auto-columns:1fr;gap:6px}
.strip img{width:100%;height:auto;display:block;border-radius:4px}
.titles{position:sticky;top:0;z-index:1;background:var(--page);padding:8px 0;margin-bottom:6px;
border-bottom:1px solid var(--line);font-size:13px;color:var(--soft)}
.none{display:grid;place-items:center;border:1px dashed var(--line);border-radius:4px;color:var(--soft);
font-size:13px}
table{border-collapse:collapse;width:100%;margin-top:12px;font-variant-numeric:tabular-nums}
th,td{padding:7px 12px 7px 0;border-bottom:1px solid var(--line);text-align:left;font-weight:400}
thead th{color:var(--soft);font-size:13px}
tfoot th,tfoot td{font-weight:650;border-bottom:0}
.scores{max-width:720px}.scores td:last-child{text-align:right;padding-right:0}
.bar{width:65%}.bar div{height:10px;border-radius:5px;background:var(--accent)}
.stages td{color:var(--text)}
svg{width:100%;max-width:720px;margin-top:12px}
svg polyline{fill:none;stroke:var(--accent);stroke-width:2;stroke-linejoin:round}
svg .axis{fill:none;stroke:var(--line)}svg text{fill:var(--soft);font-size:12px}
@media(max-width:640px){header{display:block}.score{text-align:left;margin-top:16px}}
"""
