from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import storage
from pipeline.config import PrepareConfig
from pipeline.dataset import Dataset
from pipeline.errors import GwmError
from pipeline.load_config import load_config
from pipeline.verify import verify


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    config = load_config(PrepareConfig, None, ["videos=in", "output=out"])
    made = Dataset.open(str(tmp_path / "flow"), kind="flow", config=config, schema_version=1)
    tables = {unit: pa.table({"x": range(100)}).replace_schema_metadata({"source": unit}) for unit in "abc"}
    made.write_manifest([made.write_shard(unit, table) for unit, table in tables.items()])
    return made


def manifest_url(dataset: Dataset) -> str:
    return storage.join(dataset.url, "manifest.parquet")


def test_all_well(dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(dataset.url) == []
    assert "3 shards, 300 rows" in capsys.readouterr().out


def test_a_missing_manifest_is_rebuilt_as_it_was(dataset: Dataset) -> None:
    before = storage.read_bytes(manifest_url(dataset))
    storage.delete(manifest_url(dataset))
    assert verify(dataset.url) == []
    assert storage.read_bytes(manifest_url(dataset)) == before


def test_a_shard_newer_than_the_manifest_is_added(dataset: Dataset) -> None:
    entry = dataset.write_shard("d", pa.table({"x": [1]}).replace_schema_metadata({"source": "d"}))
    assert verify(dataset.url) == []
    assert entry in dataset.manifest()


@pytest.mark.parametrize("place", [8, -40, -3])
def test_a_flipped_bit_is_found_and_the_manifest_kept(dataset: Dataset, place: int) -> None:
    before = storage.read_bytes(manifest_url(dataset))
    data = bytearray(storage.read_bytes(dataset.shard_url("b")))
    data[place] ^= 1
    storage.write_bytes(dataset.shard_url("b"), bytes(data))
    (problem,) = verify(dataset.url)
    assert problem.startswith(dataset.shard_url("b"))
    assert storage.read_bytes(manifest_url(dataset)) == before


@pytest.mark.parametrize("known", [True, False])
def test_a_truncated_shard_is_found_with_and_without_manifest(dataset: Dataset, known: bool) -> None:
    if not known:
        storage.delete(manifest_url(dataset))
    data = storage.read_bytes(dataset.shard_url("b"))
    storage.write_bytes(dataset.shard_url("b"), data[: len(data) // 2])
    (problem,) = verify(dataset.url)
    assert "cannot be read" in problem
    assert storage.exists(manifest_url(dataset)) == known


def test_missing_and_foreign_files_and_replaced_shards_are_named(
    dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    storage.delete(dataset.shard_url("a"))
    storage.write_bytes(storage.join(dataset.url, "shards", "notes.txt"), b"")
    dataset.write_shard("c", pa.table({"x": range(7)}))
    problems = verify(dataset.url)
    assert len(problems) == 3
    assert any("a.parquet: missing, though the manifest lists it" in problem for problem in problems)
    assert any("notes.txt: not a shard" in problem for problem in problems)
    assert any("c.parquet: has " in problem and "the manifest says" in problem for problem in problems)
    assert capsys.readouterr().out.splitlines() == problems


def test_a_damaged_manifest_is_a_problem(dataset: Dataset) -> None:
    storage.write_bytes(manifest_url(dataset), b"PAR1")
    (problem,) = verify(dataset.url)
    assert "manifest.parquet is damaged" in problem


def test_what_is_no_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GwmError, match="is not a dataset"):
        verify(str(tmp_path))


def test_a_dataset_in_a_bucket(request: pytest.FixtureRequest) -> None:
    config = load_config(PrepareConfig, None, ["videos=in", "output=out"])
    url = f"{request.getfixturevalue('s3').url}/flow"
    made = Dataset.open(url, kind="flow", config=config, schema_version=1)
    made.write_shard("a", pa.table({"x": [1, 2]}).replace_schema_metadata({"source": "a"}))
    assert verify(url) == []
    assert [entry.num_rows for entry in made.manifest()] == [2]
