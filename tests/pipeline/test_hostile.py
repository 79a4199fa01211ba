"""Hostile and broken media: each ends done or with a reason that a person understands, and the job goes on.

The cases are made from a seed. "any" stands for files in which chance decides what is left.
"""

import json
import random
import struct
import zlib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import av
import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import cli
from pipeline.dataset import Dataset
from pipeline.images import read_image
from pipeline.inference import read_model_card
from pipeline.masks import mask_rows
from pipeline.stages.decode_clip import decode_clip
from pipeline.stages.load_chunk import load_chunk
from tests import few_workers

SEED = 20240607
VIDEO_FORMATS = {
    ".mp4": "libx264",
    ".avi": "mpeg4",
    ".mkv": "libx264",
    ".webm": "libvpx-vp9",
    ".ts": "libx264",
}
IMAGE_FORMATS = (".jpg", ".png", ".webp", ".bmp", ".tif")
HEIGHT_PX, WIDTH_PX, NUM_FRAMES = 64, 96, 12


@dataclass(frozen=True)
class Case:
    """A file and how it ends: done, quarantined or any; as an image, an error in its row is its quarantine."""

    name: str
    data: bytes
    expected: str = "any"


def damaged(base: bytes, other: bytes, rng: random.Random) -> dict[str, bytes]:
    """A file with flipped bits, cut off, and spliced with itself, another file and zeros."""
    cases = {}
    for flips in (1, 8, 64):
        for number in range(5):
            data = bytearray(base)
            for _ in range(flips):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            cases[f"flip{flips}-{number}-"] = bytes(data)
    for number in range(2):  # where the formats keep their sizes
        data = bytearray(base)
        for _ in range(6):
            data[rng.randrange(min(200, len(data)))] = rng.choice((0, 0x7F, 0x80, 0xFF))
        cases[f"header-{number}-"] = bytes(data)
    for share in (0.0, 0.02, 0.2, 0.5, 0.8, 0.97):
        cases[f"cut{round(100 * share)}-"] = base[: int(len(base) * share)]
    middle, third = len(base) // 2, len(base) // 3
    cases["last-byte-"] = base[:-1]
    cases["head-of-another-"] = other[: len(other) // 2] + base[middle:]
    cases["tail-of-another-"] = base[:middle] + other[len(other) // 2 :]
    cases["zeros-"] = base[:third] + bytes(third) + base[2 * third :]
    cases["twice-"] = base + base
    cases["shuffled-"] = base[middle:] + base[:middle]
    return cases


def patched(base: bytes, mark: bytes, offset: int, values: bytes) -> bytes:
    """The file with `values` at an offset behind the first `mark`."""
    start = base.index(mark) + len(mark) + offset
    return base[:start] + values + base[start + len(values) :]


def encoded_image(suffix: str, image: np.ndarray) -> bytes:
    return cv2.imencode(suffix, image)[1].tobytes()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def claimed_png(width_px: int, height_px: int, rows: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width_px, height_px, 1, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*part) for part in parts)


def picture() -> np.ndarray:
    """BGR [64, 96, 3]: smooth, and different in each corner."""
    y, x = np.mgrid[0:HEIGHT_PX, 0:WIDTH_PX]
    return np.stack([2 * x, 3 * y, 255 - x - y], -1).astype(np.uint8)


def pillow(path: Path, mode: str = "RGB", **options) -> bytes:
    image = Image.fromarray(picture()[..., ::-1])
    if mode == "I;16":
        image = Image.fromarray(picture()[..., 0].astype(np.uint16) * 257)
    elif mode == "RGBA":
        image.putalpha(128)
    image = image if mode == "I;16" else image.convert(mode)
    if options.get("append_images"):
        options["append_images"] = [Image.new(mode, image.size)] * 3
    image.save(path, **options)
    data = path.read_bytes()
    path.unlink()
    return data


def images_of_all_kinds(folder: Path) -> list[Case]:
    """Images as cameras and tools write them: all can be read."""
    exif = Image.Exif()
    cases = [
        Case("grey.png", pillow(folder / "x.png", "L")),
        Case("grey.jpg", pillow(folder / "x.jpg", "L")),
        Case("grey-sixteen-bit.png", pillow(folder / "x.png", "I;16")),
        Case("cmyk.jpg", pillow(folder / "x.jpg", "CMYK")),
        Case("cmyk.tif", pillow(folder / "x.tif", "CMYK")),
        Case("alpha.png", pillow(folder / "x.png", "RGBA")),
        Case("alpha.webp", pillow(folder / "x.webp", "RGBA")),
        Case("grey-alpha.png", pillow(folder / "x.png", "LA")),
        Case("palette.png", pillow(folder / "x.png", "P")),
        Case("one-bit.png", pillow(folder / "x.png", "1")),
        Case("progressive.jpg", pillow(folder / "x.jpg", progressive=True)),
        Case("animated.png", pillow(folder / "x.png", save_all=True, append_images=True)),
        Case("animated.webp", pillow(folder / "x.webp", save_all=True, append_images=True)),
        Case("animated-gif-called.png", pillow(folder / "x.gif", "P", save_all=True, append_images=True)),
        Case("pages.tif", pillow(folder / "x.tif", save_all=True, append_images=True)),
        Case("sixteen-bit.png", encoded_image(".png", picture().astype(np.uint16) * 257)),
        Case("one-pixel.png", encoded_image(".png", picture()[:1, :1])),
        Case("one-row.png", encoded_image(".png", np.zeros((1, 3000, 3), np.uint8))),
        Case("one-column.png", encoded_image(".png", np.zeros((3000, 1, 3), np.uint8))),
        Case("png-called.jpg", encoded_image(".png", picture())),
    ]
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        cases.append(Case(f"exif-{orientation}-.jpg", pillow(folder / "x.jpg", exif=exif)))
    return [replace(case, expected="done") for case in cases]


def images_that_lie() -> list[Case]:
    """Headers that claim 40,000 x 40,000 pixels, real bombs, and files that are something else."""
    side = 40_000
    jpeg, small = encoded_image(".jpg", picture()), encoded_image(".png", picture())
    bmp, tiff = encoded_image(".bmp", picture()), pillow_free_tiff(side)
    bomb = zlib.compress(bytes((20_000 // 8 + 1) * 20_000), 9)
    cases = [
        Case("claims.png", claimed_png(side, side, zlib.compress(bytes(100)))),
        Case("claims-most.png", claimed_png(2**31 - 1, 2**31 - 1, b"")),
        Case("claims-nothing.png", claimed_png(0, 0, b"")),
        Case("bomb.png", claimed_png(20_000, 20_000, bomb)),
        Case("claims.jpg", patched(jpeg, b"\xff\xc0", 3, struct.pack(">HH", side, side))),
        Case("claims.bmp", bmp[:18] + struct.pack("<ii", side, side) + bmp[26:]),
        Case("claims-negative.bmp", bmp[:18] + struct.pack("<ii", -(2**31), -(2**31)) + bmp[26:]),
        Case("claims.tif", tiff),
        Case("claims.webp", webp_canvas(16_383)),
        Case("claims.ppm", b"P6 40000 40000 255\n" + bytes(100)),
        Case("float.tif", encoded_image(".tif", picture().astype(np.float32) / 255)),  # what would white be?
        Case("nothing.jpg", b""),
        Case("text.jpg", b"this is text\n" * 20),
        Case("page.png", b"<!doctype html><html><body>403</body></html>"),
        Case("drawing.png", b"<svg xmlns='http://www.w3.org/2000/svg' width='40000' height='40000'/>"),
        Case("packed.png", zlib.compress(small)),
        Case("signature.png", small[:8]),
        Case("noise.webp", random.Random(SEED).randbytes(3000)),
    ]
    return [replace(case, expected="quarantined") for case in cases]


def pillow_free_tiff(side: int) -> bytes:
    """A TIFF of one strip that is not there."""
    tags = [
        (256, side),
        (257, side),
        (258, 8),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, side),
        (279, 100),
    ]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\x00" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


def webp_canvas(side: int) -> bytes:
    """An extended WebP that is nothing but its canvas."""
    size = struct.pack("<I", side - 1)[:3]
    chunk = b"VP8X" + struct.pack("<I", 10) + bytes(4) + size + size
    return b"RIFF" + struct.pack("<I", len(chunk) + 4) + b"WEBP" + chunk


def image_cases(folder: Path) -> list[Case]:
    """All images."""
    rng = random.Random(SEED)
    cases = images_of_all_kinds(folder) + images_that_lie()
    for suffix, other in zip(IMAGE_FORMATS, (*IMAGE_FORMATS[1:], IMAGE_FORMATS[0]), strict=True):
        pair = (encoded_image(suffix, picture()), encoded_image(other, picture()))
        cases += [Case(f"{kind}{suffix}", data) for kind, data in damaged(*pair, rng).items()]
    return cases


def videos_of_all_kinds(make_video, make_audio) -> list[Case]:
    """Videos as cameras and tools write them, with what the pipeline makes of them."""
    size = {"num_frames": NUM_FRAMES, "height_px": HEIGHT_PX, "width_px": WIDTH_PX}
    times = [0, 40, 45, 200, 210, 250, 900, 901, 905, 1000, 2000, 5000]
    making = {
        "plain.mp4": {},
        "b-frames.mp4": {"b_frames": 4},
        "variable.mp4": {"times_ms": times},
        "late.mp4": {"times_ms": [10**6 + time for time in times]},
        "turned.mp4": {"rotation_deg": 90},
        "upside-down.mp4": {"rotation_deg": 180},
        "turned-back.mp4": {"rotation_deg": -90},
        "ten-bit.mp4": {"pixels": "yuv420p10le"},
        "grey.mkv": {"pixels": "gray"},
        "full-chroma.mp4": {"pixels": "yuv444p"},
        "alpha.webm": {"codec": "libvpx-vp9", "pixels": "yuva420p"},
        "motion-jpeg.avi": {"codec": "mjpeg", "pixels": "yuvj420p", "b_frames": 0},
        "lossless.mkv": {"codec": "ffv1", "b_frames": 0},
        "with-sound.mp4": {"audio": True},
        "fragmented.mp4": {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
        "no-times.avi": {"codec": "mpeg4"},
        "raw.mpg": {"codec": "mpeg2video"},
    }
    cases = [
        Case(name, make_video(f"x{Path(name).suffix}", **size | values).read_bytes(), "done")
        for name, values in making.items()
    ]
    cases.append(Case("two-frames.mp4", make_video("x.mp4", **size | {"num_frames": 2}).read_bytes(), "done"))
    one = make_video("x.mp4", **size | {"num_frames": 1}).read_bytes()
    cases.append(Case("one-frame.mp4", one, "quarantined"))
    cases.append(Case("sound.mp4", make_audio("x.mp4").read_bytes(), "quarantined"))
    return cases


def videos_that_lie(mp4: bytes, avi: bytes, folder: Path) -> list[Case]:
    """Headers that claim sizes and counts, no frames at all, and files that are something else."""
    empty = folder / "x.mp4"
    with av.open(str(empty), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH_PX, HEIGHT_PX, "yuv420p"
        container.start_encoding()
    huge, million = struct.pack(">HH", 40_000, 40_000), struct.pack("<I", 10**6)
    raw_header = patched(avi, b"strf", 8, struct.pack("<ii", 40_000, 40_000)).replace(b"FMP4", bytes(4))
    cases = [
        Case("no-frames.mp4", empty.read_bytes(), "quarantined"),
        Case("claims-size.mp4", patched(mp4, b"avc1", 24, huge)),
        Case("claims-frames.mp4", patched(mp4, b"stsz", 8, struct.pack(">I", 10**6))),
        Case("claims-all-frames.mp4", patched(mp4, b"stsz", 4, struct.pack(">II", 1, 2**31))),
        Case("claims-chunks.mp4", patched(mp4, b"stco", 4, struct.pack(">I", 2**32 - 1))),
        Case("claims-durations.mp4", patched(mp4, b"stts", 4, struct.pack(">III", 1, 10**6, 2**31))),
        Case("claims-length.mp4", patched(mp4, b"mdat", -8, struct.pack(">I", 2**31))),
        Case("claims-size.avi", patched(avi, b"strf", 8, struct.pack("<ii", 40_000, 40_000))),
        Case("claims-raw-size.avi", raw_header),
        Case("claims-frames.avi", patched(avi, b"avih", 20, million)),
        Case("nothing.mp4", b"", "quarantined"),
        Case("text.mp4", b"this is text\n" * 100, "quarantined"),
        Case("noise.mkv", random.Random(SEED).randbytes(5000), "quarantined"),
        Case("image.mp4", encoded_image(".png", picture()), "quarantined"),
        Case("playlist.mp4", f"#EXTM3U\n#EXTINF:1,\nfile://{folder}/secret.ts\n".encode(), "quarantined"),
        Case("list.avi", f"ffconcat version 1.0\nfile '{folder}/secret.ts'\n".encode(), "quarantined"),
    ]
    empty.unlink()
    return cases


def video_cases(folder: Path, make_video, make_audio) -> list[Case]:
    """All videos; `folder` comes to hold a video that none of them may show."""
    rng = random.Random(SEED)
    size = {"num_frames": NUM_FRAMES, "height_px": HEIGHT_PX, "width_px": WIDTH_PX, "keyframe_every": 5}
    bases = {
        suffix: make_video(f"x{suffix}", codec=codec, **size).read_bytes()
        for suffix, codec in VIDEO_FORMATS.items()
    }
    (folder / "secret.ts").write_bytes(bases[".ts"])
    cases = videos_of_all_kinds(make_video, make_audio)
    cases += videos_that_lie(bases[".mp4"], bases[".avi"], folder)
    suffixes = list(bases)
    for suffix, other in zip(suffixes, [*suffixes[1:], suffixes[0]], strict=True):
        parts = damaged(bases[suffix], bases[other], rng)
        cases += [Case(f"{kind}{suffix}", data) for kind, data in parts.items()]
    return cases


ODD_NAMES = (
    "new\nline{}",
    "percent%2F..%2F{}",
    "\x1b[31mred{}",
    "dog \N{DOG FACE}{}",
    "..dots..{}",
    "reversed\u202e{}",
    "back\\slash{}",
    "quote'\"{}",
    "[glob]*?{}",
    "a" * 240 + "{}",
    "-dash{}",
    "#hash{}",
    "s3:{}",
)


def odd_names(suffix: str, data: bytes) -> list[Case]:
    """A good file under names that are not."""
    return [Case(name.format(suffix), data, "done") for name in ODD_NAMES]


def write(cases: list[Case], folder: Path) -> None:
    folder.mkdir(parents=True)
    for case in cases:
        (folder / case.name).write_bytes(case.data)
    assert len(list(folder.iterdir())) == len(cases)


def check_reason(reason: str) -> None:
    """One line that a person can read."""
    assert reason
    assert reason.isprintable()
    assert len(reason) < 700
    assert "Traceback" not in reason
    assert "nexpected" not in reason


def check_outcomes(what: str, cases: list[Case], outcomes: dict[str, str]) -> None:
    """Prints how many ended how, and compares."""
    print(f"{what}: {len(cases)} cases, {dict(sorted(Counter(outcomes.values()).items()))}")
    wrong = {
        case.name: outcomes.get(case.name)
        for case in cases
        if outcomes.get(case.name)
        not in {"any": ("done", "partial", "quarantined")}.get(case.expected, (case.expected,))
    }
    assert not wrong


def test_every_video_is_decoded_or_says_why_not(tmp_path, make_video, make_audio, stages):
    cases = video_cases(tmp_path, make_video, make_audio)
    (tmp_path / "videos").rename(tmp_path / "made")
    write(cases, tmp_path / "videos")
    config = stages.config(decode={"timeout_s": 20.0, "max_bytes": 2**28})
    ends: dict[str, set[str]] = {case.name: set() for case in cases}
    for planned in stages.plan(config):
        row = decode_clip(planned, config)
        if row["status"] == "failed":
            check_reason(json.loads(row["failure"])["reason"])
        else:
            assert row["frames"].shape[1:] == (3, row["height_px"], row["width_px"])
            assert row["frames"].dtype == np.uint8
        ends[row["source"]].add("quarantined" if row["status"] == "failed" else "done")
    check_outcomes(
        "videos",
        cases,
        {name: end.pop() if len(end) == 1 else "partial" for name, end in ends.items() if end},
    )


def test_every_image_is_loaded_or_says_why_not(tmp_path, segment_stages, tiny_model):
    cases = image_cases(tmp_path)
    write(cases, tmp_path / "videos")
    config = segment_stages.config()
    card = read_model_card(tiny_model)
    outcomes = {}
    for planned in segment_stages.plan(config):
        row = load_chunk(planned, config, card)
        images = iter(row["images"])
        for name, error in zip(row["names"], row["errors"], strict=True):
            outcomes[name] = "quarantined" if error else "done"
            if error:
                check_reason(error)
            else:
                assert next(images).shape == (3, card.height_px, card.width_px)
    check_outcomes("images", cases, outcomes)


def test_images_of_all_kinds_are_upright_rgb(tmp_path):
    rgb = picture()[..., ::-1].astype(float)
    turned = {"3": np.rot90(rgb, 2), "6": np.rot90(rgb, -1), "8": np.rot90(rgb)}
    turned |= {"2": rgb[:, ::-1], "4": rgb[::-1], "5": rgb.transpose(1, 0, 2)}
    turned["7"] = np.rot90(rgb, 2).transpose(1, 0, 2)
    for case in images_of_all_kinds(tmp_path):
        (tmp_path / case.name).write_bytes(case.data)
        image = read_image(str(tmp_path / case.name))
        assert image.dtype == np.uint8, case.name
        if case.name.startswith("one-"):
            assert image.ndim == 3, case.name
            continue
        expected = turned.get(case.name.split("-")[1], rgb) if "exif" in case.name else rgb
        if "grey" in case.name:
            channel = (
                picture()[..., :1].astype(float) if "sixteen" in case.name else rgb @ [0.299, 0.587, 0.114]
            )
            expected = np.repeat(channel.reshape(HEIGHT_PX, WIDTH_PX, 1), 3, -1)
        tolerance = 20 if case.name.startswith(("palette", "animated-gif", "cmyk")) else 6
        assert image.shape == expected.shape, case.name
        assert np.abs(image - expected).mean() < tolerance, case.name


def test_a_name_that_is_no_text_is_one_failed_unit(make_video, stages, tmp_path):
    good = make_video("good.mp4")
    (good.parent / "bad\udcff.mp4").write_bytes(good.read_bytes())
    rows = stages.run(stages.config())
    ends = {(row["source"], row["status"]) for row in rows}
    assert ends == {("good.mp4", "done"), ("bad\\udcff.mp4", "quarantined")}
    assert [row["reason"] for row in rows if row["reason"]] == [
        f"there is no {tmp_path}/videos/bad\\udcff.mp4"
    ]


@pytest.fixture
def everything(tmp_path, make_video, make_audio):
    """A folder with all cases, some of them under odd names, and the cases by kind."""
    videos = video_cases(tmp_path, make_video, make_audio)
    (tmp_path / "videos").rename(tmp_path / "made")
    videos += odd_names(".mp4", next(case.data for case in videos if case.name == "plain.mp4"))
    images = image_cases(tmp_path)
    images += odd_names(".jpg", encoded_image(".jpg", picture()))
    write(videos, tmp_path / "videos" / "films")
    write(images, tmp_path / "videos" / "photos")
    return videos, images


def files_outside(folder: Path, output: str) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file() and not path.is_relative_to(folder / output)}


def run(capfd, *words: str) -> str:
    """What a command that ends partial prints."""
    code = cli.main([*words, "decode.timeout_s=60", "decode.max_bytes=268435456"])
    printed = capfd.readouterr().err
    assert code == cli.PARTIAL, printed[-2000:]
    assert "\x1b[31m" not in printed
    assert "nexpected" not in printed
    return printed


def in_shards(output: str, kind: str, column: str) -> set[str]:
    shards = list(Dataset.read(output, kind=kind).shards())
    return {name for url in shards for name in pq.read_table(url, columns=[column])[column].to_pylist()}


def test_gwm_prepare_ends_all_videos_in_a_shard_or_in_quarantine(ray_local, everything, tmp_path, capfd):
    videos, _ = everything
    before = files_outside(tmp_path, "flow")
    output = str(tmp_path / "flow")
    words = (f"videos={tmp_path}/videos/films", f"output={output}")
    words += ("estimate_flow.estimator=dis", "decode.clip_frames=16", *few_workers.WORDS["prepare"])
    run(capfd, "prepare", *words)
    done, failed = in_shards(output, "flow", "video"), Dataset(url=output).quarantined()
    for record in failed:
        check_reason(record["reason"])
    quarantined = {record["source"] for record in failed}
    ends = {name: "partial" if name in done & quarantined else "done" for name in done}
    ends |= dict.fromkeys(quarantined - done, "quarantined")
    assert files_outside(tmp_path, "flow") == before

    shards = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in Path(output, "shards").iterdir()}
    attempts = {record["unit"]: record["attempts"] for record in failed}
    run(capfd, "prepare", *words, "retry_quarantined=true")
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in shards} == shards
    again = {record["unit"]: record["attempts"] for record in Dataset(url=output).quarantined()}
    assert again == {unit: 2 * count for unit, count in attempts.items()}
    counts = json.loads(Path(output, "summary.json").read_text())["units"]
    assert (counts["done"], counts["quarantined"]) == (0, len(again))
    check_outcomes("gwm prepare", videos, ends)


def test_gwm_segment_ends_all_inputs_in_a_row_or_in_quarantine(
    ray_local, everything, tiny_model, tmp_path, capfd
):
    videos, images = everything
    before = files_outside(tmp_path, "masks")
    output = str(tmp_path / "masks")
    words = (f"images={tmp_path}/videos", f"model={tiny_model}", f"output={output}", "write_png=true")
    run(capfd, "segment", *words, "anchor_frames=4", *few_workers.WORDS["segment"])
    rows = [row for url in Dataset(url=output).shards() for row in mask_rows(pq.read_table(url))]
    failed = Dataset(url=output).quarantined()
    for reason in [row.error for row in rows if row.error] + [record["reason"] for record in failed]:
        check_reason(reason)
    ends = {record["source"]: "quarantined" for record in failed}
    ends |= {row.source: "quarantined" if row.error else "done" for row in rows}
    wanted = {f"films/{case.name}" for case in videos} | {f"photos/{case.name}" for case in images}
    assert set(ends) == wanted
    check_outcomes(
        "gwm segment, images", images, {name[7:]: end for name, end in ends.items() if name[:7] == "photos/"}
    )
    assert files_outside(tmp_path, "masks") == before
    pictures = [path for path in Path(output, "png").rglob("*") if path.is_file()]
    assert len(pictures) == sum(row.error is None for row in rows)
