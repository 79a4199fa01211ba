"""Small downloads of every data set, arranged, and read as gwm reads them."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from pipeline import storage
from pipeline.benchmark_data import arrange as arranging
from pipeline.benchmark_data.__main__ import main
from pipeline.benchmark_data.arrange import arrange
from pipeline.benchmark_data.table import FBMS_TRAINING, RAW_DATASETS
from pipeline.config import DecodeLimits
from pipeline.errors import GwmError
from pipeline.inputs import find_images, find_videos
from pipeline.layouts import FBMS_TEST, SEGTRACK, read_layout
from pipeline.predictions import read_mask

Pixels = npt.NDArray[np.uint8]
Write = Callable[[str, Pixels], None]

ROWS, COLUMNS = 6, 8


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Where a test puts its download."""
    return tmp_path / "raw"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "arranged"


@pytest.fixture
def write(raw: Path) -> Write:
    """Writes pixels, grey or RGB, as a file of the download; its name says in which format."""

    def to(name: str, pixels: Pixels) -> None:
        path = raw / name
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), pixels[..., ::-1] if pixels.ndim == 3 else pixels)

    return to


def picture(value: int = 90) -> Pixels:
    return np.full((ROWS, COLUMNS, 3), value, np.uint8)


def grey(*levels: int) -> Pixels:
    """A mask with these levels in its first row, else black."""
    mask = np.zeros((ROWS, COLUMNS), np.uint8)
    mask[0, : len(levels)] = levels
    return mask


def colours(*pixels: tuple[int, int, int]) -> Pixels:
    """A picture with these colours in its first row, else white."""
    image = np.full((ROWS, COLUMNS, 3), 255, np.uint8)
    image[0, : len(pixels)] = pixels
    return image


def first_row(target: Path, name: str) -> list[int]:
    """The written values of a mask's first row, of which nothing but 0 and 255 may occur below."""
    mask = cv2.imread(str(target / name), cv2.IMREAD_UNCHANGED)
    assert mask is not None
    assert set(np.unique(mask)) <= {0, 255}
    return [int(value) for value in mask[0]]


def write_video(write: Write, frames: str, truth: str, names: Iterable[str], suffix: str = "png") -> None:
    """Frames and the masks of one object, `names` without suffixes."""
    for name in names:
        write(f"{frames}/{name}.{suffix}", picture())
        write(f"{truth}/{name}.png", grey(255))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def with_counts(monkeypatch: pytest.MonkeyPatch, name: str, **counts: int | None) -> None:
    """Expects other numbers of a data set than the real ones."""
    changed = {field: getattr(RAW_DATASETS[name], field) for field in RAW_DATASETS[name].__slots__}
    table = {**RAW_DATASETS, name: type(RAW_DATASETS[name])(**{**changed, **counts})}
    monkeypatch.setattr(arranging, "RAW_DATASETS", table)


def sequences(name: str, target: Path) -> Mapping[str, tuple[str, ...]]:
    """The frames of each sequence that gwm evaluate scores."""
    found = read_layout(RAW_DATASETS[name].layout, str(target)).sequences
    return {sequence.name: sequence.frame_names for sequence in found}


# FBMS59


def write_fbms(write: Write, test: str, masks: Mapping[str, Pixels], frames: Iterable[str]) -> None:
    for frame in frames:
        write(f"Testset/{test}/{frame}.jpg", picture())
    for name, mask in masks.items():
        write(f"Testset/{test}/GroundTruth/{name}", mask)


def test_fbms_lists_every_sequence_once() -> None:
    assert len(FBMS_TRAINING.split()) == 29
    assert len(set(RAW_DATASETS["fbms59"].sequences)) == 59


@pytest.mark.parametrize(
    ("sequence", "levels", "foreground"),
    [
        ("cars1", (0, 12, 13, 25, 26, 102, 103, 255), (0, 0, 0, 0, 255, 255, 255, 255)),
        ("marple7", (0, 12, 13, 25, 26, 102, 103, 255), (0, 0, 255, 255, 255, 255, 255, 255)),
        ("marple2", (0, 12, 13, 25, 26, 102, 103, 255), (0, 0, 0, 0, 0, 0, 255, 255)),
    ],
)
def test_fbms_objects_are_above_a_grey_level(
    write: Write, raw: Path, target: Path, sequence: str, levels: tuple[int, ...], foreground: tuple[int, ...]
) -> None:
    write_fbms(
        write, sequence, {f"{sequence}_02.pgm": grey(*levels)}, [f"{sequence}_0{n}" for n in (1, 2, 3)]
    )
    assert not arrange("fbms59", str(raw), str(target), partly=True)
    assert first_row(target, f"Annotations/{sequence}/00002.png") == list(foreground)


def test_fbms_colours_are_objects_on_white(write: Write, raw: Path, target: Path) -> None:
    painted = colours((255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0), (252, 252, 252), (253, 253, 253))
    other = {"dogs01_0001_PROB_gt.ppm": picture(100), "dogs01_0001.pgm": picture(0)[..., 0]}
    write_fbms(write, "dogs01", {"dogs01_0001_gt.ppm": painted, **other}, ["dogs01_0001"])
    assert not arrange("fbms59", str(raw), str(target), partly=True)
    assert first_row(target, "Annotations/dogs01/00001.png") == [255, 255, 255, 0, 255, 0, 0, 0]
    mask = read_mask(str(target / "Annotations/dogs01/00001.png"), DecodeLimits())
    assert not mask[1:].any()


def test_fbms_frames_get_their_numbers_and_keep_their_bytes(write: Write, raw: Path, target: Path) -> None:
    names = [f"tennis{number:03d}" for number in range(1, 12)]
    write_fbms(write, "tennis", {"tennis001.pgm": grey(200), "tennis011.pgm": grey(200)}, names)
    write("Testset/tennis/preview.png", picture())
    (raw / "Testset/tennis/GroundTruth/tennisDef.dat").write_text("Total number of regions\n")
    arrange("fbms59", str(raw), str(target), partly=True)
    (truth,) = read_layout("fbms59", str(target)).sequences
    assert truth.frame_names == tuple(f"{number:05d}" for number in range(1, 12))
    assert sorted(truth.annotation_urls) == [0, 10]
    copied, original = target / "JPEGImages/tennis/00007.jpg", raw / "Testset/tennis/tennis007.jpg"
    assert copied.read_bytes() == original.read_bytes()
    (video,) = find_videos(str(target / "JPEGImages"))
    assert (video.kind, video.name) == ("frames", "tennis")


def test_fbms_takes_all_59_sequences_of_both_sets(write: Write, raw: Path, target: Path) -> None:
    for folder, names in (("Trainingset", FBMS_TRAINING), ("Testset", FBMS_TEST)):
        for name in names.split():
            write(f"{folder}/{name}/{name}_01.jpg", picture())
            write(f"{folder}/{name}/GroundTruth/{name}_01.pgm", grey(255))
    assert arrange("fbms59", str(raw), str(target))
    assert len(sequences("fbms59", target)) == 30
    assert len(list(find_images(str(target / "JPEGImages")))) == 59


# SegTrackv2


def write_segtrack(write: Write) -> None:
    for name in SEGTRACK.split():
        write_video(
            write, f"JPEGImages/{name}", f"GroundTruth/{name}", [f"{name}_0{n}" for n in (5, 6)], "bmp"
        )


def test_segtrack_objects_become_one_mask(
    write: Write, raw: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_segtrack(write)
    for number in ("05", "06"):
        (raw / f"GroundTruth/penguin/penguin_{number}.png").unlink()
        for one in range(6):
            levels = np.zeros(6, np.uint8)
            levels[one] = 255
            write(f"GroundTruth/penguin/{one + 1}/penguin_{number}.{'bmp' if one else 'png'}", grey(*levels))
    with_counts(monkeypatch, "segtrackv2", num_images=28)
    assert arrange("segtrackv2", str(raw), str(target))
    assert first_row(target, "Annotations/penguin/00005.png") == [255] * 6 + [0, 0]
    assert first_row(target, "Annotations/girl/00006.png") == [255] + [0] * 7
    assert sequences("segtrackv2", target) == dict.fromkeys(sorted(SEGTRACK.split()), ("00005", "00006"))
    assert {source.kind for source in find_images(str(target / "JPEGImages"))} == {"frames"}


def test_segtrack_without_one_mask_of_an_object_is_refused(write: Write, raw: Path, target: Path) -> None:
    write_segtrack(write)
    for number in ("05", "06"):
        write(f"GroundTruth/bmx/1/bmx_{number}.png", grey(255))
    (raw / "GroundTruth/bmx/bmx_06.png").unlink()
    with pytest.raises(
        GwmError, match=r"bmx_06.bmp has ground truth of 1 objects, other frames of 2. 1 more"
    ):
        arrange("segtrackv2", str(raw), str(target))


# DAVIS


def palette_png(path: Path, indices: Pixels) -> None:
    """An indexed PNG with the first colours of the DAVIS palette."""
    image = pytest.importorskip("PIL.Image").fromarray(indices, mode="P")
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0, 0, 0, 128])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def test_davis_2017_counts_all_objects_of_the_sequences_it_lists(
    write: Write, raw: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("dog", "bear", "dogs-jump"):
        for number in range(4):
            write(f"JPEGImages/480p/{name}/{number:05d}.jpg", picture())
            palette_png(raw / f"Annotations/480p/{name}/{number:05d}.png", grey(0, 1, 2, 3, 4))
    (raw / "ImageSets/2016").mkdir(parents=True)
    (raw / "ImageSets/2016/train.txt").write_text("bear\n")
    (raw / "ImageSets/2016/val.txt").write_text("dog\n\n")
    with_counts(monkeypatch, "davis2016", num_sequences=2, num_images=8)
    assert arrange("davis2016", str(raw), str(target))
    assert first_row(target, "Annotations/480p/dog/00000.png") == [0, 255, 255, 255, 255, 0, 0, 0]
    assert {path.name for path in (target / "JPEGImages/480p").iterdir()} == {"bear", "dog"}
    assert sequences("davis2016", target) == {"dog": ("00000", "00001", "00002", "00003")}
    unprepared = read_mask(str(raw / "Annotations/480p/dog/00000.png"), DecodeLimits())
    assert unprepared[0].tolist() == [False, True, True, True, True, False, False, False]


def test_davis_2016_lists_its_sequences_frame_by_frame(
    raw: Path,
    target: Path,
    test_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    raw.mkdir()
    for folder in ("JPEGImages", "Annotations"):
        (raw / folder / "480p").mkdir(parents=True)
        for name in ("soapbox", "dog"):
            (raw / folder / "480p" / name).symlink_to(test_data / "DAVIS2016" / folder / "480p" / name)
    lists = raw / "ImageSets/480p"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("")
    (lists / "val.txt").write_text(
        "".join(f"/JPEGImages/480p/dog/{n:05d}.jpg /Annotations/480p/dog/{n:05d}.png \n" for n in range(60))
    )
    with_counts(monkeypatch, "davis2016", num_sequences=1, num_images=60)
    assert arrange("davis2016", str(raw), str(target))
    assert len(sequences("davis2016", target)["dog"]) == 60
    for number in (0, 31, 59):
        name = f"Annotations/480p/dog/{number:05d}.png"
        assert np.array_equal(
            read_mask(str(raw / name), DecodeLimits()), read_mask(str(target / name), DecodeLimits())
        )
    said = capsys.readouterr().err
    assert f"1 sequences, 60 frames, 60 with ground truth, in {target}; 60 written now." in said
    assert f"gwm evaluate dataset=davis2016 data={target} scores 58, by the paper's protocol 57." in said


def test_davis_without_its_lists_is_refused(write: Write, raw: Path, target: Path) -> None:
    write_video(write, "JPEGImages/480p/dog", "Annotations/480p/dog", ["00000"])
    with pytest.raises(GwmError, match=r"There is no .*ImageSets/2016 or .*ImageSets/480p: it lists"):
        arrange("davis2016", str(raw), str(target))


# Images


def test_cub_takes_the_centre_squares_of_the_test_images(
    write: Write, raw: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ramp = np.broadcast_to(np.arange(10, dtype=np.uint8) * 20, (7, 10))
    tall = np.ascontiguousarray(ramp.T)
    for name, mask in (("001.A/A_01", ramp), ("001.A/A_02", ramp), ("002.B/B_03", tall)):
        write(f"images/{name}.jpg", np.repeat(mask[..., None], 3, axis=2))
        write(f"segmentations/{name}.png", mask)
    (raw / "images.txt").write_text("1 001.A/A_01.jpg\n2 001.A/A_02.jpg\n3 002.B/B_03.jpg\n")
    (raw / "train_val_test_split.txt").write_text("1 2\n2 0\n3 2\n")
    with_counts(monkeypatch, "cub", num_images=2)
    assert arrange("cub", str(raw), str(target))
    (group,) = read_layout("images", str(target)).sequences
    assert group.frame_names == ("A_01", "B_03")
    # Of 10 columns, 7 from column 2 on: 1.5 is rounded to the even number, as torchvision does.
    assert first_row(target, "masks/A_01.png") == [0] * 5 + [255, 255]
    assert cv2.imread(str(target / "masks/B_03.png"), 0)[:, 0].tolist() == [0] * 5 + [255, 255]
    image, whole = cv2.imread(str(target / "images/A_01.png")), cv2.imread(str(raw / "images/001.A/A_01.jpg"))
    assert np.array_equal(image, whole[:, 2:9])


def test_squares_lie_where_torchvision_cuts_them() -> None:
    from torchvision.transforms.functional import center_crop, to_pil_image

    from pipeline.benchmark_data.truth import centre_square

    random = np.random.default_rng(0)
    for height, width in ((5, 6), (5, 7), (5, 8), (5, 10), (9, 4), (11, 4), (4, 4)):
        image = random.integers(0, 255, (height, width, 3), np.uint8)
        expected = np.asarray(center_crop(to_pil_image(image), [min(height, width)]))
        assert np.array_equal(centre_square(image), expected)


@pytest.mark.parametrize(
    ("name", "images", "masks"),
    [
        ("duts-te", "DUTS-TE-Image", "DUTS-TE-Mask"),
        ("ecssd", "images", "ground_truth_mask"),
        ("dut-omron", "DUT-OMRON-image", "pixelwiseGT-new-PNG"),
    ],
)
def test_images_have_their_masks_by_name(
    write: Write,
    raw: Path,
    target: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    images: str,
    masks: str,
) -> None:
    for stem in ("0001", "im.5"):
        write(f"{images}/{stem}.jpg", picture())
        write(f"{masks}/{stem}.png", grey(0, 1, 127, 128, 254, 255))
    (raw / images / "Thumbs.db").write_bytes(b"no image")
    with_counts(monkeypatch, name, num_images=2)
    assert arrange(name, str(raw), str(target))
    (group,) = read_layout("images", str(target)).sequences
    assert group.frame_names == ("0001", "im.5")
    assert first_row(target, "masks/im.5.png") == [0, 0, 0, 255, 255, 255, 0, 0]
    assert (target / "images/0001.jpg").read_bytes() == (raw / images / "0001.jpg").read_bytes()


def test_real_ecssd_pairs_are_a_part_of_the_whole(
    raw: Path, target: Path, test_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw.mkdir()
    (raw / "images").symlink_to(test_data / "ECSSD/images")
    (raw / "ground_truth_mask").symlink_to(test_data / "ECSSD/masks")
    words = ["ecssd", str(raw), str(target)]
    assert main(words) == 1
    said = capsys.readouterr().err
    assert "There should be 1000 images" in said
    assert "60 are there. --partial takes what is there." in said
    assert not target.exists()
    assert main([*words, "--partial"]) == 2
    (group,) = read_layout("images", str(target)).sequences
    (original,) = read_layout("images", str(test_data / "ECSSD")).sequences
    assert group.frame_names == original.frame_names
    for position in range(60):
        theirs = read_mask(original.annotation_urls[position], DecodeLimits())
        assert np.array_equal(read_mask(group.annotation_urls[position], DecodeLimits()), theirs)


# What can go wrong


@pytest.fixture
def pairs(write: Write, raw: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A download of two pairs, of which there should be two."""
    for stem in ("a", "b"):
        write(f"images/{stem}.jpg", picture())
        write(f"ground_truth_mask/{stem}.png", grey(255))
    with_counts(monkeypatch, "ecssd", num_images=2)
    return raw


def test_a_rerun_writes_what_is_missing_and_nothing_else(pairs: Path, target: Path) -> None:
    assert arrange("ecssd", str(pairs), str(target))
    before = files(target)
    (target / "masks/b.png").unlink()
    (target / "images/a.jpg").write_bytes(b"left as it is")
    assert arrange("ecssd", str(pairs), str(target))
    assert files(target) == {**before, "images/a.jpg": b"left as it is"}
    assert files(pairs).keys() == {
        f"{folder}/{name}"
        for folder, name in (
            ("images", "a.jpg"),
            ("images", "b.jpg"),
            ("ground_truth_mask", "a.png"),
            ("ground_truth_mask", "b.png"),
        )
    }


@pytest.mark.parametrize("name", ["images/b.jpg", "ground_truth_mask/b.png"])
def test_a_file_that_cannot_be_read_is_named_and_a_rerun_goes_on(
    pairs: Path, target: Path, name: str
) -> None:
    whole = (pairs / name).read_bytes()
    (pairs / name).write_bytes(b"not an image")
    for partly in (False, True):
        with pytest.raises(GwmError, match=rf"{name} is not an image that can be read\.$"):
            arrange("ecssd", str(pairs), str(target), partly=partly)
    assert not (target / "images/b.jpg").exists()
    (pairs / name).write_bytes(whole)
    assert arrange("ecssd", str(pairs), str(target))
    assert len(files(target)) == 4


@pytest.mark.parametrize(
    ("gone", "sentence"),
    [
        ("images/b.jpg", r"There is no image .*images/b\."),
        ("ground_truth_mask/b.png", r"There is no ground truth .*ground_truth_mask/b\."),
    ],
)
def test_a_missing_file_is_named_before_anything_is_written(
    pairs: Path, target: Path, gone: str, sentence: str
) -> None:
    (pairs / gone).unlink()
    with pytest.raises(GwmError, match=rf"{sentence} 1 more things are missing\. --partial"):
        arrange("ecssd", str(pairs), str(target))
    assert not target.exists()
    assert not arrange("ecssd", str(pairs), str(target), partly=True)
    assert files(target).keys() == {"images/a.jpg", "masks/a.png"}


def test_frames_and_ground_truth_without_each_other_are_named(write: Write, raw: Path, target: Path) -> None:
    write_segtrack(write)
    (raw / "GroundTruth/girl/girl_05.png").unlink()
    with pytest.raises(GwmError, match=r"girl/girl_05.bmp has no ground truth\. 1 more"):
        arrange("segtrackv2", str(raw), str(target))
    (raw / "JPEGImages/girl/girl_05.bmp").unlink()
    (raw / "JPEGImages/girl/girl_06.bmp").unlink()
    with pytest.raises(GwmError, match=r"no images in .*JPEGImages/girl or .*PNGImages/girl\. 1 more"):
        arrange("segtrackv2", str(raw), str(target))
    write("JPEGImages/girl/girl_07.bmp", picture())
    with pytest.raises(GwmError, match=r"girl_06.png is the ground truth of a frame that is not there\."):
        arrange("segtrackv2", str(raw), str(target))
    write("JPEGImages/girl/girl_7.png", picture())
    with pytest.raises(GwmError, match=r"girl_07.bmp and .*girl_7.png are two images of one frame"):
        arrange("segtrackv2", str(raw), str(target))
    write("JPEGImages/girl/cover.bmp", picture())
    with pytest.raises(GwmError, match=r"cover.bmp has no frame number"):
        arrange("segtrackv2", str(raw), str(target))


def test_sizes_that_differ_are_refused(write: Write, pairs: Path, target: Path) -> None:
    write("ground_truth_mask/b.png", grey(255)[:, :-1])
    with pytest.raises(
        GwmError, match=r"images/b.jpg and its ground truth .*b.png differ in size: 6x8 and 6x7"
    ):
        arrange("ecssd", str(pairs), str(target))


def test_a_target_with_other_images_is_refused(pairs: Path, target: Path) -> None:
    (target / "images").mkdir(parents=True)
    (target / "images/holiday.jpg").write_bytes(b"mine")
    with pytest.raises(GwmError, match=r"images/holiday.jpg does not belong there: choose an empty folder"):
        arrange("ecssd", str(pairs), str(target))
    with pytest.raises(GwmError, match="the same folder"):
        arrange("ecssd", str(pairs), f"{pairs}/")


def test_lists_of_cub_that_do_not_fit_are_refused(write: Write, raw: Path, target: Path) -> None:
    write("images/001.A/A_01.jpg", picture())
    write("segmentations/001.A/A_01.png", grey(255))
    with pytest.raises(GwmError, match=r"There is no .*images.txt"):
        arrange("cub", str(raw), str(target))
    (raw / "images.txt").write_text("1 001.A/A_01.jpg\n")
    (raw / "train_val_test_split.txt").write_text("1 2\n2 2\n")
    with pytest.raises(GwmError, match=r"images.txt and .*split.txt do not number the same images"):
        arrange("cub", str(raw), str(target))
    (raw / "train_val_test_split.txt").write_text("1\n")
    with pytest.raises(GwmError, match=r"split.txt should have two words on each line, not '1'"):
        arrange("cub", str(raw), str(target))


def test_source_and_target_may_be_in_buckets(pairs: Path, s3: Any) -> None:
    for name, data in files(pairs).items():
        storage.write_bytes(f"{s3.url}/raw/{name}", data)
    assert arrange("ecssd", f"{s3.url}/raw", f"{s3.url}/ecssd")
    (group,) = read_layout("images", f"{s3.url}/ecssd").sequences
    assert group.frame_names == ("a", "b")
    assert storage.read_bytes(group.frame_urls[0]) == (pairs / "images/a.jpg").read_bytes()
    storage.delete(f"{s3.url}/ecssd/masks/a.png")
    assert arrange("ecssd", f"{s3.url}/raw", f"{s3.url}/ecssd")
    assert storage.exists(f"{s3.url}/ecssd/masks/a.png")


def test_a_wrong_command_line_is_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["davis", "here", str(tmp_path)]) == 1
    assert main(["ecssd", str(tmp_path / "nowhere"), str(tmp_path / "there")]) == 1
    assert main(["ecssd"]) == 1
    wrong_name, no_source, few_words = capsys.readouterr().err.splitlines()
    assert wrong_name.startswith(
        "benchmark-data: NAME davis is not known: it is one of davis2016, davis2017, seg"
    )
    assert no_source == f"benchmark-data: There are no images in {tmp_path}/nowhere/images."
    assert few_words.startswith("benchmark-data: the following arguments are required: SOURCE, TARGET")
