"""Inputs reach the stages while they are still being listed."""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from pipeline.errors import GwmError
from pipeline.listing import each_of_page, listed
from pipeline.placement import start_ray, tasks, unwrap
from pipeline.placement_config import ClusterPlacement, StagePlacement
from pipeline.records import Row

NUM_ROWS, PATIENCE_S = 300, 120.0


def rows_that_wait(begun: Path) -> Iterator[Row]:
    """Half of the rows, and the others when a stage has seen one."""
    for number in range(NUM_ROWS):
        if number == NUM_ROWS // 2:
            deadline = time.monotonic() + PATIENCE_S
            while not begun.exists():
                assert time.monotonic() < deadline, "no row reached the stage while the listing went on"
                time.sleep(0.01)
        yield {"number": number, "name": "n"}


def rows_that_fail() -> Iterator[Row]:
    yield {"number": 0, "name": ""}
    raise GwmError("the bucket is gone.")


def mark(row: Row, begun: Path) -> list[Row]:
    begun.touch()
    return [{"number": row["number"]}]


@pytest.mark.usefixtures("ray_local")
def test_work_begins_before_the_listing_ends_and_no_row_is_lost(tmp_path: Path) -> None:
    start_ray(ClusterPlacement())
    begun = tmp_path / "begun"
    plan = each_of_page(partial(mark, begun=begun))
    seen = listed(partial(rows_that_wait, begun)).flat_map(plan, **tasks(StagePlacement(num_cpus=1)))
    assert sorted(row["number"] for row in seen.iter_rows()) == list(range(NUM_ROWS))


@pytest.mark.usefixtures("ray_local")
def test_a_listing_that_fails_is_its_sentence() -> None:
    start_ray(ClusterPlacement())
    with pytest.raises(Exception, match="the bucket is gone") as raised:
        list(listed(rows_that_fail).iter_rows())
    assert str(unwrap(raised.value)) == "the bucket is gone."
