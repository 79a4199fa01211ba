"""gwm verify: every file of a dataset looked at, every shard read and compared with the manifest."""

import json
import re
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from gwm_model.errors import first_line
from pipeline import manifest, storage
from pipeline.dataset import Dataset
from pipeline.errors import GwmError
from pipeline.manifest import READERS, ShardEntry, shard_entry, unit_of
from pipeline.progress import Progress, print_result

COMMANDS = {"flow": "gwm prepare", "masks": "gwm segment"}
OURS = re.compile(
    r"dataset\.json|manifest\.parquet|summary\.json|progress\.json|shards/[^/]+\.parquet|quarantine/[^/]+\.json"
    r"|mlflow\.db(-\w+)?|mlflow_artifacts/.+|(png|overlay|objects|overlays)/.+|contact_sheet\.jpg|report\.html"
    r"|(adaptation|models)/.+"
)
"""Paths that gwm writes into a dataset."""
ABANDONED_AFTER_S = 600.0
"""A temporary file that is older belongs to no run: writing one takes seconds."""
QUARANTINE_KEYS = frozenset({"unit", "source", "stage", "reason", "traceback", "attempts"})


@dataclass(frozen=True, slots=True)
class Problem:
    """A file that is not as it should be."""

    url: str
    reason: str
    remedy: Literal["remove", "rewrite the manifest", "none"] = "none"
    """A bad file of ours is removed: a rerun makes it again, or nothing needs it. Nobody else's file is touched."""


def verify(url: str, *, repair: bool = False) -> list[str]:
    """Prints a line for each problem and returns those that remain.

    Without any, or with `repair`, the manifest is written anew; `repair` also removes our own bad files, and leaves
    alone what gwm did not write. Raises GwmError where there is no dataset of shards.
    """
    dataset = Dataset(url=storage.absolute(url))
    kind = _kind(dataset)
    expected, problems = _expected(dataset)
    entries: list[ShardEntry] = []
    with Progress(total=len(expected) or None, unit="shards") as progress:
        for shard_url, found in _examined(dataset):
            listed = expected.pop(unit_of(shard_url), None)
            problem = _shard_problem(shard_url, listed, found)
            if problem is not None:
                problems.append(problem)
            if isinstance(found, ShardEntry) and (
                problem is None or problem.remedy == "rewrite the manifest"
            ):
                entries.append(found)
            progress.advance()
    problems += [_missing(dataset.shard_url(unit)) for unit in expected]
    problems += [*_bad_records(dataset), *_foreign_files(dataset), *_abandoned_files(dataset)]
    for problem in problems:
        print_result(f"{problem.url}: {problem.reason}\n")
    if repair:
        problems = _repair(problems)
    if repair or not problems:
        totals = manifest.write_entries(dataset.url, entries)
        counts = f"{totals.num_shards} shards, {totals.num_rows} rows, {totals.num_bytes} bytes"
        state = "all well" if not problems else f"{len(problems)} files that are not gwm's left alone"
        print_result(f"{url}: {counts}, {state}\n")
        if repair:
            print_result(f"The same `{COMMANDS[kind]}` makes again what is missing.\n")
    return [f"{problem.url}: {problem.reason}" for problem in problems]


def _kind(dataset: Dataset) -> str:
    if not storage.exists(storage.join(dataset.url, "dataset.json")):
        raise GwmError(f"{dataset.url} is not a dataset: it has no dataset.json.")
    kind = str(dataset.description()["kind"])
    if kind not in COMMANDS:
        raise GwmError(f"{dataset.url} is a {kind}, not a dataset of shards.")
    return kind


def _repair(problems: list[Problem]) -> list[Problem]:
    """Removes what may be removed; returns the rest."""
    for problem in problems:
        if problem.remedy == "remove":
            storage.delete(problem.url)
            print_result(f"{problem.url}: removed\n")
    return [problem for problem in problems if problem.remedy == "none"]


def _expected(dataset: Dataset) -> tuple[dict[str, ShardEntry], list[Problem]]:
    """The manifest's entries by unit, and a problem where the manifest itself cannot be read."""
    try:
        return {entry.unit: entry for entry in dataset.manifest()}, []
    except manifest.DamagedManifestError:
        return {}, [Problem(storage.join(dataset.url, manifest.NAME), "damaged", "remove")]


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
        with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as file:
            rows_read = sum(batch.num_rows for batch in file.iter_batches())
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        return f"cannot be read ({first_line(error)})"
    if rows_read != entry.num_rows:
        return f"has {rows_read} rows, though its footer says {entry.num_rows}"
    return entry


def _shard_problem(shard_url: str, listed: ShardEntry | None, found: ShardEntry | str) -> Problem | None:
    if isinstance(found, str):
        ours = listed is not None or _names_unit(shard_url)
        return Problem(shard_url, found, "remove" if ours else "none")
    if listed is None:
        # Our shards name their source; any other Parquet file is somebody's.
        return None if found.source else Problem(shard_url, "not a shard of gwm")
    if listed == found:
        return None
    if listed.sha256 == found.sha256:
        return Problem(shard_url, _difference(listed, found), "rewrite the manifest")
    return Problem(shard_url, _difference(listed, found), "remove")


def _difference(listed: ShardEntry, found: ShardEntry) -> str:
    """What differs from the manifest."""
    if listed.num_bytes != found.num_bytes:
        return f"has {found.num_bytes} bytes, the manifest says {listed.num_bytes}"
    if listed.num_rows != found.num_rows:
        return f"has {found.num_rows} rows, the manifest says {listed.num_rows}"
    if listed.source != found.source:
        return f"is of {found.source}, the manifest says {listed.source}"
    return "its content changed: the SHA-256 is not the manifest's"


def _missing(shard_url: str) -> Problem:
    return Problem(shard_url, "missing, though the manifest lists it", "rewrite the manifest")


def _names_unit(shard_url: str) -> bool:
    try:
        return uuid.UUID(unit_of(shard_url)).version == 5
    except ValueError:
        return False


def _bad_records(dataset: Dataset) -> Iterator[Problem]:
    """Records of quarantine that say nothing; without its record, a unit is tried again."""
    for url in storage.list_files(storage.join(dataset.url, "quarantine")):
        try:
            record = json.loads(storage.read_bytes(url))
        except ValueError:
            record = None
        if url.endswith(".json") and not (isinstance(record, dict) and record.keys() >= QUARANTINE_KEYS):
            yield Problem(url, "not a record of quarantine", "remove")


def _foreign_files(dataset: Dataset) -> Iterator[Problem]:
    for url in storage.list_files(dataset.url):
        if not OURS.fullmatch(storage.relative(url, dataset.url)):
            yield Problem(url, "not a file of gwm")


def _abandoned_files(dataset: Dataset) -> Iterator[Problem]:
    for url in storage.list_temporary_files(dataset.url, older_than_s=ABANDONED_AFTER_S):
        yield Problem(url, "left by a run that was killed while writing", "remove")
