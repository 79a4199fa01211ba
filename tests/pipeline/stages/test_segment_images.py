import cv2
import numpy as np
import pytest
import torch

from gwm_model import load_segmenter, merge_regions
from gwm_model.config import RefineConfig
from gwm_model.merge import choose_foreground
from gwm_model.refine import guided_upsample
from pipeline.config import SegmentConfig
from pipeline.inference import read_model_card
from pipeline.masks import decode_mask
from pipeline.scenes import render_scene
from pipeline.stages.load_chunk import load_chunk
from pipeline.stages.segment_images import SegmentImages, object_masks


def rows_of(stages, config):
    card = read_model_card(config.model)
    segment_images = SegmentImages(config, "cpu", 1)
    return [segment_images(load_chunk(row, config, card)) for row in stages.plan(config)]


def masks_of(rows):
    return [mask for row in rows for mask in row["masks"]]


def write_pictures(folder, shapes):
    folder.mkdir(parents=True, exist_ok=True)
    for number, shape in enumerate(shapes):
        picture = np.random.default_rng(number).integers(0, 255, (*shape, 3), np.uint8)
        cv2.imwrite(str(folder / f"img_{chr(97 + number)}.png"), cv2.GaussianBlur(picture, (7, 7), 3))


def test_masks_agree_with_the_model_applied_by_hand(segment_stages, tmp_path):
    write_pictures(tmp_path / "videos", [(32, 48)] * 3)
    (row,) = rows_of(segment_stages, segment_stages.config())
    segmenter = load_segmenter(segment_stages.model)
    for number, mask in enumerate(row["masks"]):
        picture = cv2.imread(str(tmp_path / "videos" / f"img_{chr(97 + number)}.png"))[..., ::-1]
        with torch.inference_mode():
            logits, features = segmenter.segment(torch.from_numpy(picture.transpose(2, 0, 1).copy())[None])
        regions = logits.softmax(1)
        labels = merge_regions(regions, features)
        object_is = choose_foreground(regions, labels)
        at_source = torch.nn.functional.interpolate(regions, (32, 48), mode="bilinear", align_corners=False)
        expected = at_source[0, labels[0] == object_is[0]].sum(0) > 0.5
        assert (decode_mask(mask.mask_rle, 32, 48) == expected.numpy()).mean() > 0.999


def test_a_refined_mask_is_the_guided_filters_along_the_images_edges(segment_stages, tmp_path):
    (tmp_path / "videos").mkdir()
    picture = render_scene(1, num_frames=1).frames[0]
    height, width = picture.shape[:2]
    cv2.imwrite(str(tmp_path / "videos" / "img_a.png"), picture[..., ::-1])
    refine = RefineConfig(method="guided_filter")
    config = segment_stages.config(refine=refine)
    (row,) = rows_of(segment_stages, config)
    assert not row["pictures"]
    (chunk,) = [load_chunk(row, config, read_model_card(config.model)) for row in segment_stages.plan(config)]
    segmenter = load_segmenter(segment_stages.model)
    with torch.inference_mode():
        logits, features = segmenter.segment(torch.from_numpy(chunk["images"]))
    regions = logits.softmax(1)
    labels = merge_regions(regions, features)
    is_object = labels[0] == choose_foreground(regions, labels)[0]
    guide = torch.from_numpy(picture.transpose(2, 0, 1).copy())[None].float() / 255
    expected = guided_upsample(regions[:, is_object].sum(1, keepdim=True), guide, refine)[0, 0] > 0.5
    found = decode_mask(row["masks"][0].mask_rle, height, width)
    assert (found == expected.numpy()).mean() > 0.99  # the guide travels as JPEG
    (plain,) = masks_of(rows_of(segment_stages, segment_stages.config()))
    assert (found != decode_mask(plain.mask_rle, height, width)).mean() > 0.001


def test_masks_have_the_sources_size_and_their_numbers_agree(segment_stages, tmp_path):
    shapes = [(64, 96), (33, 21), (8, 90)]
    write_pictures(tmp_path / "videos", shapes)
    masks = masks_of(rows_of(segment_stages, segment_stages.config(write_segments=True)))
    for mask, shape in zip(masks, shapes, strict=True):
        assert (mask.height_px, mask.width_px, mask.frame_index) == (*shape, None)
        pixels = decode_mask(mask.mask_rle, *shape)
        assert mask.area_fraction == pytest.approx(pixels.mean())
        assert mask.foreground_score == 0.0 if not pixels.any() else 0.5 < mask.foreground_score <= 1.0
        regions = [decode_mask(rle, *shape) for rle in mask.segments_rle]
        assert len(regions) == 3
        assert (np.sum(regions, axis=0) == 1).all()


def test_errors_keep_their_place(segment_stages, tmp_path):
    write_pictures(tmp_path / "videos", [(20, 20)] * 3)
    (tmp_path / "videos" / "img_b.png").write_bytes(b"broken")
    masks = masks_of(rows_of(segment_stages, segment_stages.config()))
    assert [mask.source for mask in masks] == ["img_a.png", "img_b.png", "img_c.png"]
    assert [mask.error is None for mask in masks] == [True, False, True]
    assert masks[1].mask_rle is None


def test_a_chunk_of_broken_images_only_is_still_rows(segment_stages, tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.png").write_bytes(b"broken")
    (mask,) = masks_of(rows_of(segment_stages, segment_stages.config()))
    assert mask.error is not None


@pytest.mark.parametrize("kind", ["video", "frames"])
def test_a_videos_masks_do_not_depend_on_how_it_is_cut_into_chunks(
    segment_stages, make_video, make_frame_folder, kind
):
    """Labels and object come from the anchors alone: one chunk or five, in any order, give the same masks."""
    if kind == "video":
        make_video("v.mp4", num_frames=20)
    else:
        make_frame_folder("v", num_frames=20)
    whole = masks_of(rows_of(segment_stages, segment_stages.config(chunk_images=64)))
    parts = masks_of(rows_of(segment_stages, segment_stages.config(chunk_images=4)))
    assert len(whole) == len(parts) == 20
    assert [mask.frame_index for mask in parts] == list(range(20))
    shape = (whole[0].height_px, whole[0].width_px)
    for left, right in zip(whole, parts, strict=True):
        differing = decode_mask(left.mask_rle, *shape) != decode_mask(right.mask_rle, *shape)
        assert differing.mean() < 1e-3


def test_one_worker_keeps_two_videos_apart(segment_stages, make_video):
    make_video("a.mp4", num_frames=16, height_px=48, width_px=64)
    make_video("b.mp4", num_frames=16, height_px=40, width_px=80)
    config = segment_stages.config(chunk_images=4)
    card = read_model_card(config.model)
    chunks = [load_chunk(row, config, card) for row in segment_stages.plan(config)]
    together = SegmentImages(config, "cpu", 1)
    for chunk in (*chunks[::2], *chunks[1::2]):
        alone = SegmentImages(config, "cpu", 1)(dict(chunk))
        assert together(dict(chunk))["masks"] == alone["masks"]


def test_values_that_are_not_finite_are_a_failed_unit_and_not_an_empty_mask(
    segment_stages, tmp_path, monkeypatch
):
    write_pictures(tmp_path / "videos", [(20, 20)])
    config = segment_stages.config()
    card = read_model_card(config.model)
    (chunk,) = [load_chunk(row, config, card) for row in segment_stages.plan(config)]
    segment_images = SegmentImages(config, "cpu", 1)
    with torch.no_grad():
        for weights in segment_images._model._segmenter.parameters():
            weights.fill_(float("nan"))
    row = segment_images(chunk)
    assert row["status"] == "failed"
    assert "not finite" in row["failure"]


def test_convention_a_pixel_belongs_to_the_object_above_one_half():
    regions = torch.tensor([[[0.5, 0.4]], [[0.3, 0.35]], [[0.2, 0.25]]])
    config = SegmentConfig(
        images="i", model="m", output="o", write_segments=True, refine=RefineConfig(method="none")
    )
    (mask,) = object_masks(regions[None], regions[None, 1:].sum(1), [(1, 2)], [], config)
    assert decode_mask(mask["mask_rle"], 1, 2).tolist() == [[False, True]]
    assert mask["foreground_score"] == pytest.approx(0.6)
    assert mask["area_fraction"] == 0.5
    assert decode_mask(mask["segments_rle"][0], 1, 2).all()
