"""Inputs that one task lists while the stages already work: how a job over millions of files begins at once.

They travel in pages, so that Ray counts thousands of blocks and not millions; pages grow, so that a few inputs are
planned side by side all the same.
"""

import json
from collections.abc import Callable, Iterator
from functools import partial, wraps
from itertools import islice
from typing import Any

import pyarrow as pa
import ray.data
from ray.data import Datasource
from ray.data.block import Block, BlockMetadata
from ray.data.datasource import ReadTask

from pipeline.records import Row

MAX_PAGE_ROWS = 64


def listed(rows: Callable[[], Iterator[Row]]) -> ray.data.Dataset:
    """Pages of the rows of a function that a worker calls; `each_of_page` takes them apart.

    The function is called again where its worker is lost, and must name the same rows in the same order.
    """
    # It takes no CPU: a listing that waits for the stages would hold one for as long as the job runs.
    no_cpu = {"num_cpus": 0}
    pages: ray.data.Dataset = ray.data.read_datasource(
        _Listing(rows), override_num_blocks=1, ray_remote_args=no_cpu
    )
    return pages


def each_of_page(plan: "partial[list[Row]]") -> Callable[[Row], Iterator[Row]]:
    """A stage, named as `plan`, that gives what `plan` makes of each row of a page as soon as it is made."""

    @wraps(plan.func)
    def planned(page: Row) -> Iterator[Row]:
        for row in json.loads(page["rows"]):
            yield from plan(row)

    return planned


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
        return [ReadTask(lambda: _pages(self._rows()), unknown)]


def _pages(rows: Iterator[Row]) -> Iterator[Block]:
    """Pages of 1, 1, 2, 4, ... rows."""
    number = 0
    while page := list(islice(rows, min(MAX_PAGE_ROWS, max(1, number)))):
        yield pa.table({"rows": [json.dumps(page)]})
        number += len(page)
