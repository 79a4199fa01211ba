import zipfile

import cv2
import numpy as np
import pytest

from pipeline.config import DecodeLimits, SegmentConfig
from pipeline.dataset import Dataset
from pipeline.errors import GwmError
from pipeline.layouts import AnnotatedSequence
from pipeline.masks import MaskRow, encode_mask, mask_table
from pipeline.predictions import find_predictions, read_predictions, sequence_name

LIMITS = DecodeLimits()


def sequence(name="dog", frames=3, is_video=True):
    names = tuple(f"{number:05d}" for number in range(frames))
    return AnnotatedSequence(
        name=name, is_video=is_video, frame_names=names, frame_urls=names, annotation_urls={}
    )


def mask(number, shape=(6, 8)):
    return np.arange(shape[0] * shape[1]).reshape(shape) % (number + 2) == 0


def png(number, foreground=255):
    return cv2.imencode(".png", mask(number).astype(np.uint8) * foreground)[1].tobytes()


def write_folder(root, foreground=255):
    for number in range(3):
        path = root / "dog" / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number, foreground))
    return str(root)


def write_zip(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return str(path)


def write_shards(root, rows):
    config = SegmentConfig(images="in", model="model", output=str(root))
    dataset = Dataset.open(str(root), kind="masks", config=config, schema_version=1)
    for number, part in enumerate(rows):
        dataset.write_shard(f"unit{number}", mask_table(part, source=part[0].source, segments=False))
    return str(root)


def frame(source, number, **values):
    rle = encode_mask(mask(number or 0))
    content = {"height_px": 6, "width_px": 8, "mask_rle": rle} | values
    return MaskRow(source=source, frame_index=number, **content)


def read(url, wanted, positions):
    predictions = find_predictions(url, LIMITS)
    places = [predictions.find(wanted, position) for position in positions]
    return list(read_predictions(url, predictions.kind, places, LIMITS))


@pytest.mark.parametrize("foreground", [255, 1])
def test_a_folder_of_pngs(tmp_path, foreground):
    url = write_folder(tmp_path / "p", foreground)
    found = read(url, sequence(), [2, 0])
    assert (found[0] == mask(2)).all()
    assert (found[1] == mask(0)).all()


@pytest.mark.parametrize("prefix", ["", "results/480p/", "./"])
def test_a_zip_of_pngs_below_any_folder(tmp_path, prefix):
    members = {f"{prefix}dog/{number:05d}.png": png(number) for number in range(3)}
    url = write_zip(tmp_path / "p.zip", members | {"README.txt": b"x", f"{prefix}cat/00000.png": png(5)})
    assert all((found == mask(n)).all() for n, found in enumerate(read(url, sequence(), [0, 1, 2])))


def test_names_in_a_zip_never_become_paths(tmp_path):
    outside = tmp_path / "00000.png"
    url = write_zip(
        tmp_path / "p.zip",
        {"../dog/00000.png": png(0), "/dog/00001.png": png(1), "..\\dog\\00002.png": png(2)},
    )
    before = sorted(path.name for path in tmp_path.rglob("*"))
    assert all((found == mask(n)).all() for n, found in enumerate(read(url, sequence(), [0, 1, 2])))
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    assert not outside.exists()


def test_a_member_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.predictions.MAX_PNG_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "p.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("dog/00000.png", bytes(10**6))
    with pytest.raises(GwmError, match=r"00000.png is no mask: it unpacks to 1000000 bytes"):
        read(str(tmp_path / "p.zip"), sequence(), [0])


def test_mask_shards_by_frame_whatever_the_source_is_called(tmp_path):
    rows = [[frame("JPEGImages/480p/dog", 0), frame("JPEGImages/480p/dog", 1)], [frame("other/cat.mp4", 2)]]
    url = write_shards(tmp_path / "masks", rows)
    assert all((found == mask(n)).all() for n, found in enumerate(read(url, sequence(), [0, 1])))
    assert (read(url, sequence("cat"), [2])[0] == mask(2)).all()


def test_mask_shards_of_single_images_by_name(tmp_path):
    rows = [[frame("dog/00001.jpg", None), frame("dog/00000.jpg", None, mask_rle=encode_mask(mask(4)))]]
    url = write_shards(tmp_path / "masks", rows)
    group = sequence("images", 2, is_video=False)
    assert (read(url, group, [0])[0] == mask(4)).all()
    assert (read(url, sequence(), [0, 1])[1] == mask(0)).all()


def test_a_missing_mask_is_named(tmp_path):
    url = write_folder(tmp_path / "p")
    with pytest.raises(GwmError, match="holds no mask of dog/00003"):
        find_predictions(url, LIMITS).find(sequence(frames=4), 3)
    with pytest.raises(GwmError, match="holds no mask of cat/00000"):
        find_predictions(url, LIMITS).find(sequence("cat"), 0)


def test_two_masks_of_one_frame_are_refused(tmp_path):
    url = write_shards(tmp_path / "masks", [[frame("a/dog", 0)], [frame("b/dog.mp4", 0)]])
    with pytest.raises(GwmError, match=r"two masks of dog/00000: a/dog and b/dog.mp4"):
        find_predictions(url, LIMITS).find(sequence(), 0)


def test_an_image_that_could_not_be_segmented_is_named(tmp_path):
    broken = MaskRow(source="dog", frame_index=1, error="not an image")
    url = write_shards(tmp_path / "masks", [[frame("dog", 0), broken]])
    with pytest.raises(GwmError, match="dog, frame 1, has no mask: not an image"):
        read(url, sequence(), [0, 1])


def test_things_that_hold_no_masks_are_one_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(GwmError, match="holds no masks"):
        find_predictions(str(tmp_path / "empty"), LIMITS)
    (tmp_path / "text.zip").write_text("text")
    with pytest.raises(GwmError, match="is not a zip file"):
        find_predictions(str(tmp_path / "text.zip"), LIMITS)
    folder = write_folder(tmp_path / "p")
    (tmp_path / "p" / "dog" / "00000.png").write_bytes(b"text")
    with pytest.raises(GwmError, match=r"00000.png is not an image"):
        read(folder, sequence(), [0])


def test_a_damaged_member_is_one_sentence(tmp_path):
    url = write_zip(tmp_path / "p.zip", {"dog/00000.png": png(0)})
    data = bytearray((tmp_path / "p.zip").read_bytes())
    data[60] ^= 0xFF
    (tmp_path / "p.zip").write_bytes(data)
    with pytest.raises(GwmError, match="cannot be unpacked"):
        read(url, sequence(), [0])


@pytest.mark.parametrize(
    ("source", "name"), [("a/dog.mp4", "dog"), ("a/dog", "dog"), ("a.b/v1.2", "v1.2"), ("dog.AVI", "dog")]
)
def test_the_sequence_that_a_source_means(source, name):
    assert sequence_name(source) == name
