"""Films of videos with their masks, from the stages alone."""

from pathlib import Path

import av
import numpy as np
import pytest

from pipeline import storage
from pipeline.dataset import Dataset
from pipeline.load_config import fingerprint
from pipeline.masks import MaskRow, encode_mask
from pipeline.overlay_files import contact_sheet_url, overlay_url
from pipeline.pictures import OBJECT_COLOUR, voc_palette
from pipeline.stages.plan_chunks import inputs_of
from pipeline.stages.write_overlay import FRAMES_AT_ONCE, draw_mask, write_overlay

TIMES_MS = [0, 40, 80, 300, 320, 1000, 1040, 1050, 1100, 1500, 1540, 1600]


def draw(config):
    """The rows of each input's film, by its source."""
    inputs = inputs_of(config.images, config.chunk_images)
    dataset = Dataset(url=config.output)
    return {row["source"]: list(write_overlay(row, config, dataset, "configuration")) for row in inputs}


def outcome(rows):
    assert all(row["status"] == "drawing" and 0 < row["num_frames"] <= FRAMES_AT_ONCE for row in rows[:-1])
    return rows[-1]["status"], sum(row["num_frames"] for row in rows)


def decoded(url):
    """Times and frames [T, H, W, 3] of a film."""
    with av.open(url) as container:
        frames = list(container.decode(video=0))
    return [frame.time for frame in frames], np.stack([frame.to_ndarray(format="rgb24") for frame in frames])


def test_a_film_has_the_videos_frames_at_their_times_each_with_its_mask(segment_stages, make_video):
    path = make_video("a b/clip.mov", num_frames=len(TIMES_MS), times_ms=TIMES_MS, height_px=96, width_px=128)
    config = segment_stages.config()
    segment_stages.run(config)
    assert outcome(draw(config)["a b/clip.mov"]) == ("written", len(TIMES_MS))
    times_s, frames = decoded(f"{config.output}/overlays/a b/clip.mov.mp4")
    assert np.allclose(times_s, np.array(TIMES_MS) / 1000, atol=1e-4)
    masks = segment_stages.masks(config)
    _, originals = decoded(str(path))
    for number, (frame, original) in enumerate(zip(frames, originals, strict=True)):
        others = [draw_mask(original, masks["a b/clip.mov", other]) for other in range(len(TIMES_MS))]
        difference = [np.abs(frame.astype(int) - other).mean() for other in others]
        assert difference[number] == min(difference) < 6


def test_a_film_is_made_once_and_of_equal_bytes(segment_stages, make_video):
    make_video("clip.mp4", num_frames=40)
    config = segment_stages.config()
    segment_stages.run(config)
    assert outcome(draw(config)["clip.mp4"]) == ("written", 40)
    url = Path(config.output, "overlays/clip.mp4")
    first = url.read_bytes()
    assert outcome(draw(config)["clip.mp4"]) == ("skipped", 0)
    url.unlink()
    draw(config)
    assert url.read_bytes() == first


@pytest.mark.parametrize(("rotation_deg", "size"), [(0, (48, 64)), (90, (64, 48))])
def test_a_film_stands_upright(segment_stages, make_video, rotation_deg, size):
    make_video("clip.mp4", num_frames=3, rotation_deg=rotation_deg)
    config = segment_stages.config()
    segment_stages.run(config)
    draw(config)
    assert decoded(f"{config.output}/overlays/clip.mp4")[1].shape[1:3] == size


def test_a_folder_of_frames_is_a_film_too_without_the_frames_that_cannot_be_read(
    segment_stages, make_frame_folder
):
    folder = make_frame_folder("walk", num_frames=12, height_px=47, width_px=63)
    (folder / "00004.png").write_bytes(b"broken")
    config = segment_stages.config()
    segment_stages.run(config)
    assert outcome(draw(config)["walk"]) == ("written", 11)
    times_s, frames = decoded(f"{config.output}/overlays/walk.mp4")
    assert np.allclose(times_s, [number / 24 for number in range(12) if number != 4], atol=1e-4)
    assert frames.shape[1] % 2 == frames.shape[2] % 2 == 0


def test_what_has_no_masks_gets_no_film_and_leaves_nothing_behind(segment_stages, make_video, tmp_path):
    make_video("clip.mp4", num_frames=4)
    (tmp_path / "videos" / "text.mp4").write_text("no video")
    config = segment_stages.config()
    rows = draw(config)  # nothing is segmented yet
    assert (rows["clip.mp4"][-1]["status"], rows["clip.mp4"][-1]["reason"]) == (
        "failed",
        "none of its frames has a mask",
    )
    segment_stages.run(config)
    assert rows["text.mp4"][-1]["status"] == "failed"
    assert draw(config)["text.mp4"][-1]["reason"] == "it is in quarantine"
    assert [path.name for path in Path(config.output, "overlays").rglob("*")] == ["clip.mp4"]


def test_a_film_shows_the_masks_that_there_are_and_is_made_anew_when_more_come(segment_stages, make_video):
    make_video("clip.mp4", num_frames=24)
    make_video("other.mp4", num_frames=4)
    config = segment_stages.config()
    rows = segment_stages.run(config)
    lost = next(row["unit"] for row in rows if row["source"] == "clip.mp4")
    storage.delete(Dataset(url=config.output).shard_url(lost))
    assert outcome(draw(config)["clip.mp4"]) == ("written", 16)
    assert len(decoded(f"{config.output}/overlays/clip.mp4")[0]) == 16

    segment_stages.plan(config)  # the lost chunk is to be done again
    assert not Path(config.output, "overlays/clip.mp4").exists()
    assert Path(config.output, "overlays/other.mp4").exists()
    segment_stages.run(config)
    assert outcome(draw(config)["clip.mp4"]) == ("written", 24)


def test_whether_films_are_made_is_no_part_of_the_masks(segment_stages):
    both = {fingerprint(segment_stages.config(write_overlays=value)) for value in (True, False)}
    assert len(both) == 1


def test_films_are_called_like_their_videos():
    names = ("my.mp4", "day 1/GOPRO.MP4", "a/b.mov", "walk")
    found = [overlay_url(name, "out").removeprefix("out/overlays/") for name in names]
    assert found == ["my.mp4", "day 1/GOPRO.MP4", "a/b.mov.mp4", "walk.mp4"]
    hostile = [
        overlay_url(name, "out") for name in ("../my.mp4", "/etc/my.mp4", "x" * 300 + ".mp4", "a//b.mp4")
    ]
    assert len(set(hostile)) == 4
    for url in hostile:
        assert url.startswith("out/overlays/~")
        assert url.endswith(".mp4")
    assert contact_sheet_url("out") == "out/contact_sheet.jpg"


def test_separate_objects_are_drawn_in_colours_of_their_own():
    image = np.full((60, 80, 3), 100, np.uint8)
    boxes = np.zeros((2, 60, 80), np.bool_)
    boxes[0, 10:50, 10:30], boxes[1, 10:50, 50:70] = True, True
    one = MaskRow(source="s", height_px=60, width_px=80, mask_rle=encode_mask(boxes.any(0)))
    several = MaskRow(
        source="s",
        height_px=60,
        width_px=80,
        mask_rle=one.mask_rle,
        object_ids=[1, 2],
        objects_rle=[encode_mask(box) for box in boxes],
    )
    plain, coloured = draw_mask(image, one).astype(int), draw_mask(image, several).astype(int)
    assert (plain[30, 20] == plain[30, 60]).all()
    assert np.argmax(plain[30, 20]) == np.argmax(OBJECT_COLOUR)
    for number, column in ((1, 20), (2, 60)):
        assert np.argmax(coloured[30, column]) == np.argmax(voc_palette()[number])
    assert (plain[5, 5] == coloured[5, 5]).all()
    assert plain[5, 5, 0] < 100
