"""What has no result, and why: a dataset's quarantine, and images of finished shards that could not be read."""

import json
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import pyarrow.parquet as pq

from pipeline import storage
from pipeline.dataset import Dataset
from pipeline.manifest import READERS
from pipeline.masks import NUM_ERRORS
from pipeline.report.page import Undone

MAX_LISTED = 500
MAX_SHARDS = 2000
"""Shards that are looked at for images without a mask."""


def quarantined(dataset: Dataset) -> list[Undone]:
    """The first records of quarantine."""
    urls = islice(storage.list_files(storage.join(dataset.url, "quarantine")), MAX_LISTED)
    with ThreadPoolExecutor(READERS) as threads:
        return list(threads.map(_read_record, urls))


def without_mask(dataset: Dataset, num_errors: int) -> list[Undone]:
    """The first of the `num_errors` images or frames whose rows say why they have no mask."""
    shards, found = islice(dataset.shards(), MAX_SHARDS), list[Undone]()
    with ThreadPoolExecutor(READERS) as threads:
        while len(found) < min(num_errors, MAX_LISTED) and (batch := list(islice(shards, READERS))):
            for rows in threads.map(_errors_of, batch):
                found += rows
    return found[:MAX_LISTED]


def _read_record(url: str) -> Undone:
    try:
        record = json.loads(storage.read_bytes(url))
        return Undone(**{name: str(record[name]) for name in ("source", "stage", "reason")})
    except (ValueError, KeyError, TypeError, RecursionError):
        return Undone(source=url, stage="", reason="this record of quarantine is damaged")


def _errors_of(shard: str) -> list[Undone]:
    with storage.open_read(shard) as source:
        file = pq.ParquetFile(source)
        if not int((file.schema_arrow.metadata or {}).get(NUM_ERRORS, b"0")):
            return []
        rows = file.read(columns=["source", "frame_index", "error"]).to_pylist()
    return [_undone(**row) for row in rows if row["error"] is not None]


def _undone(source: str, frame_index: int | None, error: str) -> Undone:
    name = source if frame_index is None else f"{source}, frame {frame_index}"
    return Undone(source=name, stage="load_chunk", reason=error)
