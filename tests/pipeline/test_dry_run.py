from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.config import EvaluateConfig, PrepareConfig, SegmentConfig, TrainConfig
from pipeline.dataset import Dataset
from pipeline.dry_run import describe
from pipeline.errors import GwmError


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
    assert told["units"] == {"done": 1, "quarantined": 1}


def test_train_counts_frames(flow: Dataset, tmp_path: Path) -> None:
    told = describe(TrainConfig(flow=flow.url, output=str(tmp_path / "model"), num_steps=7))
    assert (told["shards"], told["frames_in_manifest"], told["steps"], told["resumes"]) == (1, 3, 7, False)
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
