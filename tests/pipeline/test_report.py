import base64
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from pipeline.report import Report, Sample, StageTime, render, write_report

VOID = {"meta", "img"}


class Balance(HTMLParser):
    """Fails on a tag that is closed out of order; collects the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.images: list[dict[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in {"path", "polyline"}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def picture(value: int) -> np.ndarray:
    return np.full((12, 20, 3), value, np.uint8)


@pytest.fixture
def report() -> Report:
    pictures = {"frame": picture(40), "optical flow": None, "mask over frame": picture(200)}
    return Report(
        title="A <b>title</b>",
        lead="What & why",
        facts={"videos": '<script>alert("x")</script>'},
        scores={"scene-0": 0.913, "scene <1>": 0.5},
        j_mean=0.7065,
        samples=[Sample(sequence='a" onerror="x', frame_index=7, j=0.913, pictures=pictures)],
        losses=[(10, 0.5), (20, float("nan")), (30, 0.25)],
        stages=[StageTime(command="gwm prepare", units="8 done", seconds=12.34, rate="1.5 rows/s")],
    )


def parsed(page: str) -> Balance:
    parser = Balance()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


def test_page_is_well_formed_and_says_everything(report: Report) -> None:
    page = parsed(render(report))
    for words in ("70.7", "91.3", "scene <1>", "frame 7", "8 done", "12.3 s", "1.5 rows/s", "step 30"):
        assert words in page.text


def test_text_is_escaped(report: Report) -> None:
    page = render(report)
    assert "<script>" not in page
    assert "<b>title" not in page
    assert parsed(page).images[0]["alt"] == 'a" onerror="x, frame 7: frame'


HOSTILE = """</h1><script>alert('x')</script><img src=x onerror="y">&amp;"""


def test_no_field_can_write_html() -> None:
    page = render(
        Report(
            title=HOSTILE,
            lead=HOSTILE,
            facts={HOSTILE: HOSTILE},
            scores={HOSTILE: 0.5},
            j_mean=0.5,
            samples=[Sample(sequence=HOSTILE, frame_index=0, j=None, pictures={HOSTILE: picture(1)})],
            losses=[],
            stages=[StageTime(command=HOSTILE, units=HOSTILE, seconds=1.0, rate=HOSTILE)],
        )
    )
    assert "<script" not in page
    shown = parsed(page)
    assert len(shown.images) == 1
    assert shown.images[0]["alt"] == f"{HOSTILE}, frame 0: {HOSTILE}"
    assert shown.text.count(HOSTILE) == 11


def test_pictures_are_inside(report: Report) -> None:
    page = parsed(render(report))
    assert len(page.images) == 2
    data = (page.images[1]["src"] or "").removeprefix("data:image/jpeg;base64,")
    image = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
    assert image.shape == (12, 20, 3)
    assert abs(int(image.mean()) - 200) < 3


def test_page_needs_nothing_from_elsewhere(report: Report) -> None:
    page = render(report)
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "url(" not in page
    assert "@import" not in page


def test_loss_curve_leaves_out_what_is_not_a_number(report: Report) -> None:
    points = re.search(r'polyline points="([^"]*)"', render(report))
    assert points is not None
    assert points.group(1).split() == ["56.0,20.0", "624.0,168.0"]


def test_without_truth_there_is_no_score(report: Report) -> None:
    plain = Report(
        title="t", lead="", facts={}, scores={}, j_mean=None, samples=[], losses=[], stages=report.stages
    )
    page = parsed(render(plain))
    assert "J by sequence" not in page.text
    assert "Loss" not in page.text


def test_file_is_written(report: Report, tmp_path) -> None:
    write_report(str(tmp_path / "deep" / "report.html"), report)
    assert (tmp_path / "deep" / "report.html").read_text(encoding="utf-8") == render(report)
