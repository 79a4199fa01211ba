import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.config import PrepareConfig
from pipeline.dataset import Dataset, unit_id
from pipeline.errors import GwmError, UnitError
from pipeline.load_config import load_config


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.server)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder on the disk, and a prefix in a bucket."""
    if request.param == "local":
        return str(tmp_path / "flow")
    return f"{request.getfixturevalue('s3').url}/flow"


def config(*words: str) -> PrepareConfig:
    return load_config(PrepareConfig, None, ["videos=in", "output=out", *words])


def opened(url: str, *words: str) -> Dataset:
    return Dataset.open(url, kind="flow", config=config(*words), schema_version=1)


def table(source: str = "a.mp4", num_rows: int = 3) -> pa.Table:
    return pa.table({"x": range(num_rows)}).replace_schema_metadata({"source": source})


def test_unit_names_are_pure_functions_of_their_parts() -> None:
    assert unit_id("a.mp4", 0, 32) == unit_id("a.mp4", 0, 32) == "a1a5f9ee-3dd0-5a0c-810b-5002060fe0d1"
    assert len({unit_id("a", 1), unit_id("a", "1"), unit_id("a1"), unit_id("a", 1, "")}) == 4


def test_a_shard_is_the_done_mark(place: str) -> None:
    dataset = opened(place)
    assert not dataset.is_done("u")
    entry = dataset.write_shard("u", table())
    assert dataset.is_done("u")
    assert list(dataset.shards()) == [dataset.shard_url("u")]
    data = storage.read_bytes(dataset.shard_url("u"))
    assert (entry.source, entry.num_rows, entry.num_bytes) == ("a.mp4", 3, len(data))
    assert pq.read_table(pa.BufferReader(data)).equals(table())


def test_equal_tables_give_equal_bytes(place: str) -> None:
    dataset = opened(place)
    entries = {dataset.write_shard("u", table(), compression="zstd", use_dictionary=False) for _ in range(2)}
    assert len(entries) == 1


def test_the_same_settings_may_go_on(place: str) -> None:
    first = opened(place)
    assert opened(place, "placement.estimate_flow.num_cpus=2", "retry_quarantined=true") == first
    assert Dataset.read(place, kind="flow") == first
    assert pickle.loads(pickle.dumps(first)) == first


def test_of_two_runs_with_other_settings_one_is_refused(place: str) -> None:
    def attempt(stride: int) -> str:
        try:
            opened(place, f"decode.stride={stride}")
        except GwmError as error:
            return str(error)
        return "opened"

    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(attempt, (1, 2, 3, 4)))
    assert answers.count("opened") == 1


def test_other_settings_are_refused_with_the_difference(place: str) -> None:
    opened(place)
    before = storage.read_bytes(storage.join(place, "dataset.json"))
    with pytest.raises(
        GwmError, match=r"decode.stride: there 1, now 2; estimate_flow.gaps: there .*\[1, -1\]"
    ):
        opened(place, "decode.stride=2", "estimate_flow.gaps=[1]")
    assert storage.read_bytes(storage.join(place, "dataset.json")) == before


def test_other_kinds_versions_and_damage_are_refused(tmp_path: Path) -> None:
    url = str(tmp_path / "d")
    opened(url)
    with pytest.raises(GwmError, match="holds a flow dataset already"):
        Dataset.open(url, kind="masks", config=config(), schema_version=1)
    with pytest.raises(GwmError, match="another version of gwm"):
        Dataset.open(url, kind="flow", config=config(), schema_version=2)
    with pytest.raises(GwmError, match="a masks dataset is needed"):
        Dataset.read(url, kind="masks")
    with pytest.raises(GwmError, match="is not a flow dataset: it has no dataset"):
        Dataset.read(str(tmp_path), kind="flow")
    (tmp_path / "d" / "dataset.json").write_text("{")
    with pytest.raises(GwmError, match=r"dataset\.json is damaged"):
        opened(url)


def test_equal_runs_write_equal_descriptions_anywhere(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    elsewhere = f"{request.getfixturevalue('s3').url}/x"
    texts = set()
    for url in (str(tmp_path / "a"), elsewhere):
        dataset = opened(url, f"output={url}")
        dataset.write_manifest([dataset.write_shard(unit, table(unit)) for unit in ("v", "u")])
        names = ("dataset.json", "manifest.parquet")
        texts.add(tuple(storage.read_bytes(storage.join(url, name)) for name in names))
    assert len(texts) == 1


def test_quarantine_remembers_why_and_can_be_cleared(place: str) -> None:
    dataset = opened(place)
    dataset.quarantine("u1", source="a.mp4", stage="decode_clip", error=UnitError("no frames"), attempts=2)
    failure = json.dumps({"stage": "x", "reason": "carried", "traceback": "lines"})
    dataset.quarantine("u2", source="b.mp4", stage="x", error=failure)
    dataset.quarantine("u3", source="c.mp4", stage="x", error="plain words")
    assert dataset.is_quarantined("u1")
    assert not dataset.is_done("u1")
    first, second, third = dataset.quarantined()
    assert (first["unit"], first["source"], first["stage"]) == ("u1", "a.mp4", "decode_clip")
    assert (first["reason"], first["attempts"]) == ("no frames", 2)
    assert "UnitError: no frames" in first["traceback"]
    assert (second["reason"], second["traceback"]) == ("carried", "lines")
    assert third["reason"] == "plain words"
    again = dataset.clear_quarantine()
    assert dataset.quarantined() == []
    again.quarantine("u1", source="a.mp4", stage="decode_clip", error=UnitError("no frames"), attempts=2)
    again.quarantine("u4", source="d.mp4", stage="decode_clip", error=UnitError("new"))
    assert [record["attempts"] for record in dataset.quarantined()] == [4, 1]
