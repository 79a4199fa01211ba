from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline import storage
from pipeline.dataset import Dataset
from pipeline.file_names import safe_key
from pipeline.masks import decode_mask


def fill(folder, make_video):
    make_video("clips/v.mp4", num_frames=10)
    for name in ("photos/a.jpg", "photos/b.jpg", "photos/deep/c.png"):
        path = folder / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.random.default_rng(len(name)).integers(0, 255, (30, 40, 3), np.uint8))
    (folder / "videos" / "photos" / "bad.jpg").write_bytes(b"bad")
    (folder / "videos" / "text.mp4").write_text("no video")


def test_every_image_and_frame_is_a_row_and_failures_are_written_down(segment_stages, make_video, tmp_path):
    fill(tmp_path, make_video)
    config = segment_stages.config()
    rows = segment_stages.run(config)
    assert sorted(row["status"] for row in rows) == ["done", "done", "done", "quarantined"]
    masks = segment_stages.masks(config)
    assert {key for key in masks if key[1] is None} == {
        ("photos/a.jpg", None),
        ("photos/b.jpg", None),
        ("photos/bad.jpg", None),
        ("photos/deep/c.png", None),
    }
    assert {frame for source, frame in masks if source == "clips/v.mp4"} == set(range(10))
    assert masks["photos/bad.jpg", None].error is not None
    (record,) = Dataset(url=config.output).quarantined()
    assert record["source"] == "text.mp4"
    assert record["stage"] == "plan_chunks"
    assert "Traceback" in record["traceback"]
    assert sum(row["num_errors"] for row in rows) == 1
    assert sum(row["num_rows"] for row in rows) == 14


def test_a_second_run_writes_the_same_bytes(segment_stages, make_video, tmp_path):
    fill(tmp_path, make_video)
    one, two = segment_stages.config(), segment_stages.config(output=str(tmp_path / "again"))
    segment_stages.run(one)
    segment_stages.run(two)
    shards = [sorted(Dataset(url=config.output).shards()) for config in (one, two)]
    read = [[Path(url).read_bytes() for url in urls] for urls in shards]
    assert read[0] == read[1]


def test_pictures_lie_beside_the_shards_under_their_sources_names(segment_stages, make_video, tmp_path):
    fill(tmp_path, make_video)
    config = segment_stages.config(write_png=True)
    segment_stages.run(config)
    written = {str(path.relative_to(tmp_path / "masks")) for path in (tmp_path / "masks").rglob("*.*g")}
    keys = {"photos/a.jpg", "photos/b.jpg", "photos/deep/c.png", *(f"clips/v.mp4/{n:05d}" for n in range(10))}
    assert written == {f"png/{key}.png" for key in keys} | {f"overlay/{key}.jpg" for key in keys}
    for (source, frame), row in segment_stages.masks(config).items():
        if row.error is None:
            key = source if frame is None else f"{source}/{frame:05d}"
            mask = cv2.imread(str(tmp_path / "masks" / "png" / f"{key}.png"), cv2.IMREAD_UNCHANGED)
            assert set(np.unique(mask)) <= {0, 255}
            assert ((mask > 0) == decode_mask(row.mask_rle, row.height_px, row.width_px)).all()


def test_a_folder_of_frames_keeps_its_frames_names(segment_stages, make_frame_folder, tmp_path):
    folder = make_frame_folder("v", num_frames=3)
    for path in sorted(folder.iterdir(), reverse=True):
        path.rename(folder / f"{int(path.stem) + 1:05d}.png")
    segment_stages.run(segment_stages.config(write_png=True))
    assert sorted(path.name for path in (tmp_path / "masks" / "png" / "v").iterdir()) == [
        "00001.png",
        "00002.png",
        "00003.png",
    ]


@pytest.mark.parametrize(
    "name", ["b.jpg", "a/b.jpg", "a/frame.0001.png", "100 %/x y.jpg", "\N{DOG FACE}.png"]
)
def test_a_plain_name_is_its_own_key(name):
    assert safe_key(name) == name


HOSTILE_NAMES = [
    "../../etc/x.jpg",
    "etc/../x.jpg",
    "/etc/x.jpg",
    "a/./../b.jpg",
    "..\\..\\x.jpg",
    "a/.../b.jpg",
    "a//b.jpg",
    "a\nb.jpg",
    "a\x1b[2Jb.jpg",
    "a\u202eb.jpg",
    "x" * 1000 + ".jpg",
    "x" * 1001 + ".jpg",
    "\N{DOG FACE}" * 100 + ".jpg",
    ".gwm-b.jpg",
    "~/b.jpg",
    "~" + "0" * 32 + "/b.jpg",
    "a.jpg.png/b.jpg",
    "undecodable\udcff.jpg",
]


def test_a_name_never_leads_out_of_the_folder_nor_to_anothers_picture(tmp_path):
    names = [*HOSTILE_NAMES, "x.jpg", "etc/x.jpg", "a/b.jpg", "b.jpg"]
    keys = [safe_key(name) for name in names] + [safe_key("a.jpg.png", is_folder=True) + "/0"]
    for number, key in enumerate(keys):
        for suffix in (".png", ".jpg"):
            path = tmp_path / "output" / (key + suffix)
            assert path.resolve().is_relative_to(tmp_path / "output")
            storage.write_bytes(str(path), str(number).encode())
    for number, key in enumerate(keys):
        assert (tmp_path / "output" / (key + ".png")).read_text() == str(number)
    assert {path.name for path in tmp_path.iterdir()} == {"output"}
