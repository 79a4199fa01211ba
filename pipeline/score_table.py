"""The scores of a data set: one row for each frame, means by sequence and protocol."""

import io
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.markup import escape
from rich.table import Table

from pipeline.errors import printable
from pipeline.layouts import GroundTruth, dataset_mean
from pipeline.records import Row
from pipeline.stages.score_sequence import MODEL_PROTOCOLS

SCORE_SCHEMA = pa.schema(
    [
        pa.field("sequence", pa.string(), nullable=False),
        pa.field("frame_index", pa.int32(), nullable=False),
        pa.field("frame", pa.string(), nullable=False),
        pa.field("j", pa.float64(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtocolScores:
    """Means of J under one protocol, in [0, 1]."""

    j_mean: float
    sequences: Mapping[str, float]
    num_frames: Mapping[str, int]
    """Frames that count, by sequence."""


def score_table(rows: Iterable[Row], protocol: str) -> pa.Table:
    """scores.parquet: sequence, frame_index, frame, j and a model's other protocols; sorted, one row a frame.

    `j` is the score under `protocol`, not a number for a frame that the protocol leaves out.
    """
    frames = sorted(chain.from_iterable(_frames(row, protocol) for row in rows), key=_frame_key)
    extra = sorted({name for frame in frames for name in frame} - set(SCORE_SCHEMA.names))
    return pa.Table.from_pylist(frames, pa.schema([*SCORE_SCHEMA, *((name, pa.float64()) for name in extra)]))


def protocol_means(scores: pa.Table, truth: GroundTruth, protocol: str) -> dict[str, ProtocolScores]:
    """Means under every protocol that was scored, the asked one first."""
    scored = [name for name in MODEL_PROTOCOLS if f"j_{name}" in scores.column_names and name != protocol]
    columns = {protocol: "j"} | {name: f"j_{name}" for name in scored}
    return {name: _means(scores, truth, column) for name, column in columns.items()}


def screen_table(truth: GroundTruth, means: Mapping[str, ProtocolScores]) -> Table:
    """The table to look at: J in per cent, a line for each sequence and the mean."""
    table = Table(title=f"J on {truth.dataset}, per cent")
    table.add_column("sequence")
    table.add_column("frames", justify="right")
    for protocol in means:
        table.add_column(protocol, justify="right")
    asked = next(iter(means.values()))
    for name in asked.sequences:
        values = [f"{100 * scores.sequences.get(name, math.nan):.1f}" for scores in means.values()]
        table.add_row(escape(printable(name)), str(asked.num_frames[name]), *values)
    table.add_section()
    table.add_row(
        "mean",
        str(sum(asked.num_frames.values())),
        *(f"{100 * scores.j_mean:.1f}" for scores in means.values()),
    )
    return table


def score_summary(means: Mapping[str, ProtocolScores], truth: GroundTruth) -> dict[str, Any]:
    """What summary.json says about the scores; the first protocol is the one that was asked for."""
    protocol, asked = next(iter(means.items()))
    return {
        "dataset": truth.dataset,
        "protocol": protocol,
        "j_mean": asked.j_mean,
        "sequences": dict(asked.sequences),
        "frames": sum(asked.num_frames.values()),
        "missing_sequences": list(truth.missing),
        "protocols": {name: asdict(scores) for name, scores in means.items()},
    }


def score_metrics(means: Mapping[str, ProtocolScores]) -> dict[str, float]:
    """The means as tracked metrics: j_PROTOCOL, and j_PROTOCOL/SEQUENCE."""
    metrics = {f"j_{protocol}": scores.j_mean for protocol, scores in means.items()}
    for protocol, scores in means.items():
        metrics |= {f"j_{protocol}/{name}": j for name, j in scores.sequences.items()}
    return metrics


def parquet_bytes(table: pa.Table) -> bytes:
    """The table as a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _means(scores: pa.Table, truth: GroundTruth, column: str) -> ProtocolScores:
    frames: dict[str, list[float]] = {}
    for name, score in zip(scores["sequence"].to_pylist(), scores[column].to_pylist(), strict=True):
        if not math.isnan(score):
            frames.setdefault(name, []).append(score)
    return ProtocolScores(
        j_mean=dataset_mean(truth.layout, frames),
        sequences={name: sum(found) / len(found) for name, found in frames.items()},
        num_frames={name: len(found) for name, found in frames.items()},
    )


def _frames(row: Row, protocol: str) -> Iterator[dict[str, Any]]:
    """The frames of a scored row, with the asked protocol's score as `j`."""
    names = [name for name in row if name == "j" or name.startswith("j_")]
    headline = "j" if "j" in names else f"j_{protocol}"
    for number, frame_index in enumerate(row["frame_index"]):
        scores = {name: float(row[name][number]) for name in names}
        frame = {"frame_index": int(frame_index), "frame": row["frame"][number], "j": scores[headline]}
        yield {"sequence": row["sequence"], **frame, **scores}


def _frame_key(frame: Mapping[str, Any]) -> tuple[str, int]:
    return frame["sequence"], frame["frame_index"]
