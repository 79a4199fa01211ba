from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import manifest, storage
from pipeline.dataset import Dataset
from pipeline.errors import GwmError
from pipeline.manifest import ManifestTotals


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return Dataset(url=str(tmp_path / "flow"))


def write(dataset: Dataset, unit: str, num_rows: int = 2) -> manifest.ShardEntry:
    table = pa.table({"x": range(num_rows)}).replace_schema_metadata({"source": f"{unit}.mp4"})
    return dataset.write_shard(unit, table)


def manifest_bytes(dataset: Dataset) -> bytes:
    return storage.read_bytes(storage.join(dataset.url, manifest.NAME))


def test_totals_and_rows(dataset: Dataset) -> None:
    entries = [write(dataset, "b", 5), write(dataset, "a", 2)]
    num_bytes = sum(entry.num_bytes for entry in entries)
    assert dataset.write_manifest(entries) == ManifestTotals(num_shards=2, num_rows=7, num_bytes=num_bytes)
    assert dataset.manifest() == sorted(entries, key=lambda entry: entry.unit)
    assert pq.read_table(storage.join(dataset.url, manifest.NAME)).column_names == list(manifest.SCHEMA.names)


def test_bytes_do_not_depend_on_how_the_entries_became_known(dataset: Dataset) -> None:
    entries = [write(dataset, unit) for unit in "cab"]
    dataset.write_manifest(entries)
    from_entries = manifest_bytes(dataset)
    dataset.write_manifest()
    from_previous = manifest_bytes(dataset)
    storage.delete(storage.join(dataset.url, manifest.NAME))
    dataset.write_manifest()
    assert from_entries == from_previous == manifest_bytes(dataset)


def test_only_unknown_shards_are_read(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    known = [write(dataset, "a")]
    dataset.write_manifest(known)
    unknown = write(dataset, "b")
    new = write(dataset, "c")
    read: list[str] = []
    read_bytes = storage.read_bytes
    monkeypatch.setattr(storage, "read_bytes", lambda url: read.append(url) or read_bytes(url))
    assert dataset.write_manifest([new]).num_shards == 3
    assert [url for url in read if "/shards/" in url] == [dataset.shard_url("b")]
    assert unknown in dataset.manifest()


def test_the_manifest_lists_exactly_what_exists(dataset: Dataset) -> None:
    gone, changed = write(dataset, "gone"), write(dataset, "changed", 1)
    dataset.write_manifest([gone, changed])
    storage.delete(dataset.shard_url("gone"))
    newer = write(dataset, "changed", 1000)
    dataset.write_manifest()
    assert dataset.manifest() == [newer]


def test_no_shards(dataset: Dataset) -> None:
    assert dataset.manifest() == []
    assert dataset.write_manifest() == ManifestTotals(num_shards=0, num_rows=0, num_bytes=0)
    assert dataset.manifest() == []


def test_a_damaged_shard_and_a_damaged_manifest_are_named(dataset: Dataset) -> None:
    storage.write_bytes(dataset.shard_url("bad"), b"not parquet")
    with pytest.raises(GwmError, match=r"bad.parquet is damaged"):
        dataset.write_manifest()
    storage.write_bytes(storage.join(dataset.url, manifest.NAME), b"PAR1")
    with pytest.raises(GwmError, match=r"manifest.parquet is damaged"):
        dataset.manifest()
