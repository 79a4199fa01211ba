from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.config import DecodeConfig, EvaluateConfig, PrepareConfig, SegmentConfig, TrainConfig
from pipeline.dataset import Dataset
from pipeline.dry_run import describe
from pipeline.errors import GwmError
from pipeline.scenes import write_video


@pytest.fixture
def flow(tmp_path: Path) -> Dataset:
    config = PrepareConfig(videos="in", output="out")
    dataset = Dataset.open(str(tmp_path / "flow"), kind="flow", config=config, schema_version=1)
    entry = dataset.write_shard("u", pa.table({"x": [1, 2, 3]}).replace_schema_metadata({"source": "a"}))
    dataset.quarantine("v", source="b", stage="decode_clip", error="broken")
    dataset.write_manifest([entry])
    return dataset


def test_prepare_counts_sources_and_units(flow: Dataset, tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4", "seq/0.jpg"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"12")
    told = describe(PrepareConfig(videos=str(tmp_path / "in"), output=flow.url))
    assert told["sources"] == {"frames": 1, "video": 2}
    assert told["bytes"] == 6
    assert told["units"] == {"done": 1, "quarantined": 1, "left": 0}
    assert told["planned"]["counted_by"] == "the headers of all videos, 3 of which cannot be read"


def test_what_is_left_and_how_long_it_takes(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (100, 32, 48, 3), dtype=np.uint8)
    (tmp_path / "in").mkdir()
    write_video(tmp_path / "in" / "a.mp4", frames)
    config = PrepareConfig(
        videos=str(tmp_path / "in"), output=str(tmp_path / "out"), decode=DecodeConfig(clip_frames=10)
    )
    told = describe(config)
    assert told["planned"] == {"units": 10, "frames": 100, "counted_by": "the headers of all videos"}
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    dataset = Dataset.open(config.output, kind="flow", config=config, schema_version=1)
    for name in "abcde":
        dataset.write_shard(name, pa.table({"x": [1]}).replace_schema_metadata({"source": "a"}))
    rest = describe(config)
    assert rest["units"] == {"done": 5, "quarantined": 0, "left": 5}
    assert rest["estimate"]["seconds"] == pytest.approx(told["estimate"]["seconds"] / 2, abs=1)


def test_train_counts_frames(flow: Dataset, tmp_path: Path) -> None:
    told = describe(TrainConfig(flow=flow.url, output=str(tmp_path / "model"), num_steps=7))
    assert (told["shards"], told["frames_in_manifest"], told["steps"], told["resumes"]) == (1, 3, 7, False)
    assert told["steps_left"] == 7
    assert told["estimate"]["seconds"] > 0
    assert not (tmp_path / "model").exists()


def test_segment_and_evaluate_name_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"1")
    nowhere, out = str(tmp_path / "nowhere"), str(tmp_path / "out")
    with pytest.raises(GwmError, match=r"model=.*/nowhere: there is nothing"):
        describe(SegmentConfig(images=str(tmp_path), model=nowhere, output=out))
    with pytest.raises(GwmError, match=r"masks=.*/nowhere: there is nothing"):
        describe(EvaluateConfig(dataset="images", data=str(tmp_path), masks=nowhere, output=out))
    told = describe(EvaluateConfig(dataset="images", data=str(tmp_path), masks=str(tmp_path), output=out))
    assert told == {
        "command": "evaluate",
        "dataset": "images",
        "data": str(tmp_path),
        "masks": str(tmp_path),
        "output": out,
    }
