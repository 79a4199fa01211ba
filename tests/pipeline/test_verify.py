import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import manifest, storage
from pipeline.cli import main
from pipeline.config import PrepareConfig
from pipeline.dataset import Dataset, unit_id
from pipeline.errors import GwmError
from pipeline.load_config import load_config
from pipeline.verify import verify

A, B, C = map(unit_id, "abc")


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    config = load_config(PrepareConfig, None, ["videos=in", "output=out"])
    made = Dataset.open(str(tmp_path / "flow"), kind="flow", config=config, schema_version=1)
    tables = {name: pa.table({"x": range(100)}).replace_schema_metadata({"source": name}) for name in "abc"}
    made.write_manifest([made.write_shard(unit_id(name), table) for name, table in tables.items()])
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
    data = bytearray(storage.read_bytes(dataset.shard_url(B)))
    data[place] ^= 1
    storage.write_bytes(dataset.shard_url(B), bytes(data))
    (problem,) = verify(dataset.url)
    assert problem.startswith(dataset.shard_url(B))
    assert storage.read_bytes(manifest_url(dataset)) == before


@pytest.mark.parametrize("known", [True, False])
def test_a_truncated_shard_is_found_with_and_without_manifest(dataset: Dataset, known: bool) -> None:
    if not known:
        storage.delete(manifest_url(dataset))
    data = storage.read_bytes(dataset.shard_url(B))
    storage.write_bytes(dataset.shard_url(B), data[: len(data) // 2])
    (problem,) = verify(dataset.url)
    assert "cannot be read" in problem
    assert storage.exists(manifest_url(dataset)) == known


def test_missing_and_foreign_files_and_replaced_shards_are_named(
    dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    storage.delete(dataset.shard_url(A))
    storage.write_bytes(storage.join(dataset.url, "shards", "notes.txt"), b"")
    dataset.write_shard(C, pa.table({"x": range(7)}))
    problems = verify(dataset.url)
    assert len(problems) == 3
    assert any(f"{A}.parquet: missing, though the manifest lists it" in problem for problem in problems)
    assert any("notes.txt: not a file of gwm" in problem for problem in problems)
    assert any(f"{C}.parquet: has " in problem and "the manifest says" in problem for problem in problems)
    assert capsys.readouterr().out.splitlines() == problems


def test_a_damaged_manifest_is_a_problem(dataset: Dataset) -> None:
    storage.write_bytes(manifest_url(dataset), b"PAR1")
    (problem,) = verify(dataset.url)
    assert "manifest.parquet: damaged" in problem


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


def test_a_flipped_bit_of_a_page_is_found_without_a_manifest(dataset: Dataset) -> None:
    storage.delete(manifest_url(dataset))
    text = b"neither compressed nor repeated"
    table = pa.table({"x": [text]}).replace_schema_metadata({"source": "d"})
    dataset.write_shard(B, table, compression="none", use_dictionary=False, write_statistics=False)
    whole = storage.read_bytes(dataset.shard_url(B))
    storage.write_bytes(dataset.shard_url(B), whole.replace(text, text.replace(b"n", b"o", 1)))
    (problem,) = verify(dataset.url)
    assert "cannot be read" in problem
    assert "CRC" in problem


def test_a_manifest_that_lies_is_rewritten_and_the_shards_stay(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = storage.read_bytes(manifest_url(dataset))
    first, *others = dataset.manifest()
    manifest.write_entries(dataset.url, [replace(first, num_rows=99), *others])
    shards = set(dataset.shards())
    (problem,) = verify(dataset.url)
    assert "has 100 rows, the manifest says 99" in problem
    assert verify(dataset.url, repair=True) == []
    assert storage.read_bytes(manifest_url(dataset)) == before
    assert set(dataset.shards()) == shards


def test_repair_touches_nothing_that_is_not_ours(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = ["notes.txt", "shards/table.parquet", "shards/deep/x.parquet", "shards/broken.parquet", "a/b"]
    for name in theirs:
        storage.write_bytes(storage.join(dataset.url, name), b"theirs")
    storage.write_bytes(storage.join(dataset.url, "shards", "table.parquet"), parquet_of_somebody())
    ours = [
        "summary.json",
        "progress.json",
        "mlflow.db",
        "mlflow.db-wal",
        "mlflow_artifacts/1/a",
        "png/a.png",
        "overlay/a.jpg",
    ]
    for name in ours:
        storage.write_bytes(storage.join(dataset.url, name), b"")
    remaining = verify(dataset.url, repair=True)
    assert sorted(storage.relative(line.split(": ")[0], dataset.url) for line in remaining) == sorted(theirs)
    assert all(storage.exists(storage.join(dataset.url, name)) for name in [*theirs, *ours])
    assert "5 files that are not gwm's left alone" in capsys.readouterr().out
    assert len(dataset.manifest()) == 3


def parquet_of_somebody() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"y": [1]}), sink)
    return sink.getvalue().to_pybytes()


def test_a_temporary_file_is_abandoned_only_when_it_is_old(dataset: Dataset) -> None:
    new, old = (Path(dataset.url) / "shards" / f"{storage.TEMPORARY_PREFIX}{age}" for age in ("new", "old"))
    for file in (new, old):
        file.write_bytes(b"half")
    os.utime(old, (time.time() - 3600,) * 2)
    (problem,) = verify(dataset.url)
    assert problem == f"{old}: left by a run that was killed while writing"
    assert verify(dataset.url, repair=True) == []
    assert new.exists()
    assert not old.exists()


def test_a_model_has_no_shards_to_verify(tmp_path: Path) -> None:
    Dataset.open(
        str(tmp_path), kind="model", config=PrepareConfig(videos="in", output="out"), schema_version=1
    )
    with pytest.raises(GwmError, match="is a model, not a dataset of shards"):
        verify(str(tmp_path))


# Found, repaired, made again: the same bytes


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.server)])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "flow") if request.param == "local" else f"{request.getfixturevalue('s3').url}/flow"


def files(url: str) -> dict[str, bytes]:
    return {storage.relative(file, url): storage.read_bytes(file) for file in storage.list_files(url)}


def test_after_repair_a_rerun_makes_exactly_what_was_there(
    output: str, stages: Any, make_video: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    make_video(num_frames=44)
    (stages.folder / "videos" / "broken.mp4").write_bytes(b"not a video")
    config = stages.config(output=output)
    dataset = Dataset.open(output, kind="flow", config=config, schema_version=1)

    def run() -> None:
        stages.run(config)
        dataset.write_manifest()

    run()
    good = files(output)
    shards = list(dataset.shards())
    records = [name for name in good if name.startswith("quarantine/")]
    assert (len(shards), len(records)) == (6, 1)

    flipped = bytearray(storage.read_bytes(shards[0]))
    flipped[len(flipped) // 2] ^= 4
    storage.write_bytes(shards[0], bytes(flipped))
    storage.delete(shards[1])
    storage.write_bytes(shards[2], storage.read_bytes(shards[2])[:-100])
    storage.write_bytes(shards[3], storage.read_bytes(shards[4]))  # another's rows
    storage.write_bytes(storage.join(output, records[0]), b"{")
    foreign = storage.join(output, "shards", "notes.txt")
    storage.write_bytes(foreign, b"mine")

    assert main(["verify", output]) == 1
    named = capsys.readouterr().out
    bad = [*shards[:4], storage.join(output, records[0]), foreign]
    assert sorted(line.split(": ")[0] for line in named.splitlines()) == sorted(bad)
    assert main(["verify", output, "--repair"]) == 1  # the foreign file is not ours to remove
    storage.delete(foreign)
    assert main(["verify", output]) == 0
    assert len(dataset.manifest()) == 2
    run()
    assert files(output) == good
    assert main(["verify", output]) == 0
