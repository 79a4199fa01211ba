"""The object columns: read back by pycocotools and PIL, the same however often a video is segmented."""

from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools import mask as coco

from pipeline.dataset import Dataset
from pipeline.masks import MaskRow, decode_mask, encode_mask, indexed_objects
from pipeline.metrics import object_jaccards
from pipeline.objects import ImageObjects, VideoObjects
from pipeline.scenes import render_scene
from pipeline.segment import segment
from pipeline.stages.load_chunk import load_chunk
from pipeline.stages.segment_images import SegmentImages


def objects_of(row: MaskRow) -> list[np.ndarray]:
    """The masks of a row's objects, as any COCO reader sees them."""
    size = [row.height_px, row.width_px]
    return [coco.decode({"size": size, "counts": rle}).astype(bool) for rle in row.objects_rle]


def test_an_images_objects_are_its_components_by_area():
    mask = np.zeros((40, 60), bool)
    mask[2:8, 2:8] = mask[20:36, 20:50] = mask[0, 59] = True
    objects = ImageObjects()
    objects.add(np.zeros((3, 8, 8), np.uint8), np.zeros((1, 2, 2), np.float32), mask)
    (columns,) = objects.columns()
    assert columns["object_ids"] == [1, 2]
    found = objects_of(MaskRow(source="a.jpg", height_px=40, width_px=60, **columns))
    assert [int(pixels.sum()) for pixels in found] == [480, 36]
    assert not (found[0] | found[1])[0, 59]


def test_a_videos_objects_follow_the_masks_at_the_sources_size():
    scene = render_scene(6, num_frames=10, num_objects=2)
    objects = VideoObjects()
    for frame, mask in zip(scene.frames, scene.masks, strict=True):
        small = np.ascontiguousarray(
            cv2.resize(frame, (144, 80), interpolation=cv2.INTER_AREA).transpose(2, 0, 1)
        )
        objects.add(small, small[:, ::8, ::8].astype(np.float32), mask)
    rows = [MaskRow(source="v", height_px=120, width_px=216, **columns) for columns in objects.columns()]
    assert [row.object_ids for row in rows] == [[1, 2]] * 10
    numbers = np.stack([indexed_objects(row) for row in rows])
    assert (numbers > 0)[scene.masks].mean() > 0.999
    assert not (numbers > 0)[~scene.masks].any()
    assert min(object_jaccards(numbers, scene.object_ids)) > 0.99


def test_objects_beyond_what_an_indexed_picture_holds_are_left_out():
    pixels = [np.eye(4, dtype=bool), ~np.eye(4, dtype=bool)]
    row = MaskRow(
        source="v", height_px=4, width_px=4, object_ids=[7, 256], objects_rle=[encode_mask(m) for m in pixels]
    )
    assert (indexed_objects(row) == 7 * np.eye(4)).all()


@pytest.mark.parametrize("kind", ["video", "frames"])
def test_a_video_is_one_unit_that_is_loaded_in_parts(segment_stages, make_video, make_frame_folder, kind):
    make = make_video if kind == "video" else make_frame_folder
    path = make("v.mp4" if kind == "video" else "v", num_frames=20)
    config = segment_stages.config(chunk_images=6, write_objects=True, write_png=True)
    if kind == "frames":
        (path / "00004.png").write_bytes(b"broken")
    (row,) = segment_stages.plan(config)
    stage = SegmentImages(config, "cpu", 1)
    loaded = load_chunk(row, config, stage._model.card)
    assert "images" not in loaded
    done = stage(loaded)
    masks = done["masks"]
    assert [mask.frame_index for mask in masks] == list(range(20))
    broken = [4] if kind == "frames" else []
    assert [mask.frame_index for mask in masks if mask.error] == broken
    assert all(mask.objects_rle is None if mask.error else mask.objects_rle is not None for mask in masks)
    assert len(done["pictures"]) == 20 - len(broken)
    plain = segment_stages.config(chunk_images=6, output=str(path) + "-plain")
    (*_, segmented) = [
        SegmentImages(plain, "cpu", 1)(load_chunk(r, plain, stage._model.card))
        for r in segment_stages.plan(plain)
    ]
    assert [m.mask_rle for m in segmented["masks"]] == [m.mask_rle for m in masks][-len(segmented["masks"]) :]


def test_a_run_writes_objects_that_other_tools_read_and_a_rerun_the_same_bytes(
    ray_local, segment_stages, make_video, tmp_path
):
    make_video("v.mp4", num_frames=20)
    for name, side in (("a.jpg", 50), ("b.jpg", 70)):
        picture = np.random.default_rng(side).integers(0, 255, (30, side, 3), np.uint8)
        cv2.imwrite(str(tmp_path / "videos" / name), cv2.GaussianBlur(picture, (15, 15), 5))
    config = segment_stages.config(write_objects=True, write_png=True)
    assert segment(config)["units"] == {"done": 2, "skipped": 0, "quarantined": 0}
    masks = segment_stages.masks(config)
    assert len(masks) == 22
    assert any(row.object_ids for row in masks.values())
    for (source, frame), row in masks.items():
        key = source if frame is None else f"{source}/{frame:05d}"
        picture = Image.open(BytesIO((tmp_path / "masks" / "objects" / f"{key}.png").read_bytes()))
        assert picture.mode == "P"
        assert picture.getpalette()[:12] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]
        numbers = np.asarray(picture)
        foreground = decode_mask(row.mask_rle, row.height_px, row.width_px)
        assert set(np.unique(numbers)) - {0} == set(row.object_ids)
        assert foreground[numbers > 0].all()
        for number, pixels in zip(row.object_ids, objects_of(row), strict=True):
            assert (pixels == (numbers == number)).all()

    shards = {Path(url).name: Path(url).read_bytes() for url in Dataset(url=config.output).shards()}
    killed = max(shards, key=lambda name: len(shards[name]))
    (tmp_path / "masks" / "shards" / killed).unlink()
    assert segment(config)["units"] == {"done": 1, "skipped": 1, "quarantined": 0}
    alone = segment_stages.config(output=str(tmp_path / "alone"), write_objects=True, write_png=True)
    segment_stages.run(alone)
    assert {Path(url).name: Path(url).read_bytes() for url in Dataset(url=config.output).shards()} == shards
    assert segment_stages.masks(alone) == masks
    assert "objects_rle" in pq.read_schema(Path(config.output) / "shards" / killed).names
