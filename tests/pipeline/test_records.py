import cv2
import numpy as np
import pytest

from pipeline.records import (
    decode_flow,
    decode_image,
    encode_flow,
    encode_image,
    flow_column,
    flow_schema,
    has_flow_column,
)


def test_column_names():
    assert [flow_column(gap) for gap in (1, -1, 3, -12)] == ["flow_p1", "flow_m1", "flow_p3", "flow_m12"]
    assert has_flow_column(-1) == "has_flow_m1"


def test_flow_survives_within_half_a_step():
    flow_px = np.random.default_rng(0).uniform(-500, 500, (2, 20, 30)).astype(np.float32)
    stored = encode_flow(flow_px)
    assert stored.dtype == np.int16
    assert np.abs(decode_flow(stored) - flow_px).max() <= 0.5 / 64 + 1e-4
    assert decode_flow(stored).dtype == np.float32


def test_flow_rounds_to_the_nearest_step_and_saturates():
    flow_px = np.float32([0.0, 1 / 64, -1 / 64, 0.9 / 64, -0.9 / 64, 511.0, 600.0, -1e6, np.inf])
    assert encode_flow(flow_px).tolist() == [0, 1, -1, 1, -1, 32704, 32704, -32704, 32704]


def test_images_are_jpeg_with_full_colour():
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 255, (13, 17, 3)).astype(np.uint8)
    image = cv2.resize(coarse, (65, 49), interpolation=cv2.INTER_CUBIC)
    encoded = encode_image(image)
    assert encoded[:3] == b"\xff\xd8\xff"
    start = encoded.index(b"\xff\xc0")  # start of frame: sampling factors of the three components
    assert [encoded[start + 11 + 3 * component] for component in range(3)] == [0x11, 0x11, 0x11]
    assert np.abs(decode_image(encoded).astype(int) - image.astype(int)).mean() < 2
    assert encode_image(image) == encoded


def test_images_of_other_formats_are_read():
    image = np.random.default_rng(0).integers(0, 255, (8, 9, 3)).astype(np.uint8)
    png = bytes(cv2.imencode(".png", image[..., ::-1])[1])
    assert np.array_equal(decode_image(png), image)
    with pytest.raises(ValueError, match="not an image"):
        decode_image(b"nonsense")


def test_the_schema_says_how_to_read_the_flow():
    schema = flow_schema((1, -2), 24, 32, {"source": "a.mp4", "iterations": 12})
    assert schema.field("flow_m2").type.shape == [2, 24, 32]
    assert not any(schema.field(name).nullable for name in schema.names)
    assert schema.metadata[b"gaps"] == b"[1, -2]"
    assert schema.metadata[b"flow_scale"] == b"64"
    assert schema.metadata[b"source"] == b"a.mp4"
    assert schema.metadata[b"iterations"] == b"12"
