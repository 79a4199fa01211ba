import json

import numpy as np
import pytest
from PIL import Image

from pipeline.config import DecodeLimits
from pipeline.errors import GwmError
from pipeline.inputs import find_images, find_videos
from pipeline.layouts import read_layout
from pipeline.predictions import find_predictions, read_mask, read_predictions
from tests.pipeline.formats.conftest import decoded, exported

LIMITS = DecodeLimits()


def test_png_masks_are_found_again_as_predictions(make_masks, photos, videos, tmp_path):
    masks, rows = make_masks()
    assert exported("png", tmp_path / "png", masks=masks)["images"] == 22
    found = find_predictions(str(tmp_path / "png"), LIMITS)
    for (source, frame), row in rows.items():
        if row.error is None:
            key = ("", source.split("/")[-1].split(".")[0])
            if frame is not None:
                key = (source.split("/")[-1].split(".")[0], f"{frame:05d}")
            (mask,) = read_predictions(found.url, found.kind, found.places[key], LIMITS)
            assert np.array_equal(mask, decoded(row))


def test_a_davis_folder_is_read_back_as_its_layout(make_masks, videos, tmp_path):
    masks, rows = make_masks()
    exported("davis", tmp_path / "davis", masks=masks, images=str(videos))
    truth = read_layout("davis2016", str(tmp_path / "davis"))
    sequences = {sequence.name: sequence for sequence in truth.sequences}
    assert sequences.keys() == {"horse", "v"}
    assert sequences["horse"].frame_names == tuple(f"{5 * number:05d}" for number in range(9))
    for source, name in (("horse", "horse"), ("clips/v.mp4", "v")):
        annotated = sequences[name].annotation_urls
        assert len(annotated) == len(sequences[name].frame_urls) == sum(key[0] == source for key in rows)
        for frame, url in annotated.items():
            assert np.array_equal(read_mask(url, LIMITS), decoded(rows[source, frame]))
            assert set(np.unique(np.asarray(Image.open(url)))) <= {0, 255}
    inputs = find_images(str(tmp_path / "davis" / "JPEGImages" / "480p"))
    assert {source.name: source.kind for source in inputs} == {"horse": "frames", "v": "frames"}
    for path in (videos / "horse").iterdir():
        copied = tmp_path / "davis" / "JPEGImages" / "480p" / "horse" / path.name
        assert copied.read_bytes() == path.read_bytes()


def test_a_youtube_vos_folder_has_objects_by_number_and_a_list_of_their_frames(make_masks, videos, tmp_path):
    masks, rows = make_masks()
    exported("youtube_vos", tmp_path / "vos", masks=masks, images=str(videos))
    described = json.loads((tmp_path / "vos" / "meta.json").read_text())["videos"]
    seen = {
        "horse": [
            f"{5 * f:05d}" for (source, f), row in rows.items() if source == "horse" and row.area_fraction
        ],
        "v": [
            f"{f:05d}" for (source, f), row in rows.items() if source == "clips/v.mp4" and row.area_fraction
        ],
    }
    assert {name: video["objects"]["1"]["frames"] for name, video in described.items()} == {
        name: sorted(frames) for name, frames in seen.items() if frames
    }
    inputs = find_videos(str(tmp_path / "vos" / "JPEGImages"))
    assert {source.name: source.kind for source in inputs} == {"horse": "frames", "v": "frames"}
    for number in range(9):
        annotation = Image.open(tmp_path / "vos" / "Annotations" / "horse" / f"{5 * number:05d}.png")
        assert annotation.mode == "P"
        assert np.array_equal(np.asarray(annotation), decoded(rows["horse", number]).astype(np.uint8))
    assert len(list((tmp_path / "vos" / "JPEGImages" / "v").glob("*.jpg"))) == 10


def test_an_input_that_is_one_folder_of_frames_is_found(make_masks, videos, tmp_path):
    images = str(videos / "horse")
    masks, rows = make_masks(images=images)
    assert {source for source, _ in rows} == {"horse"}
    exported("davis", tmp_path / "davis", masks=masks, images=images)
    assert len(list((tmp_path / "davis" / "Annotations" / "480p" / "horse").iterdir())) == 9


def test_single_images_are_no_video(make_masks, photos, tmp_path):
    masks, _ = make_masks()
    with pytest.raises(GwmError, match=r"format=davis has videos only, and photos/a\.jpg is a single image"):
        exported("davis", tmp_path / "davis", masks=masks, images=str(photos))


def test_two_videos_of_one_name_are_refused(make_masks, make_frame_folder, tmp_path):
    make_frame_folder("a/dog")
    make_frame_folder("b/dog")
    masks, _ = make_masks()
    with pytest.raises(GwmError, match=r"[ab]/dog and [ab]/dog would lie in one folder, dog"):
        exported("davis", tmp_path / "davis", masks=masks, images=str(tmp_path / "videos"))


def test_images_that_are_not_those_of_the_masks_are_refused(make_masks, videos, tmp_path):
    masks, _ = make_masks()
    wrong = tmp_path / "wrong" / "horse"
    wrong.mkdir(parents=True)
    for number in range(9):
        Image.new("RGB", (20, 20)).save(wrong / f"{number}.jpg")
    with pytest.raises(GwmError, match=r"images=.*wrong"):
        exported("davis", tmp_path / "davis", masks=masks, images=str(tmp_path / "wrong"))
