import json

import cv2
import numpy as np
import pytest
import torch

from gwm_model import choose_foreground, load_segmenter, merge_regions
from gwm_model.config import RefineConfig
from gwm_model.crf import crf_upsample
from pipeline.inference import read_model_card
from pipeline.masks import decode_mask
from pipeline.scenes import render_scene
from pipeline.stages.load_chunk import load_chunk
from pipeline.stages.refine_masks import refine_masks
from pipeline.stages.segment_images import SegmentImages

pytest.importorskip("pydensecrf", reason="the extra crf is not installed")


def segmented(stages, config):
    """The chunks' rows as refine_masks receives them."""
    card = read_model_card(config.model)
    segment_images = SegmentImages(config, "cpu", 1)
    return [segment_images(load_chunk(row, config, card)) for row in stages.plan(config)]


@pytest.fixture
def scenes(tmp_path):
    """Three rendered pictures, the second of which cannot be read."""
    (tmp_path / "videos").mkdir()
    pictures = [render_scene(seed, num_frames=1).frames[0] for seed in (1, 2, 3)]
    for name, picture in zip("abc", pictures, strict=True):
        cv2.imwrite(str(tmp_path / f"videos/img_{name}.png"), picture[..., ::-1])
    (tmp_path / "videos/img_b.png").write_bytes(b"broken")
    return pictures


def test_a_mask_is_the_crfs_of_all_regions_merged_afterwards(segment_stages, scenes):
    config = segment_stages.config(refine=RefineConfig(method="crf"), write_segments=True)
    (row,) = segmented(segment_stages, config)
    assert "masks" not in row
    assert row["regions"].shape[:2] == (2, 3)
    done = refine_masks(row, config)
    assert not {"regions", "labels", "object_is", "pictures"} & set(done)
    assert done["seconds_refine_masks"] > 0
    assert [mask.error is None for mask in done["masks"]] == [True, False, True]
    segmenter, card = load_segmenter(segment_stages.model), read_model_card(config.model)
    (chunk,) = [load_chunk(planned, config, card) for planned in segment_stages.plan(config)]
    with torch.inference_mode():
        logits, features = segmenter.segment(torch.from_numpy(chunk["images"]))
    regions = logits.softmax(1)
    labels = merge_regions(regions, features)
    object_is = choose_foreground(regions, labels)
    for number, picture, mask in zip((0, 1), scenes[::2], done["masks"][::2], strict=True):
        ground = torch.from_numpy(picture.transpose(2, 0, 1).copy())[None].float() / 255
        refined = crf_upsample(regions[number : number + 1], ground)[0]
        expected = (refined[labels[number] == object_is[number]].sum(0) > 0.5).numpy()
        found = decode_mask(mask.mask_rle, *picture.shape[:2])
        assert (found == expected).mean() > 0.98  # the ground travels as JPEG
        owner = refined.argmax(0).numpy()
        segments = [decode_mask(rle, *picture.shape[:2]) for rle in mask.segments_rle]
        assert np.mean([(segments[k] == (owner == k)).mean() for k in range(3)]) > 0.98


def test_pictures_stay_for_a_stage_that_writes_them(segment_stages, scenes):
    config = segment_stages.config(refine=RefineConfig(method="crf"), write_png=True)
    (row,) = segmented(segment_stages, config)
    assert len(refine_masks(row, config)["pictures"]) == 2


def test_a_chunk_of_broken_images_only_is_still_rows(segment_stages, tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.png").write_bytes(b"broken")
    config = segment_stages.config(refine=RefineConfig(method="crf"))
    (row,) = segmented(segment_stages, config)
    (mask,) = refine_masks(row, config)["masks"]
    assert mask.error is not None


def test_other_rows_pass_and_a_picture_that_cannot_be_read_fails_its_unit(segment_stages, scenes):
    config = segment_stages.config(refine=RefineConfig(method="crf"))
    skipped = {"status": "skipped", "unit": "u"}
    assert refine_masks(skipped, config) == skipped
    (row,) = segmented(segment_stages, config)
    failed = refine_masks({**row, "pictures": [b"", b""]}, config)
    assert failed["status"] == "failed"
    assert json.loads(failed["failure"])["stage"] == "refine_masks"
