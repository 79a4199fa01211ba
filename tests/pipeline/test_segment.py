import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from gwm_model.config import RefineConfig
from pipeline.config import ReportConfig, SegmentConfig, TrackingConfig
from pipeline.dataset import Dataset
from pipeline.errors import GwmError
from pipeline.segment import segment
from pipeline.verify import verify


def fill(folder, make_video, make_frame_folder):
    make_video("clips/v.mp4", num_frames=20)
    make_frame_folder("folder", num_frames=10)
    for name in "abcde":
        picture = np.random.default_rng(ord(name)).integers(0, 255, (30, 40 + ord(name), 3), np.uint8)
        cv2.imwrite(str(folder / "videos" / f"{name}.jpg"), picture)
    (folder / "videos" / "bad.jpg").write_bytes(b"bad")
    (folder / "videos" / "text.mp4").write_text("no video")


def drawings(output):
    files = [*Path(output).rglob("*.mp4"), *Path(output).rglob("*.jpg")]
    return {str(path.relative_to(output)): path.read_bytes() for path in files}


def test_a_run_a_rerun_and_the_stages_alone_give_the_same_shards(
    ray_local, segment_stages, make_video, make_frame_folder, tmp_path, capsys
):
    fill(tmp_path, make_video, make_frame_folder)
    config = segment_stages.config(write_segments=True, write_overlays=True, report=ReportConfig())
    summary = segment(config)
    assert summary["units"] == {"done": 6, "skipped": 0, "quarantined": 1}
    assert (summary["images"], summary["errors"]) == (36, 1)
    assert summary == json.loads((tmp_path / "masks" / "summary.json").read_text())
    masks = segment_stages.masks(config)
    assert {frame for source, frame in masks if source == "clips/v.mp4"} == set(range(20))
    assert {frame for source, frame in masks if source == "folder"} == set(range(10))
    assert [source for (source, _), row in masks.items() if row.error] == ["bad.jpg"]
    manifest = Dataset(url=config.output).manifest()
    assert sum(entry.num_rows for entry in manifest) == 36

    drawn = drawings(config.output)
    assert sorted(drawn) == ["contact_sheet.jpg", "overlays/clips/v.mp4", "overlays/folder.mp4"]
    counts = {"written": 3, "skipped": 0, "failed": 1}
    where = f"{config.output}/overlays and {config.output}/contact_sheet.jpg"
    assert summary["overlays"] == counts | {"reason": "text.mp4: it is in quarantine", "look_at": where}
    assert capsys.readouterr().err.splitlines()[-1] == f"Look at {where}"
    assert summary["seconds"]["write_overlay"] > 0
    assert verify(config.output) == []

    before = {url: Path(url).read_bytes() for url in Dataset(url=config.output).shards()}
    report = (tmp_path / "masks/report.html").read_text()
    assert report.count("<figure") == 36
    assert report.count('src="data:image/webp') == 35 * 3  # of one there is no image
    assert all(words in report for words in ("text.mp4", "plan_chunks", "bad.jpg is not an image", "regions"))
    assert verify(config.output) == []
    again = segment(config)
    assert drawings(config.output) == drawn
    assert again["overlays"] == summary["overlays"] | {"written": 0, "skipped": 3}
    assert again["units"] == {"done": 0, "skipped": 6, "quarantined": 1}
    assert again["errors"] == 1
    assert before == {url: Path(url).read_bytes() for url in Dataset(url=config.output).shards()}
    assert (tmp_path / "masks/report.html").read_text() == report

    alone = segment_stages.config(write_segments=True, output=str(tmp_path / "alone"))
    segment_stages.run(alone)
    tables = [pq.read_table(url) for url in Dataset(url=alone.output).shards()]
    others = [pq.read_table(url) for url in before]
    assert sorted(table.num_rows for table in tables) == sorted(table.num_rows for table in others)
    assert segment_stages.masks(alone) == masks


def test_masks_of_the_crf_arrive_in_shards(ray_local, segment_stages, make_frame_folder, tmp_path):
    pytest.importorskip("pydensecrf", reason="the extra crf is not installed")
    make_frame_folder("folder", num_frames=10)
    (tmp_path / "videos/bad.jpg").write_bytes(b"bad")
    crf = RefineConfig(method="crf")
    config = segment_stages.config(refine=crf)
    summary = segment(config)
    assert summary["units"] == {"done": 3, "skipped": 0, "quarantined": 0}
    assert (summary["images"], summary["errors"]) == (11, 1)
    assert summary["seconds"]["refine_masks"] > 0
    alone = segment_stages.config(refine=crf, output=str(tmp_path / "alone"))
    segment_stages.run(alone)
    assert segment_stages.masks(config) == segment_stages.masks(alone)


def test_without_the_extra_of_the_crf_nothing_is_written(
    segment_stages, make_frame_folder, tmp_path, monkeypatch
):
    make_frame_folder("folder", num_frames=3)
    monkeypatch.setitem(sys.modules, "pydensecrf", None)  # as Python has a module that is not there
    with pytest.raises(GwmError, match=r'^refine.method=crf needs the extra crf: pip install "gwm\[crf\]"$'):
        segment(segment_stages.config(refine=RefineConfig(method="crf")))
    assert not (tmp_path / "masks").exists()


def test_another_model_in_the_same_place_is_refused(segment_stages, tmp_path, ray_local):
    (tmp_path / "videos").mkdir()
    cv2.imwrite(str(tmp_path / "videos" / "a.jpg"), np.zeros((20, 20, 3), np.uint8))
    Dataset.open(
        str(tmp_path / "masks"), kind="masks", config=segment_stages.config(batch_size=3), schema_version=1
    )
    with pytest.raises(GwmError, match="batch_size: there 3, now 8"):
        segment(segment_stages.config())


@pytest.mark.parametrize(
    ("values", "sentence"),
    [({"model": "nowhere"}, "no folder"), ({"images": "nothing"}, "no file or folder")],
)
def test_wrong_inputs_are_one_sentence_before_anything_is_written(segment_stages, tmp_path, values, sentence):
    (tmp_path / "videos").mkdir()
    cv2.imwrite(str(tmp_path / "videos" / "a.jpg"), np.zeros((20, 20, 3), np.uint8))
    values = {key: str(tmp_path / url) for key, url in values.items()}
    with pytest.raises(GwmError, match=sentence):
        segment(segment_stages.config(**values))
    assert not (tmp_path / "masks").exists()


def test_the_configuration_file_is_complete():
    from pipeline.load_config import load_config

    words = ["images=i", "model=m", "output=o"]
    config = load_config(SegmentConfig, str(Path(__file__).parents[2] / "conf/segment.yaml"), words)
    assert config == SegmentConfig(images="i", model="m", output="o", tracking=TrackingConfig())
