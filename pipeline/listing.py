"""Inputs that one task lists while the stages already work: how a job over millions of files begins at once."""

from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import ray.data
from ray.data import Datasource
from ray.data.block import Block, BlockMetadata
from ray.data.datasource import ReadTask

from pipeline.records import Row

ROWS_LISTED_TOGETHER = 64


def listed(rows: Callable[[], Iterator[Row]]) -> ray.data.Dataset:
    """The rows of a function that a worker calls, each in a block of its own: each is planned by a task of its own.

    The function is called again where its worker is lost, and must name the same rows in the same order.
    """
    # It takes no CPU: a listing that waits for the stages would hold one for as long as the job runs.
    listing: ray.data.Dataset = ray.data.read_datasource(
        _Listing(rows), override_num_blocks=1, ray_remote_args={"num_cpus": 0}
    )
    one_by_one: ray.data.Dataset = listing.repartition(target_num_rows_per_block=1)
    return one_by_one


class _Listing(Datasource):
    """One read task that yields as it lists."""

    def __init__(self, rows: Callable[[], Iterator[Row]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._rows = rows

    def get_name(self) -> str:
        return "list_inputs"

    @property
    def supports_distributed_reads(self) -> bool:
        """A local path means the machine on which the command was given."""
        return False

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:  # noqa: ARG002
        unknown = BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None, input_files=None)
        return [ReadTask(lambda: _blocks(self._rows), unknown)]


def _blocks(rows: Callable[[], Iterator[Row]]) -> Iterator[Block]:
    together: list[Row] = []
    for row in rows():
        together.append(row)
        if len(together) == ROWS_LISTED_TOGETHER:
            yield pa.Table.from_pylist(together)
            together = []
    if together:
        yield pa.Table.from_pylist(together)
