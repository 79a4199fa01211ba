import shutil

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from gwm_model.config import MergeConfig, RefineConfig
from gwm_model.flow_refine import explain_flow
from pipeline.config import EvaluateConfig, SegmentConfig
from pipeline.errors import GwmError, UnitError
from pipeline.flow_dataset import FrameReader, open_flow_dataset
from pipeline.inference import RegionModel, read_model_card
from pipeline.masks import decode_mask
from pipeline.model_card import pin
from pipeline.scenes import render_scene
from pipeline.score_plan import check_inputs
from pipeline.stages.load_chunk import load_chunk
from pipeline.stages.segment_images import SegmentImages
from pipeline.video_flow import VideoFlow, read_video_flow

WITH_FLOW = RefineConfig(method="none", use_flow=True)


def stored_flow(url: str, video: str) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Flow and its existence by frame, as training reads them."""
    dataset = open_flow_dataset(url)
    reader, found = FrameReader(dataset), {}
    for shard, first in zip(dataset.shards, dataset.first_ids(), strict=True):
        if shard.source == video:
            table = pq.read_table(dataset.dataset.shard_url(shard.unit), columns=["frame_index"])
            for row, number in enumerate(table["frame_index"].to_pylist()):
                frame = reader.read(int(first) + row)
                found[number] = (frame.flow, frame.has_flow)
    return found


def test_frames_have_the_flow_that_training_sees(rendered_flow):
    expected = stored_flow(rendered_flow, "1.mp4")
    read = read_video_flow(rendered_flow, "1.mp4", [7, 0, 9])
    for place, frame in enumerate((7, 0, 9)):
        assert np.array_equal(read.has_flow[place], expected[frame][1])
        np.testing.assert_allclose(read.flow[place], expected[frame][0], atol=0.01)
    assert read.has_flow.tolist() == [[True, True], [True, False], [False, True]]


def test_a_video_is_known_by_its_last_name_too(rendered_flow):
    there, elsewhere = (read_video_flow(rendered_flow, name, [3]) for name in ("0.mp4", "other/place/0"))
    assert np.array_equal(there.flow, elsewhere.flow)


def test_a_frame_that_the_dataset_left_out_has_no_flow(rendered_flow):
    read = read_video_flow(rendered_flow, "0.mp4", [4, 500])
    assert read.has_flow.tolist() == [[True, True], [False, False]]
    assert not read.flow[1].any()


def test_what_is_not_there_is_one_sentence(rendered_flow):
    with pytest.raises(GwmError, match=r"holds no video v\.mp4\."):
        read_video_flow(rendered_flow, "v.mp4", [0])
    with pytest.raises(UnitError, match=r"none of these frames of 0\.mp4"):
        read_video_flow(rendered_flow, "0.mp4", [500])


@pytest.mark.parametrize(("flow", "use_flow"), [(None, True), ("flow", False)])
def test_flow_and_its_use_belong_together(flow, use_flow):
    refine = RefineConfig(use_flow=use_flow)
    with pytest.raises(ValueError, match="give both or neither"):
        SegmentConfig(images="i", model="m", output="o", flow=flow, refine=refine)
    if use_flow:
        config = EvaluateConfig(dataset="images", data="d", model="m", output="o", refine=refine)
        with pytest.raises(GwmError, match="give both"):
            check_inputs(config)


def masks_of(segment_stages, **values):
    """Masks of all frames, by source and frame, and how many flows travelled."""
    config = segment_stages.config(**values)
    card = read_model_card(config.model)
    segment_images, found = SegmentImages(config, "cpu", 1), {}
    for row in segment_stages.plan(config):
        loaded = load_chunk(row, config, card)
        assert ("flow" in loaded) == (row["kind"] == "video" and config.flow is not None)
        done = segment_images(loaded)
        assert "flow" not in done
        for mask in done["masks"]:
            found[mask.source, mask.frame_index] = decode_mask(mask.mask_rle, mask.height_px, mask.width_px)
    return found


def test_masks_follow_the_videos_own_flow_however_it_is_cut(segment_stages, rendered_flow, tmp_path):
    videos = rendered_flow.rsplit("/", 1)[0] + "/videos"
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("0.mp4", "1.mp4"):
        shutil.copy(f"{videos}/{name}", folder / name)
    cv2.imwrite(str(folder / "still.png"), render_scene(2, num_frames=1).frames[0][..., ::-1])
    plain = masks_of(segment_stages)
    whole = masks_of(segment_stages, refine=WITH_FLOW, flow=rendered_flow, chunk_images=64)
    parts = masks_of(segment_stages, refine=WITH_FLOW, flow=rendered_flow, chunk_images=4)
    assert set(plain) == set(whole) == set(parts)
    assert np.array_equal(plain["still.png", None], whole["still.png", None])
    for key in whole:
        assert (whole[key] != parts[key]).mean() < 1e-3
    assert np.mean([(plain[key] != whole[key]).mean() for key in plain]) > 0.001


def test_a_model_explains_flow_on_the_grid_of_its_masks(tiny_model, rendered_flow):
    model = RegionModel(tiny_model, MergeConfig(), batch_size=4, device="cpu")
    images = torch.randint(
        0, 255, (2, 3, 32, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    masks, features = model.regions(images)
    rule = model.rule(masks, features)
    flow = read_video_flow(rendered_flow, "0.mp4", [2, 3])
    found = model.object_probability(masks, features, rule, flow)
    small = torch.nn.functional.interpolate(
        torch.from_numpy(flow.flow).float().flatten(0, 1), masks.shape[-2:], mode="bilinear", antialias=True
    )
    expected = explain_flow(
        rule.probability(masks, features),
        small.view(2, 2, 2, *masks.shape[-2:]),
        torch.from_numpy(flow.has_flow),
    )
    torch.testing.assert_close(found, expected)


def test_units_depend_on_the_flows_content_and_not_on_its_place(tiny_model, rendered_flow, tmp_path):
    (tmp_path / "link").symlink_to(rendered_flow)
    card = read_model_card(tiny_model)
    prints = [
        pin(
            SegmentConfig(
                images="i", model="m", output="o", flow=flow, refine=RefineConfig(use_flow=flow is not None)
            ),
            card,
        ).unit_fingerprint()
        for flow in (rendered_flow, f"{tmp_path}/link", None)
    ]
    assert prints[0] == prints[1] != prints[2]


def test_the_flow_survives_its_way_through_a_row(rendered_flow):
    read = read_video_flow(rendered_flow, "0.mp4", [0, 1])
    back = VideoFlow.of_row(read.to_row())
    assert back is not None
    assert np.array_equal(back.flow, read.flow)
    assert VideoFlow.of_row({"images": []}) is None
