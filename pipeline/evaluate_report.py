"""The report of gwm evaluate: figures, J of every frame, the worst and the best frames."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby, zip_longest
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.config import EvaluateConfig
from pipeline.frames import FrameList
from pipeline.layouts import IMAGES
from pipeline.placement import unwrap
from pipeline.progress import say
from pipeline.records import Row
from pipeline.report.curves import j_curve
from pipeline.report.draw import Strip, Wanted
from pipeline.report.page import NAME, Report, Sample, Scores, SequenceScores, command_time, write_report
from pipeline.report.samples import drawn, parts

MAX_SEQUENCES = 200
"""Sequences whose curves are shown, the worst ones."""
FIGURES = {
    "j_mean": "J mean",
    "j_recall": "J recall",
    "j_decay": "J decay",
    "f_mean": "F mean",
    "f_recall": "F recall",
    "f_decay": "F decay",
    "accuracy": "accuracy",
    "f_beta": "F_beta",
    "max_f_beta": "max F_beta",
}

Frame = tuple[str, int]
"""A sequence and a frame's index."""


def write_evaluate_report(
    config: EvaluateConfig,
    rows: Iterable[Row],
    scored: Iterable[Row],
    table: pa.Table,
    summary: Mapping[str, Any],
) -> None:
    """Writes report.html beside the scores of the planned rows."""
    if config.report.num_samples == 0:
        return
    url = storage.join(storage.absolute(config.output), NAME)
    flow = storage.absolute(config.flow) if config.flow is not None and config.refine.use_flow else None
    strips = strips_of_scores(rows, scored, table, config.report.num_samples)
    try:
        samples = drawn(strips, config.decode, flow=flow)
    except Exception as error:
        raise unwrap(error) from error
    write_report(url, make_report(config, samples, table, summary))
    say(f"Report: {url}")


def make_report(
    config: EvaluateConfig, samples: Sequence[Sample], table: pa.Table, summary: Mapping[str, Any]
) -> Report:
    """The report's content."""
    protocol, missing = summary["protocol"], summary["missing_sequences"]
    what = f"masks of {config.model}" if config.masks is None else config.masks
    return Report(
        title=f"Scores on {summary['dataset']}",
        lead="J is the intersection of the mask and the ground truth over their union. The samples are the frames "
        f"with the lowest and the highest J under the protocol {protocol}, of as many sequences as possible; their "
        "masks are the ones found without ground truth.",
        facts={
            "scored": what,
            "ground truth": config.data,
            "frames": f"{summary['frames']:,} in {len(summary['sequences']):,} sequences",
            "masks of another size": f"{summary['resized_masks']:,}",
            **({"sequences that are not there": ", ".join(missing)} if missing else {}),
            "gwm": summary["version"],
        },
        headline=(f"{100 * summary['j_mean']:.1f}", f"mean J, per cent, {protocol}"),
        samples=samples,
        ranked_by="J",
        scores=scores_of(table, summary),
        times=[command_time(summary)],
    )


def read_score_table(url: str) -> pa.Table:
    """The scores that gwm evaluate wrote into a folder."""
    with storage.open_read(storage.join(url, "scores.parquet")) as file:
        return pq.read_table(file)


def frame_scores(table: pa.Table) -> dict[Frame, float]:
    """J of every frame under the protocol that was asked for."""
    columns = (table[name].to_pylist() for name in ("sequence", "frame_index", "j"))
    return {(sequence, index): score for sequence, index, score in zip(*columns, strict=True)}


def scores_of(table: pa.Table, summary: Mapping[str, Any]) -> Scores:
    """The section on scores, from scores.parquet and summary.json of an evaluation."""
    protocols = summary["protocols"]
    figures = {}
    for protocol, found in protocols.items():
        values = {"j_mean": found["j_mean"], **found["statistics"]}
        figures[protocol] = {label: values[name] for name, label in FIGURES.items() if name in values}
    lowest = sorted(summary["sequences"], key=lambda name: (summary["sequences"][name], name))
    by_sequence = {name: table.filter(pc.equal(table["sequence"], name)) for name in lowest[:MAX_SEQUENCES]}
    return Scores(
        figures=figures,
        sequences=[
            _sequence_scores(name, frames, protocols, is_video=summary["dataset"] != IMAGES)
            for name, frames in by_sequence.items()
        ],
        num_left_out=max(0, len(lowest) - MAX_SEQUENCES),
    )


def _sequence_scores(
    name: str, frames: pa.Table, protocols: Mapping[str, Any], *, is_video: bool
) -> SequenceScores:
    asked = next(iter(protocols))
    columns = {asked: "j"} | {other: f"j_{other}" for other in protocols if other != asked}
    values = {protocol: frames[column].to_numpy() for protocol, column in columns.items()}
    worst = int(np.nanargmin(values[asked]))
    lowest = f"frame {frames['frame'][worst].as_py()}: {100 * values[asked][worst]:.1f}"
    means = {
        protocol: found["sequences"][name]
        for protocol, found in protocols.items()
        if name in found["sequences"]
    }
    if not is_video:
        values = {protocol: np.sort(found)[::-1] for protocol, found in values.items()}
    said = "by frame" if is_video else "of the images, in falling order"
    shown = ", ".join(f"{protocol} {100 * mean:.1f}" for protocol, mean in means.items())
    return SequenceScores(
        name=name,
        num_frames=protocols[asked]["num_frames"][name],
        means=means,
        lowest=lowest,
        curve=j_curve(f"J of {name} {said}: mean {shown}; lowest {lowest}", values),
    )


def strips_of_scores(
    rows: Iterable[Row], scored: Iterable[Row], table: pa.Table, num_samples: int
) -> list[Strip]:
    """The samples to draw: frames of the planned `rows`, with the masks that the scored ones kept."""
    j = frame_scores(table)
    chosen = extreme_frames(j, num_samples)
    frames = {row["sequence"]: FrameList.of_row(row) for row in rows}
    strips = []
    for row in scored:
        name, indices = row["sequence"], [int(index) for index in row["frame_index"]]
        found = [
            (index, _ranked(wanted, j[name, index]))
            for index, wanted in zip(indices, row["wanted"], strict=True)
            if (name, index) in chosen
        ]
        for _, same_size in groupby(found, key=lambda one: one[1].size):
            positions, wanted = zip(*same_size, strict=True)
            strips += [
                Strip(source=name, frames=frames[name], positions=positions[part], wanted=wanted[part])
                for part in parts(len(positions))
            ]
    return strips


def _ranked(wanted: Wanted, j: float) -> Wanted:
    return replace(wanted, sample=replace(wanted.sample, score=j))


def extreme_frames(j: Mapping[Frame, float], num_frames: int) -> set[Frame]:
    """Frames with the lowest and with the highest J, half of each, from one sequence after another."""
    ranked = sorted((score, frame) for frame, score in j.items() if not np.isnan(score))
    lowest = _in_turn([frame for _, frame in ranked])[: num_frames - num_frames // 2]
    highest = [
        frame for frame in _in_turn([frame for _, frame in reversed(ranked)]) if frame not in set(lowest)
    ]
    return {*lowest, *highest[: num_frames // 2]}


def _in_turn(frames: Sequence[Frame]) -> list[Frame]:
    """The frames in rounds: the first of each sequence, then the second of each."""
    sequences: dict[str, list[Frame]] = {}
    for frame in frames:
        sequences.setdefault(frame[0], []).append(frame)
    return [frame for turn in zip_longest(*sequences.values()) for frame in turn if frame is not None]
