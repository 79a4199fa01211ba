import cv2
import numpy as np
import pytest

from pipeline.contact_sheet import (
    CELL_HEIGHT_PX,
    CELL_WIDTH_PX,
    GAP_PX,
    MAX_PHOTOS,
    NAME_HEIGHT_PX,
    EvenChoice,
    Photo,
    contact_sheet,
)
from pipeline.dataset import Dataset


@pytest.mark.parametrize("count", [1, 47, 48, 97, 1000, 12345])
def test_photos_are_chosen_evenly_and_never_more_than_a_sheet_holds(count):
    choice = EvenChoice()
    for start in range(0, count, 64):
        choice.add(Photo("", "", "", number) for number in range(start, min(start + 64, count)))
        assert len(choice.kept) <= 2 * MAX_PHOTOS
    numbers = [photo.number for photo in choice.chosen()]
    assert len(numbers) == min(count, MAX_PHOTOS)
    gaps = np.diff([-1, *numbers, count])
    assert gaps.min() >= 1
    assert gaps.max() <= 4 * count / len(numbers)


def test_each_photo_has_a_cell_with_its_mask_and_a_broken_one_an_empty_cell(segment_stages, tmp_path):
    names = ("a.jpg", "b.jpg", "tall.jpg", "ä/日本 and a name that is much too long for its cell.jpg")
    for name in names:
        path = tmp_path / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (300, 60) if name == "tall.jpg" else (60, 80)
        path.write_bytes(cv2.imencode(".jpg", np.full((*size, 3), 150, np.uint8))[1].tobytes())
    (tmp_path / "videos" / "broken.jpg").write_bytes(b"broken")
    config = segment_stages.config()
    (planned,) = segment_stages.plan(config)
    segment_stages.run(config)
    dataset = Dataset(url=config.output)
    photos = [
        Photo(name, url, planned["unit"], number)
        for number, (name, url) in enumerate(zip(planned["names"], planned["urls"], strict=True))
    ]
    encoded = contact_sheet(photos, dataset, config.decode)
    assert encoded == contact_sheet(photos, dataset, config.decode)
    sheet = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    step_y, step_x = CELL_HEIGHT_PX + NAME_HEIGHT_PX + GAP_PX, CELL_WIDTH_PX + GAP_PX
    assert sheet.shape == (2 * step_y + GAP_PX, 3 * step_x + GAP_PX, 3)
    cells = {}
    for place, photo in enumerate(photos):
        top, left = GAP_PX + place // 3 * step_y, GAP_PX + place % 3 * step_x
        cells[photo.name] = sheet[top : top + CELL_HEIGHT_PX, left : left + CELL_WIDTH_PX].astype(int)
        below = sheet[top + CELL_HEIGHT_PX : top + step_y - GAP_PX, left : left + CELL_WIDTH_PX]
        assert below.min() < 100, "a name is written beneath"
    assert np.abs(cells["broken.jpg"] - 224).max() < 8
    assert cells["tall.jpg"][:, :90].min() > 240, "a tall photo keeps its shape"
    masks = segment_stages.masks(config)
    share = masks["a.jpg", None].area_fraction
    red, green = cells["a.jpg"][10:-10, 20:-20, 2], cells["a.jpg"][10:-10, 20:-20, 1]
    assert np.mean(red - green > 20) == pytest.approx(share, abs=0.1)
