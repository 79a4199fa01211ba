from io import BytesIO

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.pictures import (
    REGION_COLOURS,
    colour_flow,
    colour_regions,
    encode_indexed_png,
    encode_jpeg,
    encode_png,
    mask_picture,
    overlay,
    overlay_objects,
    resize,
    side_by_side,
    stacked,
    voc_palette,
)


def uniform_flow(dx: float, dy: float) -> np.ndarray:
    return np.broadcast_to(np.array([dx, dy], np.float32)[:, None, None], (2, 4, 6))


def test_flow_colours_show_direction_and_length() -> None:
    right, left, slow = (colour_flow(uniform_flow(*v), max_px=4.0) for v in ((4, 0), (-4, 0), (1, 0)))
    assert tuple(right[0, 0]) == (255, 0, 0)
    assert tuple(left[0, 0]) == (0, 255, 255)
    assert slow[0, 0, 0] == 255
    assert slow[0, 0, 1] > 150


def test_no_flow_is_white_and_missing_flow_black() -> None:
    flow = np.zeros((2, 4, 6), np.float32)
    flow[:, 0, 0] = np.nan
    picture = colour_flow(flow)
    assert tuple(picture[0, 0]) == (0, 0, 0)
    assert (picture[1:] == 255).all()


def test_regions_take_their_colours_and_mix_them() -> None:
    probabilities = np.zeros((3, 2, 2), np.float32)
    probabilities[1, 0, 0] = 1
    probabilities[0, 1, 1] = probabilities[1, 1, 1] = 0.5
    picture = colour_regions(probabilities)
    assert np.array_equal(picture[0, 0], REGION_COLOURS[1])
    assert np.abs(picture[1, 1] - REGION_COLOURS[:2].mean(0)).max() <= 1


def test_more_regions_than_colours() -> None:
    assert colour_regions(np.full((12, 2, 2), 1 / 12)).shape == (2, 2, 3)


@pytest.mark.parametrize("dtype", [bool, np.float32])
def test_overlay_brightens_the_object_and_darkens_the_rest(dtype: type) -> None:
    image = np.full((20, 20, 3), 128, np.uint8)
    mask = np.zeros((20, 20), dtype)
    mask[5:15, 5:15] = 1
    picture = overlay(image, mask)
    assert picture[10, 10, 0] > 128 > picture[1, 1, 0]
    assert tuple(picture[5, 5]) == (255, 255, 255)
    assert (image == 128).all()


def test_an_overlay_is_tinted_as_far_as_the_mask_covers_a_pixel() -> None:
    image = np.full((9, 9, 3), 200, np.uint8)
    reds = [int(overlay(image, np.full((9, 9), share, np.float32))[4, 4, 0]) for share in (0.0, 0.25, 0.45)]
    assert reds == sorted(set(reds))
    assert 100 < reds[0] < 140


def test_objects_that_touch_are_kept_apart_by_an_outline() -> None:
    numbers = np.zeros((40, 40), np.uint8)
    numbers[10:30, 5:20], numbers[10:30, 20:35] = 1, 2
    picture = overlay_objects(np.full((40, 40, 3), 90, np.uint8), numbers)
    assert (picture[20, 19:21] == 255).all()
    assert np.argmax(picture[20, 12]) == 0
    assert np.argmax(picture[20, 28]) == 1


def test_mask_picture_is_grey() -> None:
    assert mask_picture(np.array([[0.0, 1.0]]))[0].tolist() == [[0, 0, 0], [255, 255, 255]]


def test_rows_and_columns_of_pictures() -> None:
    small, tall = np.zeros((10, 20, 3), np.uint8), np.zeros((20, 20, 3), np.uint8)
    row = side_by_side([small, tall], gap_px=2)
    assert row.shape == (10, 20 + 2 + 10, 3)
    assert (row[:, 20:22] == 255).all()
    assert stacked([small, small], gap_px=2).shape == (22, 20, 3)
    assert resize(tall, height_px=5).shape == (5, 5, 3)


def test_encoded_pictures_decode_to_the_same_colours() -> None:
    image = np.zeros((16, 16, 3), np.uint8)
    image[..., 0] = 200
    lossless = cv2.imdecode(np.frombuffer(encode_png(image), np.uint8), cv2.IMREAD_COLOR_RGB)
    assert np.array_equal(lossless, image)
    lossy = cv2.imdecode(np.frombuffer(encode_jpeg(image), np.uint8), cv2.IMREAD_COLOR_RGB)
    assert np.abs(lossy.astype(int) - image).max() < 10
    assert encode_png(image[..., 0])[:4] == b"\x89PNG"


def test_an_indexed_picture_keeps_its_numbers_and_shows_the_palette_of_voc() -> None:
    numbers = np.arange(256, dtype=np.uint8).reshape(16, 16)
    encoded = encode_indexed_png(numbers)
    picture = Image.open(BytesIO(encoded))
    assert picture.mode == "P"
    assert np.array_equal(np.asarray(picture), numbers)
    assert np.array_equal(np.asarray(picture.convert("RGB")), voc_palette()[numbers])
    colours = {
        0: (0, 0, 0),
        1: (128, 0, 0),
        2: (0, 128, 0),
        4: (0, 0, 128),
        8: (64, 0, 0),
        255: (224, 224, 192),
    }
    for number, colour in colours.items():
        assert tuple(voc_palette()[number]) == colour
    assert encode_indexed_png(numbers) == encoded
