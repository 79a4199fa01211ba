"""The page as its reader has it: in a browser, by keyboard, and without JavaScript."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.pictures import encode_webp
from pipeline.report.curves import j_curve
from pipeline.report.page import CommandTime, Report, Sample, Scores, SequenceScores, write_report

pytestmark = pytest.mark.server


def load_browser() -> Any:
    spec = importlib.util.spec_from_file_location("browser", Path(__file__).with_name("browser.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["browser"] = module
    spec.loader.exec_module(module)
    return module


BROWSER = load_browser()
if BROWSER.CHROMIUM is None:
    pytest.skip("there is no Chromium here", allow_module_level=True)

NUM_SAMPLES = 60


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of 60 samples; the lower the score, the higher the number."""
    picture = encode_webp(np.zeros((20, 32, 3), np.uint8))
    pictures = {"image": picture, "flow": None, "mask": picture}
    samples = [
        Sample(name=f"clip-{n}.mp4", frame_index=n, score=1 - n / 100, pictures=pictures)
        for n in range(NUM_SAMPLES)
    ]
    curve = j_curve("J of clip-1", {"official": np.array([0.5, 1.0])})
    sequence = SequenceScores(
        name="clip-1", num_frames=2, means={"official": 0.75}, lowest="frame 0", curve=curve
    )
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(
        str(path),
        Report(
            title="Samples",
            lead="",
            samples=samples,
            ranked_by="J",
            scores=Scores(figures={"official": {"J mean": 0.75}}, sequences=[sequence]),
            times=[
                CommandTime(command="gwm segment", units="", seconds=1, rates="", stages={"load_chunk": 1.0})
            ],
        ),
    )
    return path


@pytest.fixture(scope="module")
def opened() -> Iterator[Any]:
    with BROWSER.browser("--window-size=1280,900") as page:
        yield page


@pytest.fixture
def page(opened: Any, report: Path) -> Any:
    opened.open(report)
    opened.run("localStorage.clear()")
    opened.open(report)
    return opened


SHOWN = "[...document.querySelectorAll('#grid .name')].map(name => name.textContent)"
VISIBLE = """[...document.querySelector('{} .layers').children]
    .filter(part => getComputedStyle(part).visibility === 'visible').map(part => part.alt ?? part.textContent)"""


def test_everything_is_reached_and_done_by_keyboard(page: Any) -> None:
    reached = []
    for _ in range(9):
        page.press("Tab")
        reached.append(page.focused())
    assert reached == [
        *("Skip to the samples", "theme", "layer", "order", "find", "previous", "next"),
        *("Enlarge clip-59.mp4, frame 59", "Enlarge clip-58.mp4, frame 58"),
    ]
    page.press("Enter")
    assert page.run("document.getElementById('large').open")
    assert page.run("document.getElementById('large-title').textContent") == "clip-58.mp4, frame 58"
    page.press("PageDown")
    assert page.run("document.getElementById('large-title').textContent") == "clip-57.mp4, frame 57"
    page.press("Escape")
    assert not page.run("document.getElementById('large').open")
    assert page.focused() == "Enlarge clip-57.mp4, frame 57"
    assert page.complaints() == []
    assert page.requests() == [page.run("location.href")]


def test_the_slider_shows_one_picture_of_each_sample_and_says_which(page: Any) -> None:
    page.run("document.getElementById('layer').focus()")
    slider = "[document.getElementById('layer').value, document.getElementById('layer').ariaValueText]"
    settled = "Promise.all(document.getAnimations().map(one => one.finished)).then(() => true)"
    assert page.run(slider) == ["2", "mask"]
    assert page.run(VISIBLE.format("#grid")) == ["clip-59.mp4, frame 59: mask"]
    page.press("ArrowLeft")
    assert page.run(settled)
    assert page.run(slider) == ["1", "flow"]
    assert page.run(VISIBLE.format("#grid")) == ["no flow"]
    page.press("Home")
    assert page.run(settled)
    assert page.run(slider) == ["0", "image"]
    assert page.run(VISIBLE.format("#grid")) == ["clip-59.mp4, frame 59: image"]
    page.run("document.querySelector('#grid .open').click()")
    assert page.run("document.getElementById('large-layer').ariaValueText") == "image"
    assert page.run(VISIBLE.format("#picture")) == ["clip-59.mp4, frame 59: image"]


def test_pages_orders_and_names_lead_to_every_sample(page: Any) -> None:
    turned = list(page.run(SHOWN))
    for _ in range(2):
        page.run("document.getElementById('next').click()")
        assert page.run("document.querySelectorAll('figure').length") <= 24
        turned += page.run(SHOWN)
    assert turned == [f"clip-{n}.mp4, frame {n}" for n in reversed(range(NUM_SAMPLES))]
    assert page.run("document.getElementById('next').ariaDisabled") == "true"
    for order, first in (("best", 0), ("name", 0), ("worst", 59)):
        page.run(f"document.getElementById('order').value = '{order}'")
        page.run("document.getElementById('order').dispatchEvent(new Event('change'))")
        assert page.run(SHOWN)[0] == f"clip-{first}.mp4, frame {first}"
    page.run("document.getElementById('find').value = 'CLIP-3.'")
    page.run("document.getElementById('find').dispatchEvent(new Event('input'))")
    assert page.run(SHOWN) == ["clip-3.mp4, frame 3"]
    assert page.run("document.getElementById('place').textContent") == "1 of 1 (1 sample)"


def test_light_and_dark_follow_the_system_until_one_is_chosen(page: Any, report: Path) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = "document.getElementById('theme').ariaPressed"

    def system(scheme: str) -> None:
        page.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    seen = {}
    for scheme in ("light", "dark"):
        system(scheme)
        seen[scheme] = page.run(ground)
        assert page.run(dark) == str(scheme == "dark").lower()
    assert seen["light"] != seen["dark"]
    page.run("document.getElementById('theme').click()")
    assert (page.run(ground), page.run(dark)) == (seen["light"], "false")
    page.open(report)
    assert (page.run(ground), page.run(dark)) == (seen["light"], "false")
    system("")


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_nothing_is_wider_than_the_window(page: Any, width: int) -> None:
    page.send(
        "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False
    )
    assert page.run("document.documentElement.scrollWidth") <= width
    page.run("document.querySelector('#grid .open').click()")
    assert (
        page.run(
            "document.getElementById('large').scrollWidth - document.getElementById('large').clientWidth"
        )
        <= 0
    )
    page.send("Emulation.clearDeviceMetricsOverride")


def test_without_javascript_the_first_samples_are_there(page: Any, report: Path) -> None:
    page.send("Emulation.setScriptExecutionDisabled", value=True)
    page.open(report)
    page.send("Emulation.setScriptExecutionDisabled", value=False)
    assert page.run("document.documentElement.className") == ""
    assert page.run("document.querySelectorAll('figure').length") == 24
    assert len(page.run(VISIBLE.format("figure"))) == 3
    assert page.run("document.querySelector('noscript').innerText") == (
        "The first 24 of 60 samples; with JavaScript the page shows all of them."
    )
    shown = page.run(
        "[...document.querySelectorAll('.needs-script')].filter(one => one.checkVisibility()).length"
    )
    assert shown == 0
    assert page.run("document.querySelector('figcaption').innerText").startswith("clip-59.mp4, frame 59")
