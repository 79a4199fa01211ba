"""Columns of a Parquet file that somebody else may have written."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gwm_model.errors import first_line
from pipeline import storage
from pipeline.config import DecodeLimits
from pipeline.contained import contained
from pipeline.errors import GwmError, UnitError


def read_columns(url: str, names: Sequence[str], limits: DecodeLimits) -> dict[str, list[Any]]:
    """The columns as lists, read within the limits; GwmError if the file or one of them cannot be read."""
    try:
        return contained(limits, _columns, url, names)
    except UnitError as error:
        raise GwmError(f"{url} is not a Parquet file that can be read: {error}.") from error


def first_column(url: str, names: Sequence[str], limits: DecodeLimits) -> list[Any]:
    """The first of the named columns that the file has, or its very first; GwmError as above."""
    try:
        return contained(limits, _first_column, url, names)
    except UnitError as error:
        raise GwmError(f"{url} is not a Parquet file that can be read: {error}.") from error


def _columns(url: str, names: Sequence[str]) -> dict[str, list[Any]]:
    with storage.open_read(url) as file:
        try:
            table = pq.read_table(file, columns=list(names))
            return {name: table.column(name).to_pylist() for name in names}
        except pa.ArrowMemoryError as error:
            raise MemoryError(str(error)) from error
        except (pa.ArrowException, OSError, KeyError, UnicodeDecodeError) as error:
            raise UnitError(first_line(error)) from error


def _first_column(url: str, names: Sequence[str]) -> list[Any]:
    with storage.open_read(url) as file:
        try:
            present = pq.read_schema(file).names
        except (pa.ArrowException, OSError) as error:
            raise UnitError(first_line(error)) from error
    if not present:
        raise UnitError("it has no columns")
    chosen = next((name for name in names if name in present), present[0])
    return _columns(url, [chosen])[chosen]
