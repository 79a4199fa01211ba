"""The list of a dataset's shards: manifest.parquet."""

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.errors import GwmError
from pipeline.load_config import digest
from pipeline.progress import Progress

NAME = "manifest.parquet"
SCHEMA = pa.schema(
    [
        pa.field("unit", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("num_rows", pa.int64(), nullable=False),
        pa.field("num_bytes", pa.int64(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
    ]
)
READERS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardEntry:
    """One shard: a row of the manifest."""

    unit: str
    source: str
    """Input the shard was made from, relative to the input root."""
    num_rows: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestTotals:
    """Sums over the manifest."""

    num_shards: int
    num_rows: int
    num_bytes: int


class DamagedManifestError(GwmError):
    """The manifest cannot be read; the shards tell everything that was in it."""


def shard_entry(unit: str, data: bytes) -> ShardEntry:
    """The entry of a shard with this content; raises pyarrow.ArrowException where it is no Parquet file."""
    footer = pq.read_metadata(pa.BufferReader(data))
    return ShardEntry(
        unit=unit,
        source=(footer.schema.to_arrow_schema().metadata or {}).get(b"source", b"").decode(),
        num_rows=footer.num_rows,
        num_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )


def content_digest(entries: Iterable[ShardEntry]) -> str:
    """Equal for equal shards, wherever they lie."""
    return digest({entry.unit: entry.sha256 for entry in entries})


def unit_of(shard_url: str) -> str:
    """The unit that a shard's name stands for."""
    return shard_url.rsplit("/", 1)[-1].removesuffix(".parquet")


def read(url: str) -> list[ShardEntry]:
    """The rows of a dataset's manifest, sorted by unit; empty where there is none."""
    manifest_url = storage.join(url, NAME)
    if not storage.exists(manifest_url):
        return []
    try:
        table = pq.read_table(pa.BufferReader(storage.read_bytes(manifest_url)), schema=SCHEMA)
    except (pa.ArrowException, OSError) as error:
        raise DamagedManifestError(
            f"{manifest_url} is damaged: `gwm verify {url} --repair` makes it anew."
        ) from error
    return [ShardEntry(**row) for row in table.to_pylist()]


def write(url: str, shard_sizes: Iterable[tuple[str, int]], entries: Iterable[ShardEntry]) -> ManifestTotals:
    """Writes the manifest of exactly the shards that exist; equal shards give equal bytes.

    A shard's row comes from `entries`, or from the previous manifest while its size is the same; only the
    shards unknown to both are read.
    """
    known = {entry.unit: entry for entry in read(url)} | {entry.unit: entry for entry in entries}
    rows: list[ShardEntry] = []
    unknown: list[str] = []
    for shard_url, num_bytes in shard_sizes:
        entry = known.get(unit_of(shard_url))
        if entry is not None and entry.num_bytes == num_bytes:
            rows.append(entry)
        else:
            unknown.append(shard_url)
    rows.extend(_read_entries(unknown))
    return write_entries(url, rows)


def write_entries(url: str, entries: Iterable[ShardEntry]) -> ManifestTotals:
    """Writes the manifest with exactly these rows."""
    rows = sorted(entries, key=lambda entry: entry.unit)
    columns = zip(*map(astuple, rows), strict=True) if rows else [[] for _ in SCHEMA]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(arrays, schema=SCHEMA), sink, compression="zstd")
    storage.write_bytes(storage.join(url, NAME), sink.getvalue().to_pybytes())
    return ManifestTotals(
        num_shards=len(rows),
        num_rows=sum(entry.num_rows for entry in rows),
        num_bytes=sum(entry.num_bytes for entry in rows),
    )


def _read_entries(shard_urls: list[str]) -> Iterator[ShardEntry]:
    """Entries read from the shards themselves, a few at a time; after a killed run these may be many."""
    if not shard_urls:
        return
    remaining = iter(shard_urls)
    progress = Progress(total=len(shard_urls), unit="shards for the manifest")
    with progress, ThreadPoolExecutor(READERS) as threads:
        while batch := list(islice(remaining, READERS)):
            yield from threads.map(_read_entry, batch)
            progress.advance(len(batch))


def _read_entry(shard_url: str) -> ShardEntry:
    try:
        return shard_entry(unit_of(shard_url), storage.read_bytes(shard_url))
    except pa.ArrowException as error:
        raise GwmError(f"{shard_url} is damaged: delete it and run the command again.") from error
