import math
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.config import DecodeLimits, EvaluateConfig
from pipeline.evaluate_report import extreme_frames, make_report, strips_of_scores
from pipeline.layouts import read_layout
from pipeline.records import Row, decode_image
from pipeline.report.curves import MAX_POINTS, j_curve, loss_curve, lowest_of_runs
from pipeline.report.draw import draw_samples
from pipeline.scenes import render_scene, write_davis_layout
from pipeline.score_plan import plan_scores
from pipeline.score_table import protocol_means, score_summary, score_table
from pipeline.stages.score_sequence import score_sequence

LIMITS = DecodeLimits()


def test_the_worst_and_the_best_frames_come_from_one_sequence_after_another() -> None:
    j = {(f"s{s}", f): s / 10 + f / 100 for s in range(4) for f in range(5)}
    j["s0", 9] = math.nan
    assert extreme_frames(j, 4) == {("s0", 0), ("s1", 0), ("s3", 4), ("s2", 4)}
    counts = Counter(sequence for sequence, _ in extreme_frames(j, 16))
    assert counts == {f"s{s}": 4 for s in range(4)}
    assert extreme_frames(j, 1) == {("s0", 0)}
    assert extreme_frames(j, 100) == {frame for frame in j if frame != ("s0", 9)}
    assert extreme_frames(j, 0) == set()


@pytest.fixture
def scored(tmp_path: Path) -> tuple[EvaluateConfig, list[Row], list[Row]]:
    """The plan and the scores of two scenes, whose masks are their truth but for one frame."""
    write_davis_layout(tmp_path / "data", {f"s{n}": render_scene(n, num_frames=8) for n in (1, 2)})
    for path in (tmp_path / "data/Annotations/480p").rglob("*.png"):
        copy = tmp_path / "masks" / path.parent.name / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    worst = tmp_path / "masks/s2/00004.png"
    cv2.imwrite(str(worst), 255 - cv2.imread(str(worst), cv2.IMREAD_GRAYSCALE))
    config = EvaluateConfig(
        dataset="davis2016",
        data=str(tmp_path / "data"),
        masks=str(tmp_path / "masks"),
        output="scores",
        protocol="official",
    )
    rows = plan_scores(config, read_layout(config.dataset, config.data))
    return config, rows, [score_sequence(row, LIMITS, 6) for row in rows]


def test_the_masks_that_are_scored_are_drawn_beside_the_truth(
    scored: tuple[EvaluateConfig, list[Row], list[Row]],
) -> None:
    config, rows, found = scored
    assert [len([one for one in row["wanted"] if one is not None]) for row in found] == [6, 6]
    table = score_table(found, config.protocol)
    strips = strips_of_scores(rows, found, table, 6)
    done = [draw_samples({"strip": one}, side_px=480, limits=LIMITS, flow=None) for one in strips]
    samples = {sample.title: sample for row in done for sample in row["samples"]}
    assert len(samples) == 6
    worst = samples["s2, frame 4"]
    assert worst.score == 0
    assert list(worst.pictures) == ["image", "mask", "ground truth"]
    for title, sample in samples.items():
        mask, truth = (decode_image(sample.pictures[name] or b"") for name in ("mask", "ground truth"))
        assert np.array_equal(mask, truth) == (title != "s2, frame 4")
        scene = render_scene(int(sample.name[1:]), num_frames=8)
        image = decode_image(sample.pictures["image"] or b"").astype(float)
        distances = [np.abs(image - frame).mean() for frame in scene.frames]
        assert int(np.argmin(distances)) == sample.frame_index


def test_figures_and_curves_are_those_of_the_scores(
    scored: tuple[EvaluateConfig, list[Row], list[Row]],
) -> None:
    config, _, found = scored
    table = score_table(found, config.protocol)
    truth = read_layout(config.dataset, config.data)
    summary = {
        "command": "evaluate",
        "version": "1",
        "units": {"done": 2},
        "seconds": {"total": 1.0},
        "rates": {},
        "resized_masks": 0,
        **score_summary(protocol_means(table, truth, config.protocol), truth),
    }
    report = make_report(config, [], table, summary)
    assert report.headline == (f"{100 * summary['j_mean']:.1f}", "mean J, per cent, official")
    assert report.scores is not None
    assert report.scores.figures["official"]["J mean"] == summary["j_mean"]
    assert [sequence.name for sequence in report.scores.sequences] == ["s2", "s1"]
    lowest = report.scores.sequences[0]
    assert (lowest.num_frames, lowest.lowest, lowest.means["official"]) == (6, "frame 00004: 0.0", 5 / 6)
    heights = [float(point.split(",")[1]) for point in lowest.curve.lines["official"].split()]
    assert heights == [0, 0, 0, 60, 0, 0]
    assert "lowest frame 00004: 0.0" in lowest.curve.description


def test_nothing_is_kept_for_a_report_that_is_not_wanted(
    scored: tuple[EvaluateConfig, list[Row], list[Row]],
) -> None:
    _, rows, _ = scored
    assert score_sequence(rows[0], LIMITS)["wanted"] == [None] * 6


def test_a_long_curve_keeps_its_failures() -> None:
    values = np.ones(10_000)
    values[[17, 5000]] = (0.25, np.nan)
    shown = lowest_of_runs(values)
    assert len(shown) == MAX_POINTS
    assert sorted(shown)[:2] == [0.25, 1]
    points = j_curve("", {"a": np.array([0.5, np.nan, 1.0])}).lines["a"]
    assert points == "0.0,30.0 300.0,0.0"


def test_the_loss_leaves_out_what_is_not_a_number() -> None:
    curve = loss_curve([(10, 0.5), (20, float("nan")), (30, 0.25)])
    assert curve is not None
    assert curve.lines["loss"] == "0.0,0.0 600.0,160.0"
    assert loss_curve([(10, 0.5), (20, float("inf"))]) is None
