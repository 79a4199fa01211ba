"""Which rows of a dataset are shown, and what their pictures are: no Ray."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipeline.config import DecodeLimits
from pipeline.dataset import Dataset
from pipeline.formats.shards import Inputs
from pipeline.masks import MaskRow, encode_mask, mask_table
from pipeline.records import decode_image
from pipeline.report.draw import draw_samples
from pipeline.report.page import Sample
from pipeline.report.samples import (
    chosen_masks,
    parts,
    same_frames,
    side_px,
    strip_picture,
    strips_of_masks,
    wanted_mask,
)
from pipeline.report.undone import quarantined, without_mask

LIMITS = DecodeLimits()


def mask_row(source: str, frame_index: int | None) -> MaskRow:
    rle = encode_mask(np.eye(4, dtype=bool))
    return MaskRow(
        source=source, frame_index=frame_index, height_px=4, width_px=4, mask_rle=rle, foreground_score=0.9
    )


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """100 frames of one video in shards of 10, and one shard of 50 images."""
    dataset = Dataset(url=str(tmp_path / "masks"))
    shards = {f"v{n}": [mask_row("v.mp4", 10 * n + i) for i in range(10)] for n in range(10)}
    shards["images"] = [mask_row(f"{i:02d}.jpg", None) for i in range(50)]
    for unit, rows in shards.items():
        dataset.write_shard(unit, mask_table(rows, source=rows[0].source, segments=False))
    dataset.write_manifest()
    return dataset


def test_samples_are_spread_evenly_and_always_the_same(dataset: Dataset) -> None:
    rows = chosen_masks(dataset, 15)
    assert [row.source for row in rows].count("v.mp4") == 10
    assert {(row.frame_index or 0) // 10 for row in rows if row.source == "v.mp4"} == set(range(10))
    assert [row.source for row in rows if row.source != "v.mp4"] == [
        f"{i}.jpg" for i in ("05", 15, 25, 35, 45)
    ]
    assert chosen_masks(dataset, 15) == rows
    assert len(chosen_masks(dataset, 10_000)) == 150
    assert chosen_masks(Dataset(url=f"{dataset.url}/nothing"), 5) == []


def test_only_the_shards_that_are_shown_are_read(dataset: Dataset) -> None:
    (row,) = chosen_masks(dataset, 1)
    for url in dataset.shards():
        if not url.endswith("/v2.parquet"):
            Path(url).unlink()
    assert chosen_masks(dataset, 1) == [row]
    assert row.frame_index in range(20, 30)


def test_the_same_frames_are_found_in_another_dataset(dataset: Dataset) -> None:
    rows = [mask_row("v.mp4", 3), mask_row("v.mp4", 98), mask_row("w.mp4", 0)]
    assert set(same_frames(dataset, rows)) == {("v.mp4", 3), ("v.mp4", 98)}


def test_more_samples_have_smaller_pictures_and_few_frames_are_decoded_at_a_time() -> None:
    sides = [side_px(count) for count in (1, 100, 101, 1000, 1001, 10_000)]
    assert sides == [480, 480, 320, 320, 160, 160]
    assert [range(20)[part] for part in parts(20)] == [range(16), range(16, 20)]


def drawn(config: Any, num_samples: int = 100, spec: str | None = None) -> dict[str, Sample]:
    """The samples of a mask dataset with their pictures, by title."""
    rows = chosen_masks(Dataset(url=config.output), num_samples)
    strips = strips_of_masks(rows, Inputs(spec or config.images, LIMITS), wanted_mask)
    shown = [strip for strip in strips if min(strip.wanted[0].size)]
    found = [draw_samples({"strip": strip}, side_px=480, limits=LIMITS, flow=config.flow) for strip in shown]
    return {sample.title: sample for row in found for sample in row["samples"]}


def pictures(sample: Sample) -> dict[str, np.ndarray | None]:
    return {title: None if data is None else decode_image(data) for title, data in sample.pictures.items()}


@pytest.fixture
def masks(segment_stages: Any, make_video: Any, make_frame_folder: Any, tmp_path: Path) -> Any:
    """Masks of a video, a folder of frames, an image and a broken one."""
    make_video("clips/v.mp4", num_frames=20)
    make_frame_folder("folder", num_frames=10)
    image = np.full((600, 1200, 3), (200, 40, 40), np.uint8)
    cv2.imwrite(str(tmp_path / "videos/big.png"), image)
    (tmp_path / "videos/bad.jpg").write_bytes(b"bad")
    config = segment_stages.config(write_segments=True, write_objects=True)
    segment_stages.run(config)
    Dataset(url=config.output).write_manifest()
    return config


def test_images_are_read_again_and_shown_with_what_was_made_of_them(masks: Any) -> None:
    samples = drawn(masks)
    assert len(samples) == 31
    shown = pictures(samples["big.png"])
    assert list(shown) == ["image", "regions", "mask"] or list(shown) == [
        "image",
        "regions",
        "objects",
        "mask",
    ]
    assert {picture.shape for picture in shown.values() if picture is not None} == {(240, 480, 3)}
    assert np.abs(shown["image"].reshape(-1, 3).mean(0) - (40, 40, 200)).max() < 3
    frame = pictures(samples["clips/v.mp4, frame 7"])["image"]
    capture = cv2.VideoCapture(str(Path(masks.images, "clips/v.mp4")))
    frames = [capture.read()[1][..., ::-1] for _ in range(20)]
    distances = [np.abs(frame.astype(float) - other).mean() for other in frames]
    assert int(np.argmin(distances)) == 7
    folder = pictures(samples["folder, frame 9"])["image"]
    assert folder.shape == (48, 64, 3)


def test_flow_is_shown_where_there_is_one(
    masks: Any, stages: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = stages.config(videos=str(Path(masks.images, "clips")), output=str(tmp_path / "flow"))
    Dataset.open(flow.output, kind="flow", config=flow, schema_version=1)
    stages.run(flow)
    Dataset(url=flow.output).write_manifest()
    object.__setattr__(masks, "flow", flow.output)
    rows = [row for row in chosen_masks(Dataset(url=masks.output), 100) if row.source == "clips/v.mp4"]
    strips = strips_of_masks(rows, Inputs(masks.images, LIMITS), wanted_mask)
    found = [draw_samples({"strip": strip}, side_px=480, limits=LIMITS, flow=flow.output) for strip in strips]
    has_flow = {s.frame_index: s.pictures["flow"] is not None for row in found for s in row["samples"]}
    assert has_flow == {index: index < 19 for index in range(20)}


def test_an_image_that_is_gone_is_said_to_be(masks: Any) -> None:
    Path(masks.images, "big.png").unlink()
    sample = drawn(masks)["big.png"]
    assert sample.pictures == {}
    assert "there is no" in sample.note
    assert "big.png" in sample.note


def test_images_of_a_list_are_found(masks: Any, tmp_path: Path) -> None:
    """A list names images by any path; a row has the list's name for it."""
    (tmp_path / "list.txt").write_text(f"videos/big.png\n{tmp_path}/videos/clips/v.mp4\n")
    inputs = Inputs(str(tmp_path / "list.txt"), LIMITS)
    absolute = f"{tmp_path}/videos/clips/v.mp4"
    assert inputs.frame_list([mask_row("videos/big.png", None)])[0].urls == (f"{tmp_path}/videos/big.png",)
    assert inputs.frame_list([mask_row(absolute.lstrip("/"), 4)])[0].urls == (absolute,)


def test_what_has_no_mask_is_listed_with_the_reason(masks: Any) -> None:
    dataset = Dataset(url=masks.output)
    dataset.quarantine("u", source="x.mp4", stage="plan_chunks", error="it has no frame")
    Path(dataset.quarantine_url("v")).write_text("[]")
    first, second = quarantined(dataset)
    assert (first.source, first.stage, first.reason) == ("x.mp4", "plan_chunks", "it has no frame")
    assert "damaged" in second.reason
    (broken,) = without_mask(dataset, 1)
    assert broken.source == "bad.jpg"
    assert "is not an image" in broken.reason
    assert without_mask(dataset, 0) == []


def test_the_strip_has_a_row_for_each_input_whose_pictures_are_all_there(masks: Any) -> None:
    samples = [*drawn(masks).values(), Sample(name="none", pictures={})]
    strip = cv2.imdecode(np.frombuffer(strip_picture(samples) or b"", np.uint8), cv2.IMREAD_COLOR)
    assert strip.shape[0] == 3 * 120 + 2 * 4
    assert strip_picture([replace(samples[0], pictures={})]) is None
