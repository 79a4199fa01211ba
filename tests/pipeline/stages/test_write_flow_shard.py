import json

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import StoreConfig
from pipeline.dataset import Dataset
from pipeline.records import decode_image
from pipeline.stages.decode_clip import decode_clip
from pipeline.stages.estimate_flow import EstimateFlow
from pipeline.stages.failure import failed_row
from pipeline.stages.write_flow_shard import write_flow_shard

COLUMNS = [
    ("video", pa.string()),
    ("frame_index", pa.int32()),
    ("pts_s", pa.float64()),
    ("image", pa.binary()),
    ("flow_p1", pa.fixed_shape_tensor(pa.int16(), [2, 48, 64])),
    ("flow_m1", pa.fixed_shape_tensor(pa.int16(), [2, 48, 64])),
    ("has_flow_p1", pa.bool_()),
    ("has_flow_m1", pa.bool_()),
    ("source_height_px", pa.int32()),
    ("source_width_px", pa.int32()),
]


def test_the_record(make_video, stages):
    make_video("a/b.mp4", num_frames=30)
    config = stages.config()
    rows = stages.run(config)
    assert [(row["status"], row["num_rows"]) for row in rows] == [
        ("done", 8),
        ("done", 8),
        ("done", 8),
        ("done", 6),
    ]
    table = stages.table(config)
    assert [(field.name, field.type) for field in table.schema] == COLUMNS
    assert not any(field.nullable for field in table.schema)
    assert table["frame_index"].to_pylist() == list(range(30))
    assert np.allclose(table["pts_s"], np.arange(30) / 25)
    assert set(table["video"].to_pylist()) == {"a/b.mp4"}
    assert table["has_flow_p1"].to_pylist() == [True] * 29 + [False]
    assert table["has_flow_m1"].to_pylist() == [False] + [True] * 29
    assert set(table["source_height_px"].to_pylist()) == {48}


def test_pictures_are_the_decoded_frames_at_the_stored_size(make_video, stages):
    make_video(num_frames=9, height_px=96, width_px=128)
    config = stages.config(store=StoreConfig(height_px=48))
    stages.run(config)
    (clip,) = (decode_clip(row, config)["frames"] for row in stages.plan(stages.config(output="elsewhere")))
    table = stages.table(config)
    for frame, encoded in zip(clip, table["image"].to_pylist(), strict=True):
        picture = decode_image(encoded)
        assert picture.shape == (48, 64, 3)
        averaged = frame.reshape(3, 48, 2, 64, 2).mean(axis=(2, 4)).transpose(1, 2, 0)
        assert np.abs(picture - averaged).mean() < 3
    assert table["source_height_px"].to_pylist() == [96] * 9


def test_a_row_is_read_alone(make_video, stages):
    make_video(num_frames=9)
    config = stages.config()
    (row,) = stages.run(config)
    file = pq.ParquetFile(Dataset(url=config.output).shard_url(row["unit"]))
    assert file.num_row_groups == 9
    single = file.read_row_group(5, columns=["frame_index", "flow_p1"])
    assert single["frame_index"].to_pylist() == [5]
    assert single["flow_p1"].combine_chunks().to_numpy_ndarray().shape == (1, 2, 48, 64)


def test_flow_bytes_are_split_and_compressed(make_video, stages):
    make_video(num_frames=9)
    config = stages.config()
    (row,) = stages.run(config)
    file = pq.ParquetFile(Dataset(url=config.output).shard_url(row["unit"]))
    names = [file.metadata.row_group(0).column(i).path_in_schema for i in range(file.metadata.num_columns)]
    column = file.metadata.row_group(0).column(names.index("flow_m1.list.element"))
    assert "BYTE_STREAM_SPLIT" in column.encodings
    assert column.compression == "ZSTD"


def test_pyarrow_duckdb_and_polars_read_the_same(make_video, stages):
    make_video(num_frames=9)
    config = stages.config()
    (row,) = stages.run(config)
    url = Dataset(url=config.output).shard_url(row["unit"])
    table = pq.read_table(url)
    flow = table["flow_p1"].combine_chunks().to_numpy_ndarray()
    assert flow[:8].any()
    names = table.column_names
    query = f"select {', '.join(names)} from '{url}' order by frame_index"
    by_duckdb = dict(zip(names, zip(*duckdb.sql(query).fetchall(), strict=True), strict=True))
    by_polars = pl.read_parquet(url)
    for name in names:
        plain = table[name].to_pylist() if not name.startswith("flow") else None
        if plain is None:
            expected = table[name].combine_chunks().to_numpy_ndarray().reshape(9, -1)
            assert np.array_equal(np.array(by_duckdb[name]), expected), name
            assert np.array_equal(np.stack(by_polars[name].to_list()).reshape(9, -1), expected), name
        else:
            assert list(by_duckdb[name]) == plain, name
            assert by_polars[name].to_list() == plain, name


def test_metadata_says_how_the_shard_was_made(make_video, stages):
    make_video(num_frames=9)
    config = stages.config(estimate_flow={"gaps": (2, -1)})
    (row,) = stages.run(config)
    metadata = pq.read_schema(Dataset(url=config.output).shard_url(row["unit"])).metadata
    expected = {
        b"kind": b"flow",
        b"schema_version": b"1",
        b"source": b"video.mp4",
        b"gaps": b"[2, -1]",
        b"flow_scale": b"64",
        b"estimator": b"dis",
        b"iterations": b"12",
        b"height_px": b"48",
        b"width_px": b"64",
    }
    assert expected.items() <= metadata.items()


def test_a_rerun_writes_the_same_bytes_and_a_second_one_skips(make_video, make_frame_folder, stages):
    make_video(num_frames=17)
    make_frame_folder(num_frames=5)
    config = stages.config()
    shards = stages.folder / "flow" / "shards"
    stages.run(config)
    first = {path.name: path.read_bytes() for path in shards.iterdir()}
    assert len(first) == 3
    for path in shards.iterdir():
        path.unlink()
    stages.run(config)
    assert {path.name: path.read_bytes() for path in shards.iterdir()} == first
    before = {path: path.stat().st_mtime_ns for path in shards.iterdir()}
    again = stages.run(config)
    assert sorted((row["status"], row["num_units"]) for row in again) == [("skipped", 1), ("skipped", 2)]
    assert {path: path.stat().st_mtime_ns for path in shards.iterdir()} == before


def test_a_failed_unit_goes_to_quarantine_and_leaves_no_shard(stages):
    config = stages.config()
    dataset = Dataset(url=config.output)
    with pytest.raises(ValueError, match="fell off") as caught:
        raise ValueError("the picture fell off")
    row = failed_row({"unit": "u1", "source": "a.mp4"}, "estimate_flow", caught.value)
    summary = write_flow_shard(row, config, dataset)
    assert (summary["status"], summary["num_units"], summary["reason"]) == (
        "quarantined",
        1,
        "the picture fell off",
    )
    (record,) = dataset.quarantined()
    assert (record["unit"], record["source"], record["stage"]) == ("u1", "a.mp4", "estimate_flow")
    assert record["reason"] == "the picture fell off"
    assert "ValueError" in record["traceback"]
    assert list(dataset.shards()) == []


def test_every_summary_row_has_the_same_columns(make_video, stages):
    make_video(num_frames=9)
    config = stages.config()
    done = stages.run(config)
    skipped = stages.run(config)
    failed = failed_row({"unit": "u", "source": "s"}, "decode_clip", ValueError("x"))
    quarantined = write_flow_shard(failed, config, Dataset(url=config.output))
    columns = {(key, type(value)) for key, value in done[0].items()}
    for row in (*skipped, quarantined):
        assert {(key, type(value)) for key, value in row.items()} == columns


def test_failures_are_text(stages):
    failure = json.loads(failed_row({"unit": "u", "source": "s"}, "plan_clips", KeyError())["failure"])
    assert failure["reason"] == "KeyError"


def test_the_network_is_named_by_its_weights(make_video, stages, test_data):
    make_video(num_frames=2, height_px=128, width_px=128)
    weights = str(test_data / "weights/raft-small.pth")
    config = stages.config(estimate_flow={"estimator": "raft_small", "weights": weights, "iterations": 1})
    (row,) = stages.run(config)
    metadata = pq.read_schema(Dataset(url=config.output).shard_url(row["unit"])).metadata
    assert len(metadata[b"weights_sha256"]) == 64
    assert metadata[b"weights_sha256"].decode() == EstimateFlow(config, "cpu", 1)._source.weights_sha256
