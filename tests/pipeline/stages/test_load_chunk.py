import cv2
import numpy as np
import pytest

from pipeline.images import read_image
from pipeline.model_card import ModelCard
from pipeline.stages.load_chunk import load_chunk

CARD = ModelCard(sha256="0", height_px=32, width_px=48, num_masks=3)


def write_jpeg_with_orientation(path, image, orientation):
    """A JPEG whose EXIF says how to turn it: a minimal APP1 segment after the start mark."""
    data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    tiff = b"MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01" + bytes([0, orientation, 0, 0])
    exif = b"Exif\x00\x00" + tiff + b"\x00\x00\x00\x00"
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    path.write_bytes(data[:2] + segment + data[2:])


def loaded_rows(stages, config):
    return [load_chunk(row, config, CARD) for row in stages.plan(config)]


def test_images_of_several_sizes_are_brought_to_the_input_size(segment_stages, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for name, shape in (("a", (64, 96)), ("b", (33, 21)), ("c", (8, 9))):
        cv2.imwrite(str(folder / f"{name}.png"), np.full((*shape, 3), (10, 20, 30), np.uint8))
    (row,) = loaded_rows(segment_stages, segment_stages.config())
    assert row["images"].shape == (3, 3, 32, 48)
    assert row["images"].dtype == np.uint8
    assert (row["heights_px"], row["widths_px"]) == ([64, 33, 8], [96, 21, 9])
    assert (row["images"][:, :, 5, 5] == [30, 20, 10]).all()  # RGB
    assert row["errors"] == ["", "", ""]


def test_shrinking_is_an_area_average(segment_stages, tmp_path):
    picture = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    (tmp_path / "videos").mkdir()
    cv2.imwrite(str(tmp_path / "videos" / "a.png"), picture)
    (row,) = loaded_rows(segment_stages, segment_stages.config())
    blocks = picture[..., ::-1].reshape(32, 2, 48, 2, 3).mean((1, 3))
    assert np.abs(row["images"][0].transpose(1, 2, 0) - blocks).max() <= 0.75


def test_a_bad_image_is_one_error_and_the_others_are_loaded(segment_stages, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in "abd":
        cv2.imwrite(str(folder / f"{name}.png"), np.zeros((10, 10, 3), np.uint8))
    (folder / "c.png").write_bytes(b"not an image")
    (folder / "e.png").write_bytes(b"")
    cut = cv2.imencode(".png", np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8))[1]
    (folder / "f.png").write_bytes(cut.tobytes()[:20])
    (row,) = loaded_rows(segment_stages, segment_stages.config())
    assert [bool(error) for error in row["errors"]] == [False, False, True, False, True, True]
    assert "c.png is not an image" in row["errors"][2]
    assert len(row["images"]) == 3


def test_an_image_that_vanished_is_an_error_of_its_own(segment_stages, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in "ab":
        cv2.imwrite(str(folder / f"{name}.png"), np.zeros((10, 10, 3), np.uint8))
    config = segment_stages.config()
    (planned,) = segment_stages.plan(config)
    (folder / "a.png").unlink()
    row = load_chunk(planned, config, CARD)
    assert "there is no" in row["errors"][0]
    assert row["errors"][1] == ""


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_convention_masks_have_the_displayed_size_after_exif_rotation(tmp_path, orientation):
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[:20, :30] = 255
    write_jpeg_with_orientation(tmp_path / "a.jpg", picture, orientation)
    turns = {1: 0, 3: 2, 6: -1, 8: 1}[orientation]
    shown = np.rot90(picture, turns)
    image = read_image(str(tmp_path / "a.jpg"))
    assert image.shape == shown.shape
    assert np.abs(image.astype(int) - shown).mean() < 5


def test_a_videos_chunks_hold_its_frames_and_the_same_anchors(segment_stages, make_video):
    make_video("v.mp4", num_frames=20, height_px=32, width_px=48)
    rows = loaded_rows(segment_stages, segment_stages.config(anchor_frames=5))
    frames = np.concatenate([row["images"] for row in rows])
    assert frames.shape == (20, 3, 32, 48)
    for row in rows:
        assert (row["anchors"] == frames[[2, 6, 10, 14, 18]]).all()
        assert set(row["heights_px"]) == {32}
        assert set(row["widths_px"]) == {48}


def test_a_broken_frame_of_a_folder_is_one_error_and_no_anchor(segment_stages, make_frame_folder):
    folder = make_frame_folder("v", num_frames=27)
    (folder / "00005.png").write_bytes(b"broken")
    rows = loaded_rows(segment_stages, segment_stages.config(anchor_frames=27))
    errors = [error for row in rows for error in row["errors"]]
    assert [bool(error) for error in errors] == [number == 5 for number in range(27)]
    assert all(len(row["anchors"]) == 26 for row in rows)


def test_pictures_for_the_overlays_are_kept_by_option_and_not_too_large(segment_stages, tmp_path):
    (tmp_path / "videos").mkdir()
    cv2.imwrite(str(tmp_path / "videos" / "a.jpg"), np.zeros((500, 2000, 3), np.uint8))
    (row,) = loaded_rows(segment_stages, segment_stages.config(write_png=True))
    (picture,) = row["pictures"]
    assert cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR).shape == (214, 854, 3)
    (row,) = loaded_rows(segment_stages, segment_stages.config())
    assert row["pictures"] == []


def test_rows_that_failed_or_are_settled_pass_unchanged(segment_stages):
    row = {"unit": "u", "source": "s", "status": "failed", "failure": "{}"}
    assert load_chunk(row, segment_stages.config(), CARD) is row
