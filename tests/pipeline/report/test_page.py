"""What is in the file: read as any HTML reader would, with the samples that a script would put into the page."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.pictures import encode_webp
from pipeline.report.curves import j_curve, loss_curve
from pipeline.report.page import (
    SAMPLES_ON_A_PAGE,
    CommandTime,
    Report,
    Sample,
    Scores,
    SequenceScores,
    Undone,
    command_time,
    is_drawn,
    render,
    write_report,
)

VOID = {"meta", "img", "input"}


class Page(HTMLParser):
    """Fails on a tag that is closed out of order; collects text, attributes, and what scripts hold."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.path: list[str] = []
        self.text = ""
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.feed(text)
        self.close()
        assert self.path == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        if tag not in VOID:
            self.path.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.path.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.path and self.path[-1] == "script":
            attrs, before = self.scripts[-1]
            self.scripts[-1] = (attrs, before + data)
        else:
            self.text += data

    def found(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]

    def kept_back(self) -> list["Page"]:
        """The figures that lie in the file as text, a page of them each."""
        return [Page(text) for attrs, text in self.scripts if attrs.get("type") == "text/html"]


def webp(value: int) -> bytes:
    return encode_webp(np.full((12, 20, 3), value, np.uint8))


def sample(name: str, score: float | None = None, **values: object) -> Sample:
    pictures = {"image": webp(40), "flow": None, "mask": webp(200)}
    return Sample(**{"name": name, "score": score, "pictures": pictures, **values})


@pytest.fixture
def report() -> Report:
    return Report(
        title="A <b>title</b>",
        lead="What & why",
        facts={"videos": '<script>alert("x")</script>'},
        headline=("70.7", "mean J"),
        samples=[
            sample("scene-1", 0.913, frame_index=7),
            sample("scene-2", 0.5),
            sample("bad.jpg", note="bad.jpg is not an image"),
        ],
        ranked_by="J",
        scores=Scores(
            figures={"label_free": {"J mean": 0.707, "J recall": 0.9}, "paper": {"J mean": 0.75}},
            sequences=[
                SequenceScores(
                    name="scene <1>",
                    num_frames=3,
                    means={"label_free": 0.5, "paper": 0.625},
                    lowest="frame 00002: 12.5",
                    curve=j_curve(
                        "J of scene <1>", {"label_free": np.array([1, 0.5, 0.125]), "paper": np.ones(3)}
                    ),
                )
            ],
        ),
        losses=loss_curve([(10, 0.5), (20, float("nan")), (30, 0.25)]),
        undone=[Undone(source="broken.mp4", stage="plan_chunks", reason="it has no frame")],
        num_undone=3,
        times=[
            CommandTime(
                command="gwm segment",
                units="chunks: 8 done",
                seconds=12.34,
                rates="1.5 images a second",
                num_bytes=2_500_000,
                stages={"load_chunk": 5.0, "segment_images": 20.0},
            )
        ],
        links=["contact_sheet.jpg", "overlays/a b&c#1.mp4"],
        state="abc",
    )


def test_the_page_is_well_formed_and_says_everything(report: Report) -> None:
    page = Page(render(report))
    for words in (
        *(
            "A <b>title</b>",
            "What & why",
            '<script>alert("x")</script>',
            "70.7",
            "mean J",
            "scene-1, frame 7",
        ),
        *("J 91.3", "bad.jpg is not an image", "scene <1>", "62.5", "frame 00002: 12.5", "J recall", "90.0"),
        *("broken.mp4", "plan_chunks", "it has no frame", "3 in all, of which 1 are listed"),
        *("8 done", "12.3 s", "1.5 images a second", "2.5 MB", "20.0 s", "step 30", "contact_sheet.jpg"),
    ):
        assert words in page.text, words


def test_the_lowest_scores_come_first_and_what_has_none_before_them(report: Report) -> None:
    page = Page(render(report))
    (index,) = [json.loads(text) for attrs, text in page.scripts if attrs.get("id") == "index"]
    assert index == [["bad.jpg", None], ["scene-2", 0.5], ["scene-1, frame 7", 0.913]]
    shown = [attrs["alt"] for attrs in page.found("img") if (attrs["alt"] or "").endswith(": mask")]
    assert shown == ["bad.jpg: mask", "scene-2: mask", "scene-1, frame 7: mask"]


HOSTILE = """</h1></script><script>alert('x')</script><img src=x onerror="y">&amp;<!--"""


def filled(text: str) -> Report:
    """A report with this text in every field."""
    curve = j_curve(text, {text: np.ones(2)})
    many = [sample(f"{text}{n}", note=text, pictures={text: webp(1), f"{text}2": None}) for n in range(30)]
    sequence = SequenceScores(name=text, num_frames=1, means={text: 0.5}, lowest=text, curve=curve)
    return Report(
        title=text,
        lead=text,
        facts={text: text},
        headline=(text, text),
        samples=many,
        ranked_by=text,
        scores=Scores(figures={text: {text: 0.5}}, sequences=[sequence]),
        losses=loss_curve([(1, 2.0), (2, 1.0)]),
        undone=[Undone(source=text, stage=text, reason=text)],
        num_undone=1,
        times=[CommandTime(command=text, units=text, seconds=1.0, rates=text, stages={text: 1.0})],
        links=[text, f"javascript:{text}"],
    )


def test_no_field_can_write_html() -> None:
    plain, page = Page(render(filled("plain"))), Page(render(filled(HOSTILE)))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    assert len(page.found("img")) == SAMPLES_ON_A_PAGE
    assert {attrs.get("type") for attrs, _ in page.scripts} == {None, "application/json", "text/html"}
    assert len(page.scripts) == 3
    for part in (page, *page.kept_back()):
        assert not [name for _, attrs in part.tags for name in attrs if name.startswith("on")]
        assert HOSTILE in part.text
    (rest,) = page.kept_back()
    assert len(rest.found("figure")) == 30 - SAMPLES_ON_A_PAGE
    assert {tag for tag, _ in rest.tags} == {"figure", "div", "img", "span", "figcaption", "button"}
    assert all((attrs["alt"] or "").endswith(f": {HOSTILE}") for attrs in rest.found("img"))
    assert str(page.found("a")[-1]["href"]).startswith("javascript%3A")


def test_only_the_pages_own_script_may_run_and_nothing_is_loaded(report: Report) -> None:
    text = render(report)
    page = Page(text)
    (policy,) = [attrs["content"] for attrs in page.found("meta") if "http-equiv" in attrs]
    (script,) = [body for attrs, body in page.scripts if not attrs]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert (
        policy
        == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    )
    assert all((attrs["src"] or "").startswith("data:image/webp;base64,") for attrs in page.found("img"))
    assert not re.search(r"https?://|url\(|@import", text)
    assert [attrs["href"] for attrs in page.found("a")] == [
        "#samples",
        "contact_sheet.jpg",
        "overlays/a%20b%26c%231.mp4",
    ]


def test_pictures_are_inside(report: Report) -> None:
    (attrs, *_) = [a for a in Page(render(report)).found("img") if a["alt"] == "scene-2: mask"]
    data = (attrs["src"] or "").removeprefix("data:image/webp;base64,")
    image = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
    assert image.shape == (12, 20, 3)
    assert abs(int(image.mean()) - 200) < 3


def test_a_reader_who_does_not_see_is_told_everything(report: Report) -> None:
    page = Page(render(report))
    assert page.found("html")[0]["lang"] == "en"
    assert all(attrs["alt"] for attrs in page.found("img"))
    said = {attrs.get("aria-label") for _, attrs in page.tags if attrs.get("role") == "img"}
    assert {
        "scene-2: no flow",
        "J of scene <1>",
        "training loss from step 10 to step 30: 0.5 to 0.25",
    } <= said
    labelled = {attrs["for"] for attrs in page.found("label")}
    controls = [attrs for tag in ("input", "select") for attrs in page.found(tag)]
    assert {attrs["id"] for attrs in controls} == labelled
    sliders = [attrs for attrs in controls if attrs.get("type") == "range"]
    assert {(a["min"], a["max"], a["step"], a["aria-valuetext"]) for a in sliders} == {
        ("0", "2", "1", "image")
    }
    assert [attrs.get("aria-labelledby") for attrs in page.found("section")] == [
        *("samples-title", "scores-title", "loss-title", "undone-title", "times-title")
    ]
    assert not [attrs for _, attrs in page.tags if int(attrs.get("tabindex") or 0) > 0]


def test_of_many_samples_most_are_text() -> None:
    pictures = {"image": webp(1), "mask": webp(2)}
    samples = [Sample(name=f"{n:05d}.jpg", score=n / 2400, pictures=pictures) for n in range(2400)]
    page = Page(render(Report(title="t", lead="", samples=samples, ranked_by="J")))
    assert len(page.found("figure")) == SAMPLES_ON_A_PAGE
    assert len(page.tags) < 1000
    rest = [attrs["data-number"] for part in page.kept_back() for attrs in part.found("figure")]
    assert rest == [str(number) for number in range(SAMPLES_ON_A_PAGE, 2400)]
    lines = [text.strip().split("\n") for attrs, text in page.scripts if attrs.get("type") == "text/html"]
    assert {len(figures) for figures in lines[:-1]} == {SAMPLES_ON_A_PAGE}


def test_a_name_with_a_line_break_stays_on_its_line() -> None:
    samples = [sample(f"a\nb{n:02d}", 0.5) for n in range(SAMPLES_ON_A_PAGE + 2)]
    page = Page(render(Report(title="t", lead="", samples=samples)))
    (text,) = [text for attrs, text in page.scripts if attrs.get("type") == "text/html"]
    assert [r"a\nb" in line for line in text.strip().split("\n")] == [True, True]


def test_without_samples_scores_and_failures_their_sections_are_missing(report: Report) -> None:
    page = Page(render(Report(title="t", lead="", times=report.times)))
    assert [attrs["aria-labelledby"] for attrs in page.found("section")] == ["times-title"]
    assert page.found("figure") == []


def test_a_commands_time_is_read_from_its_summary() -> None:
    summary = {
        "command": "segment",
        "units": {"done": 1200, "skipped": 0, "quarantined": 1},
        "bytes": 5000,
        "seconds": {"load_chunk": 2.0, "total": 4.0},
        "rates": {"images_per_s": 2.5, "units_per_s": 1.0, "bytes_per_s": 7.0},
    }
    time = command_time(summary)
    assert (time.units, time.rates) == ("chunks: 1,200 done, 1 quarantined", "2.5 images a second")
    assert (time.seconds, time.num_bytes, time.stages) == (4.0, 5000, {"load_chunk": 2.0})
    assert summary["seconds"] == {"load_chunk": 2.0, "total": 4.0}


def test_the_file_is_written_and_known_again(report: Report, tmp_path: Path) -> None:
    url = str(tmp_path / "deep" / "report.html")
    assert not is_drawn(url, "abc")
    write_report(url, report)
    assert (tmp_path / "deep" / "report.html").read_text(encoding="utf-8") == render(report)
    assert is_drawn(url, "abc")
    assert not is_drawn(url, "abd")
