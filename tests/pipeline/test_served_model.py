import base64
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from gwm_model.config import RefineConfig
from pipeline.config import SegmentConfig
from pipeline.load_config import flatten, load_config
from pipeline.masks import MaskRow, decode_mask
from pipeline.scenes import render_scene
from pipeline.served_model import REQUIREMENTS, _load_pyfunc, served_values

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Where `segment_stages` finds images: of several kinds and sizes, and one that is none."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for number, kind in enumerate(("jpg", "png", "webp")):
        frame = render_scene(number, num_frames=1, height_px=60 + 7 * number, width_px=90).frames[0]
        cv2.imwrite(str(folder / f"{kind}.{kind}"), frame[..., ::-1])
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    return folder


def written(segment_stages: Any, **values: Any) -> list[MaskRow]:
    """What gwm segment writes, by name."""
    config = segment_stages.config(**values)
    segment_stages.run(config)
    return [row for _, row in sorted(segment_stages.masks(config).items())]


def assert_same(answers: list[dict[str, Any]], rows: list[MaskRow]) -> None:
    for found, row in zip(answers, rows, strict=True):
        assert (found["error"] is None) == (row.error is None)
        for column in ("height_px", "width_px", "area_fraction", "foreground_score"):
            assert found[column] == getattr(row, column)
        if row.mask_rle is not None:
            assert found["mask_rle"] == row.mask_rle.decode()
            encoded = np.frombuffer(base64.b64decode(found["mask_png"]), np.uint8)
            mask = decode_mask(row.mask_rle, row.height_px or 0, row.width_px or 0)
            assert np.array_equal(cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED), mask * np.uint8(255))


def test_a_served_model_answers_what_segment_writes(segment_stages: Any, images: Path) -> None:
    files = sorted(images.iterdir())
    expected = written(segment_stages, refine=RefineConfig(method="guided_filter"))
    answers = _load_pyfunc(segment_stages.model).predict({"image": [file.read_bytes() for file in files]})
    assert len(answers) == 4
    assert_same(answers, expected)
    assert answers[0]["error"] == "image 0 is not an image that can be read"
    assert any(row.area_fraction for row in expected)


@pytest.mark.parametrize("method", ["none", "crf"])
def test_values_may_be_changed_where_the_model_is_loaded(
    method: str, segment_stages: Any, images: Path
) -> None:
    if method == "crf":
        pytest.importorskip("pydensecrf")
    expected = written(segment_stages, refine=RefineConfig(method=method))
    model = _load_pyfunc(segment_stages.model, served_values() | {"refine.method": method})
    assert_same(model.predict({"image": [file.read_bytes() for file in sorted(images.iterdir())]}), expected)


def test_a_request_without_images_has_no_answers(tiny_model: str) -> None:
    assert _load_pyfunc(tiny_model).predict({"image": []}) == []


def test_the_values_are_those_of_the_configuration_file() -> None:
    words = ["images=-", "model=-", "output=-"]
    file = load_config(SegmentConfig, str(PROJECT / "conf" / "segment.yaml"), words)
    assert served_values().items() <= flatten(file).items()
    assert {key.split(".")[0] for key in served_values()} == {"merge", "refine", "input_scales", "decode"}


def needed(names: tuple[str, ...]) -> set[str]:
    """The distributions that these need, directly or not, without extras, in lower case."""
    from packaging.requirements import Requirement

    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in found:
            continue
        found.add(name)
        for text in metadata.requires(name) or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return found


ONLY_WITH = """
import sys

class Finder:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        known = name.partition(".")[0] not in {blocked}
        return self.finder.find_spec(name, path, target) if known else None

sys.meta_path[:] = map(Finder, sys.meta_path)
from pathlib import Path
from pipeline.served_model import _load_pyfunc
(answer,) = _load_pyfunc({model!r}).predict({{"image": [Path({image!r}).read_bytes()]}})
assert answer["mask_rle"]
"""


def test_the_requirements_are_all_that_a_served_model_needs(tiny_model: str, images: Path) -> None:
    """In a process that has them, what they need, and the two packages, and nothing else that is installed."""
    allowed = needed(REQUIREMENTS) | {"gwm"}
    owners = metadata.packages_distributions()
    blocked = {
        package
        for package, names in owners.items()
        if not any(name.lower().replace("_", "-") in allowed for name in names)
    }
    assert {"ray", "mlflow", "s3fs", "pandas", "rich", "typer"} <= blocked
    code = ONLY_WITH.format(blocked=blocked, model=tiny_model, image=str(images / "png.png"))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
