"""gwm verify: every shard read and compared with the manifest."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.dataset import Dataset
from pipeline.errors import GwmError
from pipeline.manifest import READERS, ShardEntry, shard_entry, unit_of
from pipeline.progress import Progress


def verify(url: str) -> list[str]:
    """Prints and returns one line for each problem; without any, rebuilds the manifest.

    Raises GwmError where there is no dataset.
    """
    dataset = Dataset(url=storage.absolute(url))
    if not storage.exists(storage.join(dataset.url, "dataset.json")):
        raise GwmError(f"{url} is not a dataset: it has no dataset.json.")
    dataset.description()
    expected, problems = _expected(dataset)
    entries: list[ShardEntry] = []
    with Progress(total=len(expected) or None, unit="shards") as progress:
        for shard_url, found in _examined(dataset):
            listed = expected.pop(unit_of(shard_url), None)
            problem = found if isinstance(found, str) else _compare(listed, found)
            if problem:
                problems.append(f"{shard_url}: {problem}")
            elif isinstance(found, ShardEntry):
                entries.append(found)
            progress.advance()
    problems += [f"{dataset.shard_url(unit)}: missing, though the manifest lists it" for unit in expected]
    problems += [f"{foreign}: not a shard" for foreign in _foreign_files(dataset)]
    for problem in problems:
        sys.stdout.write(f"{problem}\n")
    if not problems:
        totals = dataset.write_manifest(entries)
        sys.stdout.write(
            f"{url}: {totals.num_shards} shards, {totals.num_rows} rows, {totals.num_bytes} bytes, all well\n"
        )
    return problems


def _expected(dataset: Dataset) -> tuple[dict[str, ShardEntry], list[str]]:
    """The manifest's entries by unit, and a problem where the manifest itself cannot be read."""
    try:
        return {entry.unit: entry for entry in dataset.manifest()}, []
    except GwmError as error:
        return {}, [str(error)]


def _examined(dataset: Dataset) -> Iterator[tuple[str, ShardEntry | str]]:
    """Each shard with what is in it, or with what is wrong with it; a few are read at a time."""
    urls = dataset.shards()
    with ThreadPoolExecutor(READERS) as threads:
        while batch := list(islice(urls, READERS)):
            yield from zip(batch, threads.map(_examine, batch), strict=True)


def _examine(shard_url: str) -> ShardEntry | str:
    data = storage.read_bytes(shard_url)
    try:
        entry = shard_entry(unit_of(shard_url), data)
        rows_read = pq.read_table(pa.BufferReader(data)).num_rows
    except (pa.ArrowException, OSError) as error:
        return f"cannot be read ({str(error).splitlines()[0]})"
    if rows_read != entry.num_rows:
        return f"has {rows_read} rows, though its footer says {entry.num_rows}"
    return entry


def _compare(listed: ShardEntry | None, found: ShardEntry) -> str:
    """What differs from the manifest; nothing where the manifest does not know the shard."""
    if listed is None or listed == found:
        return ""
    if listed.num_bytes != found.num_bytes:
        return f"has {found.num_bytes} bytes, the manifest says {listed.num_bytes}"
    if listed.num_rows != found.num_rows:
        return f"has {found.num_rows} rows, the manifest says {listed.num_rows}"
    return "its content changed: the SHA-256 is not the manifest's"


def _foreign_files(dataset: Dataset) -> Iterator[str]:
    """Files among the shards that are none, and shards in folders below."""
    root = storage.join(dataset.url, "shards")
    for url in storage.list_files(root):
        name = storage.relative(url, root)
        if "/" in name or not name.endswith(".parquet"):
            yield url
