import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from pycocotools import mask as coco

from pipeline.masks import MaskRow, decode_mask, encode_mask, mask_rows, mask_schema, mask_table

ARCHITECTURE_COLUMNS = [
    "source",
    "frame_index",
    "height_px",
    "width_px",
    "mask_rle",
    "area_fraction",
    "foreground_score",
    "segments_rle",
    "object_ids",
    "objects_rle",
    "error",
]


def random_mask(seed: int = 0, height: int = 37, width: int = 53) -> np.ndarray:
    return np.random.default_rng(seed).random((height, width)) > 0.6


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (480, 854), (37, 53)])
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_masks_survive_run_lengths(shape, density):
    mask = np.random.default_rng(1).random(shape) < density
    decoded = decode_mask(encode_mask(mask), *shape)
    assert decoded.dtype == np.bool_
    assert (decoded == mask).all()


def test_convention_any_coco_reader_reads_the_bytes():
    mask = random_mask()
    rle = {"size": [37, 53], "counts": encode_mask(mask)}
    assert coco.area(rle) == mask.sum()
    rows, columns = np.nonzero(mask)
    left, top = columns.min(), rows.min()
    assert coco.toBbox(rle).tolist() == [left, top, columns.max() - left + 1, rows.max() - top + 1]


def test_run_lengths_of_another_size_are_refused():
    with pytest.raises(ValueError, match="RLE"):
        decode_mask(encode_mask(random_mask()), 30, 40)


def test_rows_survive_parquet_and_the_columns_are_the_contract(tmp_path):
    mask = random_mask()
    rows = [
        MaskRow(
            source="seq",
            frame_index=3,
            height_px=37,
            width_px=53,
            mask_rle=encode_mask(mask),
            area_fraction=float(mask.mean()),
            foreground_score=0.9,
            segments_rle=[encode_mask(mask), encode_mask(~mask)],
            object_ids=[2, 5],
            objects_rle=[encode_mask(mask), encode_mask(~mask)],
        ),
        MaskRow(source="seq", frame_index=4, error="not an image"),
    ]
    table = mask_table(rows, source="seq", segments=True, objects=True)
    assert table.schema.names == ARCHITECTURE_COLUMNS
    assert table.schema.metadata[b"source"] == b"seq"
    pq.write_table(table, tmp_path / "shard.parquet")
    assert mask_rows(pq.read_table(tmp_path / "shard.parquet")) == rows
    query = f"select count(*), count(mask_rle), count(error) from '{tmp_path}/shard.parquet'"
    assert duckdb.sql(query).fetchall() == [(2, 1, 1)]


def test_regions_and_objects_are_there_only_by_option():
    assert mask_schema(source="a.jpg", segments=False).names == [
        name for name in ARCHITECTURE_COLUMNS if name not in ("segments_rle", "object_ids", "objects_rle")
    ]
    image = MaskRow(source="a.jpg", height_px=2, width_px=2, mask_rle=encode_mask(np.eye(2, dtype=bool)))
    table = mask_table([image], source="a.jpg", segments=False)
    assert table["frame_index"].to_pylist() == [None]
    assert mask_rows(table) == [image]
