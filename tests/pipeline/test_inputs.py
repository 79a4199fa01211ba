from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.errors import GwmError
from pipeline.inputs import Source, find_images, find_videos, frame_urls


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def pictures(folder: Path, names: Iterable[str], *, height_px: int = 4, width_px: int = 6) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        cv2.imwrite(str(folder / name), np.zeros((height_px, width_px, 3), np.uint8))


def kinds(sources: Iterable[Source]) -> dict[str, str]:
    return {source.name: source.kind for source in sources}


def test_a_folder_of_videos_and_frame_folders(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "sub/b.AVI", "notes.txt", "seq/00001.jpg", "seq/00000.jpg", "other/f_1.png")
    touch(tmp_path, "photos/cat.jpg", "photos/1.jpg", "sub/00000.jpg", "sub/deep/00000.jpg")
    found = kinds(find_videos(str(tmp_path)))
    assert found == {
        "a.mp4": "video",
        "sub/b.AVI": "video",
        "seq": "frames",
        "other": "frames",
        "sub": "frames",
        "sub/deep": "frames",
    }


def test_names_do_not_depend_on_where_the_root_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "in", "x/a.mp4")
    monkeypatch.chdir(tmp_path)
    (source,) = find_videos("in")
    assert (source.name, source.url, source.size_bytes) == ("x/a.mp4", str(tmp_path / "in/x/a.mp4"), 1)
    assert list(find_videos(f"{tmp_path}/in/")) == [source]


def test_one_file_and_one_frame_folder(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "swan/0.jpg", "swan/1.jpg")
    assert kinds(find_videos(str(tmp_path / "a.mp4"))) == {"a.mp4": "video"}
    assert kinds(find_videos(str(tmp_path / "swan"))) == {"swan": "frames"}


def test_frames_come_by_number(tmp_path: Path) -> None:
    touch(tmp_path, "s/f10.jpg", "s/f9.jpg", "s/f11.jpg", "s/readme.txt")
    (source,) = find_videos(str(tmp_path / "s"))
    assert [url.rsplit("/", 1)[-1] for url in frame_urls(source)] == ["f9.jpg", "f10.jpg", "f11.jpg"]


def test_globs_match_files_and_folders(tmp_path: Path) -> None:
    touch(tmp_path, "a1.mp4", "a2.mp4", "b.mp4", "x/c.mp4", "bear/0.jpg", "bear/1.jpg", "boat/0.jpg")
    assert kinds(find_videos(f"{tmp_path}/a*.mp4")) == {"a1.mp4": "video", "a2.mp4": "video"}
    assert kinds(find_videos(f"{tmp_path}/**/*.mp4")).keys() == {"a1.mp4", "a2.mp4", "b.mp4", "x/c.mp4"}
    assert kinds(find_videos(f"{tmp_path}/b*")) == {"b.mp4": "video", "bear": "frames", "boat": "frames"}


@pytest.mark.parametrize("form", ["txt", "csv", "parquet"])
def test_lists(tmp_path: Path, form: str) -> None:
    touch(tmp_path, "v/a.mp4", "v/seq/0.jpg")
    entries = ["v/a.mp4", str(tmp_path / "v" / "a.mp4"), "v/seq", "s3://bucket/c.mkv", "v/a.mp4"]
    path = tmp_path / f"list.{form}"
    if form == "txt":
        path.write_text("# comment\n\n" + "\n".join(entries) + "\n")
    elif form == "csv":
        path.write_text("id,url\n" + "".join(f"{number},{entry}\n" for number, entry in enumerate(entries)))
    else:
        pq.write_table(pa.table({"id": range(len(entries)), "video": entries}), path)
    found = list(find_videos(str(path)))
    assert [source.kind for source in found] == ["video", "video", "frames", "video"]
    assert [source.url for source in found][2:] == [str(tmp_path / "v/seq"), "s3://bucket/c.mkv"]
    assert [source.name for source in found if "://" in source.url] == ["bucket/c.mkv"]
    assert len({source.name for source in found}) == len(found)


def test_images_stand_alone_and_videos_come_along(tmp_path: Path) -> None:
    pictures(tmp_path, ["cat.png", "dog.jpg"])
    touch(tmp_path, "v.mp4", "notes.md")
    assert kinds(find_images(str(tmp_path))) == {"cat.png": "image", "dog.jpg": "image", "v.mp4": "video"}


def test_evenly_numbered_images_of_one_size_are_a_video(tmp_path: Path) -> None:
    pictures(tmp_path / "swan", [f"{number:05d}.png" for number in range(0, 50, 5)])
    assert kinds(find_images(str(tmp_path))) == {"swan": "frames"}


@pytest.mark.parametrize("case", ["ids", "sizes", "prefix", "single"])
def test_photo_collections_are_not_taken_for_videos(tmp_path: Path, case: str) -> None:
    if case == "ids":
        pictures(tmp_path, ["000139.png", "000285.png", "000632.png", "000633.png", "581929.png"])
    elif case == "sizes":
        pictures(tmp_path, ["1.png", "2.png", "3.png"])
        pictures(tmp_path, ["4.png", "5.png"], width_px=9)
    elif case == "prefix":
        pictures(tmp_path, ["img_1.png", "img_2.png", "img_3.png"])
    else:
        pictures(tmp_path, ["1.png"])
    found = list(find_images(str(tmp_path)))
    assert {source.kind for source in found} == {"image"}
    assert len(found) == len(list(tmp_path.iterdir()))


def test_real_folders(test_data: Path) -> None:
    davis = list(find_images(str(test_data / "DAVIS2016/JPEGImages/480p")))
    assert len(davis) == 12
    assert {source.kind for source in davis} == {"frames"}
    ecssd = list(find_images(str(test_data / "ECSSD/images")))
    assert len(ecssd) == 60
    assert {source.kind for source in ecssd} == {"image"}


def test_bucket_folders_and_prefixes(request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue("s3").url
    for name in (
        "v/2024-a.mp4",
        "v/2024-b.mp4",
        "v/2025-c.mp4",
        "v/seq/0.jpg",
        "v/seq/1.jpg",
        "v/seq2/0.jpg",
    ):
        storage.write_bytes(f"{root}/{name}", b"x")
    assert set(kinds(find_videos(f"{root}/v"))) == {"2024-a.mp4", "2024-b.mp4", "2025-c.mp4", "seq", "seq2"}
    assert set(kinds(find_videos(f"{root}/v/2024-"))) == {"2024-a.mp4", "2024-b.mp4"}
    (source,) = find_videos(f"{root}/v/seq/")
    assert (source.name, source.kind, source.url) == ("seq", "frames", f"{root}/v/seq")
    assert frame_urls(source) == [f"{root}/v/seq/0.jpg", f"{root}/v/seq/1.jpg"]
    with pytest.raises(GwmError, match="There is no video in s3://"):
        list(find_videos(f"{root}/nothing-here"))


@pytest.mark.parametrize("spec", ["", "/*.mp4", "/empty", "/notes.txt", "/file.pdf"])
def test_nothing_to_do_is_an_error(tmp_path: Path, spec: str) -> None:
    (tmp_path / "empty").mkdir()
    touch(tmp_path, "file.pdf")
    (tmp_path / "notes.txt").write_text("\n")
    with pytest.raises(GwmError, match="There is no video in "):
        list(find_videos(f"{tmp_path}{spec}"))


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(GwmError, match=r"There is no file or folder .*/nowhere"):
        list(find_videos(str(tmp_path / "nowhere")))
