"""A dataset of shards: one shard for each work unit, whose existence means that the unit is done.

<url>/dataset.json              what it is, and the fingerprint of the configuration that made it
<url>/shards/<unit>.parquet     one for each finished unit; equal bytes whoever writes it
<url>/quarantine/<unit>.json    one for each unit that cannot be done, with the reason
<url>/manifest.parquet          every shard with rows, bytes, sha256 and source; written at the end
"""

import json
import traceback
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import manifest, storage
from pipeline.errors import GwmError
from pipeline.load_config import Scalar, digest, result_values
from pipeline.manifest import ManifestTotals, ShardEntry, shard_entry
from pipeline.storage_errors import without_secrets

Kind = Literal["flow", "masks", "model", "adaptation"]

NAMESPACE = uuid.UUID("6a0b4c0e-3a0f-5d7e-9a52-8f0a3f6f2a11")


def unit_id(*parts: str | int) -> str:
    """The name of a work unit: a UUID that is a pure function of the parts."""
    return str(uuid.uuid5(NAMESPACE, json.dumps(parts)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A place with shards; small, so that it travels to the workers."""

    url: str
    earlier_attempts: Mapping[str, int] = field(default_factory=dict)
    """How often earlier runs tried the units that `clear_quarantine` let go."""

    @staticmethod
    def open(url: str, *, kind: Kind, config: object, schema_version: int) -> "Dataset":
        """The dataset to write into: created here, or one that the same configuration made.

        Raises GwmError with the differing values where another configuration made it.
        """
        dataset = Dataset(url=storage.absolute(url))
        values = result_values(config)
        description = {
            "kind": kind,
            "schema_version": schema_version,
            "fingerprint": digest(values),
            "config": {key: _shown(value) for key, value in values.items()},
        }
        text = json.dumps(description, indent=1, sort_keys=True) + "\n"
        if not storage.create_bytes(dataset._description_url, text.encode()):
            _check_same(dataset.description(), description, url)
        return dataset

    @staticmethod
    def read(url: str, *, kind: Kind) -> "Dataset":
        """The dataset to read; raises GwmError where there is none of this kind."""
        dataset = Dataset(url=storage.absolute(url))
        if not storage.exists(dataset._description_url):
            command = {"flow": "gwm prepare", "masks": "gwm segment", "model": "gwm train"}[kind]
            raise GwmError(f"{url} is not a {kind} dataset: it has no dataset.json (`{command}` writes one).")
        found = dataset.description()["kind"]
        if found != kind:
            raise GwmError(f"{url} is a {found} dataset; a {kind} dataset is needed here.")
        return dataset

    def description(self) -> dict[str, Any]:
        """The content of dataset.json."""
        try:
            loaded = json.loads(storage.read_bytes(self._description_url))
            if loaded["kind"] and isinstance(loaded["config"], dict):
                return cast("dict[str, Any]", loaded)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise GwmError(f"{self._description_url} is damaged.") from error
        raise GwmError(f"{self._description_url} is damaged.")

    def shard_url(self, unit: str) -> str:
        """Where a unit's shard is, or will be."""
        return storage.join(self.url, "shards", f"{unit}.parquet")

    def quarantine_url(self, unit: str) -> str:
        """Where it is written down why a unit cannot be done."""
        return storage.join(self.url, "quarantine", f"{unit}.json")

    def is_done(self, unit: str) -> bool:
        """Whether the unit's shard exists."""
        return storage.exists(self.shard_url(unit))

    def is_quarantined(self, unit: str) -> bool:
        """Whether an earlier run gave the unit up."""
        return storage.exists(self.quarantine_url(unit))

    def clear_quarantine(self) -> "Dataset":
        """Forgets all quarantined units, so that they are tried again; the dataset that counts on from there."""
        attempts = dict(self.earlier_attempts)
        for url in list(storage.list_files(storage.join(self.url, "quarantine"))):
            unit = url.rsplit("/", 1)[-1].removesuffix(".json")
            attempts[unit] = attempts.get(unit, 0) + _attempts(storage.read_bytes(url))
            storage.delete(url)
        return replace(self, earlier_attempts=attempts)

    def write_shard(self, unit: str, table: pa.Table, **parquet_options: Any) -> ShardEntry:
        """Serialises the table in memory and writes it in one piece: equal tables give equal bytes.

        Every page has a checksum, so that a damaged shard is found even where no manifest knows it.
        The table's schema metadata names its `source`.
        """
        sink = pa.BufferOutputStream()
        pq.write_table(
            table, sink, **({"compression": "zstd", "write_page_checksum": True} | parquet_options)
        )
        data = sink.getvalue().to_pybytes()
        storage.write_bytes(self.shard_url(unit), data)
        return shard_entry(unit, data)

    def quarantine(
        self, unit: str, *, source: str, stage: str, error: BaseException | str, attempts: int = 1
    ) -> None:
        """Writes down that a unit cannot be done; `error` may be the text that a failed row carries."""
        attempts += self.earlier_attempts.get(unit, 0)
        record = {"unit": unit, "source": source, "stage": stage, "attempts": attempts, **_reason(error)}
        text = without_secrets(json.dumps(record, indent=1, sort_keys=True)) + "\n"
        storage.write_bytes(self.quarantine_url(unit), text.encode())

    def shards(self) -> Iterator[str]:
        """URLs of all shards, sorted by name."""
        for url, _ in self.shard_sizes():
            yield url

    def shard_sizes(self) -> Iterator[tuple[str, int]]:
        """URLs of all shards with their sizes in bytes, sorted by name."""
        root = storage.join(self.url, "shards")
        for url, num_bytes in storage.list_file_sizes(root):
            if url.endswith(".parquet") and "/" not in storage.relative(url, root):
                yield url, num_bytes

    def quarantined(self) -> list[dict[str, Any]]:
        """All quarantine records, sorted by unit."""
        urls = storage.list_files(storage.join(self.url, "quarantine"))
        return [json.loads(storage.read_bytes(url)) for url in urls]

    def write_manifest(self, entries: Iterable[ShardEntry] = ()) -> ManifestTotals:
        """Writes manifest.parquet from new entries and the previous one; reads only unknown shards."""
        return manifest.write(self.url, self.shard_sizes(), entries)

    def manifest(self) -> list[ShardEntry]:
        """The manifest's rows; empty where there is no manifest yet."""
        return manifest.read(self.url)

    @property
    def _description_url(self) -> str:
        return storage.join(self.url, "dataset.json")


def _shown(value: Scalar) -> Scalar:
    return without_secrets(value) if isinstance(value, str) else value


def _check_same(found: dict[str, Any], expected: dict[str, Any], url: str) -> None:
    if found["kind"] != expected["kind"]:
        raise GwmError(f"{url} holds a {found['kind']} dataset already: choose another output.")
    if found.get("schema_version") != expected["schema_version"]:
        raise GwmError(
            f"{url} was written by another version of gwm (schema {found.get('schema_version')}, "
            f"this one writes {expected['schema_version']}): choose another output."
        )
    if found.get("fingerprint") != expected["fingerprint"]:
        changes = "; ".join(_differences(found["config"], expected["config"])) or "the query of a URL"
        raise GwmError(
            f"{url} was made with other settings ({changes}): use those, or choose another output."
        )


def _differences(found: dict[str, Scalar], expected: dict[str, Scalar]) -> Iterator[str]:
    for key in sorted(found.keys() | expected.keys()):
        before, now = (json.dumps(values.get(key)).replace('\\"', '"') for values in (found, expected))
        if before != now:
            yield f"{key}: there {before}, now {now}"


def _attempts(record: bytes) -> int:
    """The attempts in a quarantine record; 1 where somebody wrote something else there."""
    try:
        return int(json.loads(record)["attempts"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return 1


def _reason(error: BaseException | str) -> dict[str, str]:
    """Reason and traceback of an exception, or of the JSON text in which a failed row carries them."""
    if isinstance(error, BaseException):
        lines = traceback.format_exception(error)
        return {"reason": str(error) or type(error).__name__, "traceback": "".join(lines)}
    try:
        carried = json.loads(error)
        return {"reason": str(carried["reason"]), "traceback": str(carried.get("traceback", ""))}
    except (ValueError, KeyError, TypeError):
        return {"reason": error, "traceback": ""}
