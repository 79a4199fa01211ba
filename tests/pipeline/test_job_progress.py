import json
import time
from pathlib import Path
from threading import Thread

import pytest

from pipeline import job_progress, status
from pipeline.config import PrepareConfig
from pipeline.dataset import Dataset
from pipeline.errors import GwmError
from pipeline.job_progress import JobProgress
from pipeline.unit_totals import UnitTotals


def row(status: str, *, num_units: int = 1, input_units: int = 0) -> dict[str, object]:
    counts = {"num_units": num_units, "num_inputs": int(input_units > 0), "input_units": input_units}
    return {
        "unit": "u",
        "source": "s",
        "status": status,
        "num_rows": 1,
        "num_bytes": 1,
        "sha256": "",
        **counts,
    }


class RunAtOnce(Thread):
    """A thread whose work is done when it has started."""

    def start(self) -> None:
        super().start()
        self.join()


@pytest.fixture
def output(tmp_path: Path) -> str:
    """A flow dataset of three videos, of which nothing is done."""
    (tmp_path / "videos").mkdir()
    for name in "abc":
        (tmp_path / "videos" / f"{name}.mp4").write_bytes(b"video")
    url = str(tmp_path / "flow")
    Dataset.open(
        url, kind="flow", config=PrepareConfig(videos=f"{tmp_path}/videos", output=url), schema_version=1
    )
    return url


def age(output: str, seconds: float) -> None:
    """Makes progress.json older, and its run longer."""
    path = Path(output, "progress.json")
    progress = json.loads(path.read_text())
    progress |= {"seconds": seconds, "updated": time.time() - seconds}
    path.write_text(json.dumps(progress))


def test_status_estimates_the_rest_from_the_inputs_seen_so_far(
    output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_progress, "SECONDS_BETWEEN_FILES", 0.0)
    totals = UnitTotals()
    with JobProgress("prepare", output, unit="clips", totals=totals) as progress:
        assert status.output_status(output)["total"] is None
        for unit in (row("done", input_units=4), row("done"), row("skipped"), row("quarantined")):
            totals.add(unit)
            progress.advance(1)
        age(output, 20.0)
        line = status.output_status(output)
        # 4 units of 1 input of 3: 12 in all; 2 were made in 20 s, and 8 are left
        assert (line["state"], line["done"], line["quarantined"], line["total"]) == ("running", 3, 1, 12)
        assert (line["per_s"], line["left_s"]) == (0.1, 80.0)
        age(output, 600.0)
        assert status.output_status(output)["state"] == "silent for 600 s"
    finished = status.output_status(output)
    assert (finished["state"], finished["done"], finished["total"], finished["left_s"]) == (
        "finished",
        3,
        4,
        0.0,
    )


def test_the_total_of_a_running_job_is_that_of_all_its_inputs(
    output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_progress, "Thread", RunAtOnce)
    totals = UnitTotals()
    with JobProgress(
        "prepare", output, unit="clips", totals=totals, inputs=lambda: ["a", "b", "c"]
    ) as progress:
        totals.add(row("done", input_units=4))
        progress.advance(1)
    assert json.loads(Path(output, "progress.json").read_text())["total"] == 12


def test_inputs_that_cannot_be_listed_leave_the_total_open(
    output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_progress, "Thread", RunAtOnce)
    totals = UnitTotals()
    with JobProgress("prepare", output, unit="clips", totals=totals, inputs=lambda: 1 / 0) as progress:
        totals.add(row("done", input_units=4))
        progress.advance(1)
    assert json.loads(Path(output, "progress.json").read_text())["total"] is None


def test_a_run_that_dies_does_not_say_that_it_finished(output: str) -> None:
    with pytest.raises(ZeroDivisionError), JobProgress("train", output, unit="steps", total=9):
        raise ZeroDivisionError
    line = status.output_status(output)
    assert (line["state"], line["done"], line["total"]) == ("running", 0, 9)


def test_no_output_and_a_damaged_file_are_sentences(output: str) -> None:
    with pytest.raises(GwmError, match="no command has begun there"):
        status.output_status(output)
    Path(output, "progress.json").write_text("[]")
    with pytest.raises(GwmError, match="is damaged"):
        status.output_status(output)
