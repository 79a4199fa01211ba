import json

import numpy as np
from pycocotools.coco import COCO

from pipeline.config import SegmentConfig
from pipeline.dataset import Dataset
from pipeline.masks import MASK_SCHEMA_VERSION, MaskRow, encode_mask, mask_table
from tests.pipeline.formats.conftest import decoded, exported


def test_pycocotools_reads_the_same_masks(make_masks, photos, videos, tmp_path):
    masks, rows = make_masks()
    summary = exported("coco", tmp_path / "coco.json", masks=masks)
    assert summary["images"] == 22
    assert summary["errors"] == 1
    truth = COCO(str(tmp_path / "coco.json"))
    assert [category["name"] for category in truth.loadCats(truth.getCatIds())] == ["object"]
    names = {
        (source if frame is None else f"{source}/{frame:05d}.jpg"): row
        for (source, frame), row in rows.items()
        if row.error is None
    }
    images = {image["file_name"]: image for image in truth.loadImgs(truth.getImgIds())}
    assert images.keys() == names.keys()
    assert images["clips/v.mp4/00003.jpg"]["frame_index"] == 3
    for name, row in names.items():
        mask = decoded(row)
        assert (images[name]["height"], images[name]["width"]) == mask.shape
        found = truth.loadAnns(truth.getAnnIds(imgIds=images[name]["id"]))
        assert len(found) == mask.any()
        for annotation in found:
            assert np.array_equal(truth.annToMask(annotation), mask)
            assert annotation["area"] == mask.sum()
            assert annotation["bbox"] == box_of(mask)


def box_of(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]


def test_frames_have_their_files_names_where_these_are_known(make_masks, videos, tmp_path):
    masks, _ = make_masks()
    exported("coco", tmp_path / "coco.json", masks=masks, images=str(videos))
    names = {image["file_name"] for image in json.loads((tmp_path / "coco.json").read_text())["images"]}
    assert {f"horse/{5 * number:05d}.jpg" for number in range(9)} < names


def test_an_empty_mask_is_an_image_without_annotation_and_reruns_write_the_same(tmp_path):
    config = SegmentConfig(images="i", model="m", output=str(tmp_path / "masks"))
    dataset = Dataset.open(config.output, kind="masks", config=config, schema_version=MASK_SCHEMA_VERSION)
    empty = MaskRow(
        source="a.jpg",
        height_px=3,
        width_px=4,
        mask_rle=encode_mask(np.zeros((3, 4), bool)),
        area_fraction=0.0,
        foreground_score=0.0,
    )
    dataset.write_shard("u", mask_table([empty], source="a.jpg", segments=False))
    written = []
    for _ in range(2):
        exported("coco", tmp_path / "coco.json", masks=config.output)
        written.append((tmp_path / "coco.json").read_bytes())
    assert written[0] == written[1]
    truth = json.loads(written[0])
    assert (len(truth["images"]), truth["annotations"]) == (1, [])
