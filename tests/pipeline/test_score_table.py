import io
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from pipeline.layouts import LAYOUTS, AnnotatedSequence, GroundTruth
from pipeline.score_table import (
    ProtocolScores,
    parquet_bytes,
    protocol_means,
    score_metrics,
    score_summary,
    score_table,
    screen_table,
)

NAN = math.nan


def truth_of(dataset="davis2016", missing=()):
    names = ("a", "b")
    sequences = tuple(
        AnnotatedSequence(name=name, is_video=True, frame_names=(), frame_urls=(), annotation_urls={})
        for name in names
    )
    return GroundTruth(dataset=dataset, layout=LAYOUTS[dataset], sequences=sequences, missing=missing)


def model_rows():
    scores = {"j_label_free": [0.2, 0.4], "j_paper": [NAN, 0.6], "j_oracle": [NAN, 0.8]} | {
        "f_label_free": [0.1, 0.7]
    }
    second = {"j_label_free": [0.9], "j_paper": [1.0], "j_oracle": [1.0], "f_label_free": [0.6]}
    return [
        {"sequence": "b", "frame_index": [3], "frame": ["00003"], **second},
        {"sequence": "a", "frame_index": [1, 2], "frame": ["00001", "00002"], **scores},
    ]


def test_one_row_a_frame_sorted_with_the_asked_protocol_as_j():
    table = score_table(model_rows(), "paper")
    names = [
        "sequence",
        "frame_index",
        "frame",
        "j",
        "f",
        "f_label_free",
        "j_label_free",
        "j_oracle",
        "j_paper",
    ]
    assert table.schema.names == names
    assert table["sequence"].to_pylist() == ["a", "a", "b"]
    assert table["frame_index"].to_pylist() == [1, 2, 3]
    assert table["j"].to_pylist()[1:] == [0.6, 1.0]
    assert math.isnan(table["j"].to_pylist()[0])
    again = pq.read_table(io.BytesIO(parquet_bytes(table)))
    assert again["j_label_free"].to_pylist() == [0.2, 0.4, 0.9]


def test_given_masks_have_one_score_of_regions_and_one_of_contours():
    rows = [{"sequence": "a", "frame_index": [1], "frame": ["1"], "j": [0.5], "f": [0.25], "num_resized": 0}]
    table = score_table(rows, "official")
    assert table.schema.names == ["sequence", "frame_index", "frame", "j", "f"]
    assert table["f"].to_pylist() == [0.25]


def test_the_maximum_of_f_beta_is_that_of_the_mean_over_images():
    """Each image alone reaches 1, at a threshold of its own; no threshold serves both."""
    columns = {"j": [0.5, 0.7], "f": [0.5, 0.5], "accuracy": [0.8, 0.9], "f_beta": [0.2, 0.4]}
    curves = np.array([[1.0, 0.4, 0.0], [0.0, 0.5, 1.0]])
    frames = {"frame_index": [0, 1], "frame": ["a", "b"], "num_resized": 0}
    given = {"sequence": "images", **frames, **columns, "f_beta_curve": curves}
    by_model = {f"{name}_label_free": values for name, values in {**columns, "f_beta_curve": curves}.items()}
    by_model |= {"sequence": "images", **frames, "j_paper": [0.5, 0.7], "j_oracle": [0.5, 0.7]}
    truth = truth_of("images")
    for row, asked in ((given, "official"), (by_model, "label_free")):
        table = score_table([row], asked)
        assert table["accuracy"].to_pylist() == [0.8, 0.9]
        assert table["f_beta_curve"].to_pylist() == curves.tolist()
        means = protocol_means(pq.read_table(io.BytesIO(parquet_bytes(table))), truth, asked)
        summary = score_summary(means, truth)
        expected = {"j_mean": 0.6, "accuracy": 0.85, "f_beta": 0.3, "max_f_beta": 0.5}
        assert {name: summary[name] for name in expected} == pytest.approx(expected)
        console = Console(width=100, file=io.StringIO(), record=True)
        console.print(screen_table(truth, means))
        shown = console.export_text()
        assert all(text in shown for text in ("accuracy", "85.0", "F_beta", "30.0", "max F_beta", "50.0"))
    assert "accuracy" not in means["paper"].statistics  # chosen by J


@pytest.mark.parametrize(("dataset", "mean"), [("davis2016", 0.6), ("segtrackv2", 0.5)])
def test_means_leave_out_frames_outside_a_protocol(dataset, mean):
    truth = truth_of(dataset)
    means = protocol_means(score_table(model_rows(), "label_free"), truth, "label_free")
    assert list(means) == ["label_free", "paper", "oracle"]
    assert means["label_free"].j_mean == pytest.approx(mean)
    assert means["label_free"].sequences == pytest.approx({"a": 0.3, "b": 0.9})
    assert means["paper"].j_mean == pytest.approx(0.8)
    assert means["paper"].num_frames == {"a": 1, "b": 1}
    assert means["paper"].statistics == {"j_recall": 1.0, "j_decay": 0.0}  # chosen by J: no F
    found = means["label_free"].statistics
    assert found["f_mean"] == pytest.approx({"davis2016": 0.5, "segtrackv2": 1.4 / 3}[dataset])
    assert found["j_recall"] == pytest.approx(0.5)  # no frame of a, the one of b
    assert found["j_decay"] == pytest.approx(
        -0.1
    )  # a gains 0.2 from its first frame to its second, b nothing


def test_the_summary_says_what_was_asked_first():
    truth = truth_of(missing=("c",))
    means = protocol_means(score_table(model_rows(), "oracle"), truth, "oracle")
    summary = score_summary(means, truth)
    assert summary["protocol"] == "oracle"
    assert summary["j_mean"] == pytest.approx(0.9)
    assert summary["sequences"] == pytest.approx({"a": 0.8, "b": 1.0})
    assert summary["missing_sequences"] == ["c"]
    assert summary["frames"] == 2
    assert set(summary["protocols"]) == {"label_free", "paper", "oracle"}
    metrics = score_metrics(means)
    assert metrics["j_oracle"] == pytest.approx(0.9)
    assert metrics["j_label_free/a"] == pytest.approx(0.3)
    assert metrics["f_mean_label_free"] == pytest.approx(0.5)
    assert summary["j_recall"] == 1.0


def test_the_screen_shows_every_sequence_and_the_mean_in_per_cent():
    truth = truth_of()
    means = protocol_means(score_table(model_rows(), "label_free"), truth, "label_free")
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(screen_table(truth, means))
    text = console.export_text()
    for number in ("30.0", "90.0", "60.0", "80.0"):
        assert number in text


def test_names_of_sequences_forge_no_table():
    names = ("[/red]", "[bold]a[/bold]", "a\nb", "a\x1b[2Jb")
    scores = ProtocolScores(
        j_mean=0.5,
        sequences=dict.fromkeys(names, 0.5),
        num_frames=dict.fromkeys(names, 1),
        statistics={},
    )
    console = Console(record=True, width=80, file=io.StringIO())
    console.print(screen_table(truth_of(), {"official": scores}))
    text = console.export_text()
    for shown in ("[/red]", "[bold]a[/bold]", "a\\nb", "a\\x1b[2Jb"):
        assert shown in text
