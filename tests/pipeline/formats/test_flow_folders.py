from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.dataset import Dataset
from pipeline.flow_files import read_flow_file
from pipeline.records import FLOW_SCHEMA_VERSION, decode_flow, flow_column, has_flow_column
from tests.pipeline.formats.conftest import exported


@pytest.mark.parametrize(("name", "suffix"), [("flo", "flo"), ("kitti", "png")])
def test_exported_flow_is_the_shards_and_comes_back_as_equal_shards(
    stages, rendered_flow, tmp_path, name, suffix
):
    summary = exported(name, tmp_path / "files", flow=rendered_flow)
    assert (summary["frames"], summary["flows"]) == (20, 36)
    table = table_of(rendered_flow)
    for row in range(table.num_rows):
        frame = f"{Path(table['video'][row].as_py()).stem}/{table['frame_index'][row].as_py():05d}"
        image = tmp_path / "files" / "JPEGImages" / f"{frame}.jpg"
        assert image.read_bytes() == table["image"][row].as_py()
        for gap in (1, -1):
            path = tmp_path / "files" / f"Flows_gap{gap}" / f"{frame}.{suffix}"
            assert path.exists() == table[has_flow_column(gap)][row].as_py()
            if path.exists():
                assert np.array_equal(read_flow_file(str(path)), decode_flow(flow_of(table, gap)[row]))
    again = stages.config(
        videos=str(tmp_path / "files" / "JPEGImages"),
        estimate_flow={"files": str(tmp_path / "files" / "Flows_gap{gap}")},
    )
    Dataset.open(again.output, kind="flow", config=again, schema_version=FLOW_SCHEMA_VERSION)
    stages.run(again)
    back = table_of(again.output)
    assert back["frame_index"].equals(table["frame_index"])
    for gap in (1, -1):
        assert np.array_equal(flow_of(back, gap), flow_of(table, gap))
        assert back[has_flow_column(gap)].equals(table[has_flow_column(gap)])


def table_of(url):
    tables = [pq.read_table(shard) for shard in Dataset(url=url).shards()]
    return pa.concat_tables(table.replace_schema_metadata() for table in tables).sort_by(
        [("video", "ascending"), ("frame_index", "ascending")]
    )


def flow_of(table, gap):
    return table[flow_column(gap)].combine_chunks().to_numpy_ndarray()
