import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

from gwm_model.config import CONFIG_FILE, SegmenterConfig
from pipeline import estimate
from pipeline.config import EstimateFlowConfig, PrepareConfig, SegmentConfig, TrainConfig
from pipeline.errors import GwmError
from pipeline.placement_config import PreparePlacement, StagePlacement
from pipeline.work_plan import Work

WORK = Work(units=10, frames=320, decoded_px=320 * 240 * 432, stored_px=320 * 240 * 432)


@pytest.fixture(autouse=True)
def no_cluster_and_no_price(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("GWM_PRICE_PER_HOUR", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)


def prepare(tmp_path: Path, left: float = 1.0, **values: Any) -> dict[str, Any]:
    config = PrepareConfig(videos="in", output=str(tmp_path), **values)
    return estimate.of_prepare(config, WORK, left)


def test_a_measured_rate_is_taken_for_the_cores_here(tmp_path: Path) -> None:
    told = prepare(tmp_path)
    assert told["seconds"] == round(320 * 2 / 1.67 * 2 / 4)  # pairs, pairs a second on 2 cores, on 4 cores
    assert told["time_rests_on"].startswith("1.67 pairs/s of raft_large at 240 x 432")
    assert told["time_rests_on"].endswith("4 CPUs here")
    assert told["bytes_written"] == round(320 * 146_575_823 / 777)
    assert "cost" not in told


def test_half_the_gaps_iterations_cores_and_work(tmp_path: Path) -> None:
    whole = prepare(tmp_path)
    one_gap = prepare(tmp_path, estimate_flow=EstimateFlowConfig(gaps=(1,), iterations=6))
    assert one_gap["seconds"] == round(whole["seconds"] / 4)
    assert one_gap["bytes_written"] == pytest.approx(whole["bytes_written"] / 2, abs=1)
    two = PreparePlacement(estimate_flow=StagePlacement(num_actors=2))
    assert prepare(tmp_path, left=0.5, placement=two)["seconds"] == whole["seconds"]


@pytest.mark.parametrize(
    "placement",
    [
        PreparePlacement(estimate_flow=StagePlacement(num_gpus=1)),
        PreparePlacement(address="ray://head:10001"),
    ],
)
def test_without_a_measured_rate_there_is_no_estimate_of_time(
    tmp_path: Path, placement: PreparePlacement
) -> None:
    told = prepare(tmp_path, placement=placement)
    assert told["seconds"] is None
    assert "cost" not in told
    assert told["time_rests_on"].startswith("nothing: no rate was measured")


def test_the_run_before_beats_every_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = {
        "units": {"done": 2},
        "rows": 64,
        "bytes": 6400,
        "rates": {"units_per_s": 9.0, "rows_per_s": 0.5},
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    monkeypatch.setenv("GWM_PRICE_PER_HOUR", "4.5")
    told = prepare(tmp_path, left=0.25, placement=PreparePlacement(address="ray://head:10001"))
    assert (told["seconds"], told["bytes_written"]) == (160, 8000)
    assert told["cost"] == round(160 / 3600 * 4.5, 4)
    assert "summary.json" in told["time_rests_on"]


def test_a_stopped_run_says_its_rate_in_units(tmp_path: Path) -> None:
    progress = {"units_done": 5, "seconds": 80.0, "per_s": 7.0}
    (tmp_path / "progress.json").write_text(json.dumps(progress))
    told = prepare(tmp_path, left=0.5)
    assert told["seconds"] == 80  # five units of ten are left
    assert "progress.json" in told["time_rests_on"]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"rates": {}}'])
def test_a_damaged_summary_counts_for_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "summary.json").write_text(text)
    assert "1.67 pairs/s" in prepare(tmp_path)["time_rests_on"]


def test_a_price_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GWM_PRICE_PER_HOUR", "four")
    with pytest.raises(GwmError, match="GWM_PRICE_PER_HOUR must be a number, not 'four'"):
        prepare(tmp_path)


@pytest.mark.parametrize(
    ("segmenter", "known"), [(SegmenterConfig(), True), (SegmenterConfig(width_px=224), False)]
)
def test_segment_has_a_rate_for_the_default_network(
    tmp_path: Path, segmenter: SegmenterConfig, known: bool
) -> None:
    values = json.dumps({"segmenter": dataclasses.asdict(segmenter)})
    (tmp_path / CONFIG_FILE).write_text(values)
    config = SegmentConfig(images="in", model=str(tmp_path), output=str(tmp_path / "out"))
    told = estimate.of_segment(config, WORK, 1.0)
    assert told["seconds"] == (round(320 / 4.83 / 2) if known else None)


def test_segment_counts_the_sizes_of_the_input(tmp_path: Path) -> None:
    values = json.dumps({"segmenter": dataclasses.asdict(SegmenterConfig())})
    (tmp_path / CONFIG_FILE).write_text(values)
    config = SegmentConfig(images="in", model=str(tmp_path), output="out", input_scales=(1.0, 1.5))
    assert estimate.of_segment(config, WORK, 1.0)["seconds"] == round(3.25 * 320 / 4.83 / 2)


def test_train_counts_the_steps_that_are_left(tmp_path: Path) -> None:
    config = TrainConfig(flow="flow", output=str(tmp_path), num_steps=800, batch_size=16)
    assert estimate.of_train(config, 800)["seconds"] == 2 * 2 * 660  # twice the batch, one core for two
    (tmp_path / "progress.json").write_text(json.dumps({"done": 300, "per_s": 2.5}))
    assert estimate.steps_done(config.output) == 300
    told = estimate.of_train(config, 500)
    assert told["seconds"] == 200
    assert "bytes_written" not in told
