"""The scores of a data set: one row for each frame, means by sequence and protocol."""

import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.markup import escape
from rich.table import Table

from pipeline.errors import printable
from pipeline.layouts import GroundTruth, dataset_mean
from pipeline.metrics import decay, recall
from pipeline.records import Row
from pipeline.stages.score_sequence import MODEL_PROTOCOLS

CURVE = "f_beta_curve"
IMAGE_STATISTICS = {"accuracy": "accuracy", "f_beta": "F_beta", "max_f_beta": "max F_beta"}
"""Statistics of single images that the screen shows, and as what."""
NOT_SCORES = ("sequence", "frame_index", "frame", "num_resized", "wanted")
SCORE_SCHEMA = pa.schema(
    [
        pa.field("sequence", pa.string(), nullable=False),
        pa.field("frame_index", pa.int32(), nullable=False),
        pa.field("frame", pa.string(), nullable=False),
        pa.field("j", pa.float64(), nullable=False),
        pa.field("f", pa.float64(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtocolScores:
    """Means under one protocol, in [0, 1], over sequences or frames as the data set has it."""

    j_mean: float
    sequences: Mapping[str, float]
    """Mean J by sequence."""
    num_frames: Mapping[str, int]
    """Frames that count, by sequence."""
    statistics: Mapping[str, float]
    """`j_recall`, `j_decay`, and where contours were scored `f_mean`, `f_recall`, `f_decay`: means over sequences.

    Of single images no decay, but `accuracy`, `f_beta` and `max_f_beta`.
    """


def score_table(rows: Iterable[Row], protocol: str) -> pa.Table:
    """scores.parquet: sequence, frame_index, frame, j, f and a model's other protocols; sorted, one row a frame.

    `j` and `f` are the scores under `protocol`, not a number for a frame that the protocol leaves out; `paper` and
    `oracle` choose by J and have no `f`. Single images also have `accuracy`, `f_beta` and `f_beta_curve`, F_beta at the
    thresholds k/255, k = 1 to 254.
    """
    frames = sorted(chain.from_iterable(_frames(row, protocol) for row in rows), key=_frame_key)
    extra = sorted({name for frame in frames for name in frame} - set(SCORE_SCHEMA.names))
    types = {name: pa.list_(pa.float64()) if name.startswith(CURVE) else pa.float64() for name in extra}
    return pa.Table.from_pylist(frames, pa.schema([*SCORE_SCHEMA, *types.items()]))


def protocol_means(scores: pa.Table, truth: GroundTruth, protocol: str) -> dict[str, ProtocolScores]:
    """Means under every protocol that was scored, the asked one first."""
    scored = [name for name in MODEL_PROTOCOLS if f"j_{name}" in scores.column_names and name != protocol]
    columns = {protocol: ""} | {name: f"_{name}" for name in scored}
    return {name: _means(scores, truth, suffix) for name, suffix in columns.items()}


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
    for name, label in IMAGE_STATISTICS.items():
        if name in asked.statistics:
            values = [
                f"{100 * scores.statistics[name]:.1f}" if name in scores.statistics else ""
                for scores in means.values()
            ]
            table.add_row(label, "", *values)
    return table


def score_summary(means: Mapping[str, ProtocolScores], truth: GroundTruth) -> dict[str, Any]:
    """What summary.json says about the scores; the first protocol is the one that was asked for."""
    protocol, asked = next(iter(means.items()))
    return {
        "dataset": truth.dataset,
        "protocol": protocol,
        "j_mean": asked.j_mean,
        **asked.statistics,
        "sequences": dict(asked.sequences),
        "frames": sum(asked.num_frames.values()),
        "missing_sequences": list(truth.missing),
        "protocols": {name: asdict(scores) for name, scores in means.items()},
    }


def score_metrics(means: Mapping[str, ProtocolScores]) -> dict[str, float]:
    """The means as tracked metrics: j_PROTOCOL, its statistics, and j_PROTOCOL/SEQUENCE."""
    metrics = {f"j_{protocol}": scores.j_mean for protocol, scores in means.items()}
    for protocol, scores in means.items():
        metrics |= {f"{name}_{protocol}": value for name, value in scores.statistics.items()}
        metrics |= {f"j_{protocol}/{name}": j for name, j in scores.sequences.items()}
    return metrics


def parquet_bytes(table: pa.Table) -> bytes:
    """The table as a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _means(scores: pa.Table, truth: GroundTruth, suffix: str) -> ProtocolScores:
    regions, contours = _by_sequence(scores, f"j{suffix}"), _by_sequence(scores, f"f{suffix}")
    single_images = f"{CURVE}{suffix}" in scores.column_names
    figures = {"recall": recall} | ({} if single_images else {"decay": decay})
    statistics = {f"j_{name}": _mean_of(figure, regions) for name, figure in figures.items()}
    if contours:
        statistics["f_mean"] = dataset_mean(truth.layout, contours)
        statistics |= {f"f_{name}": _mean_of(figure, contours) for name, figure in figures.items()}
    if single_images:
        statistics |= _image_statistics(scores, suffix)
    return ProtocolScores(
        j_mean=dataset_mean(truth.layout, regions),
        sequences={name: sum(found) / len(found) for name, found in regions.items()},
        num_frames={name: len(found) for name, found in regions.items()},
        statistics=statistics,
    )


def _image_statistics(scores: pa.Table, suffix: str) -> dict[str, float]:
    """Means over all images; the maximum is that of the mean F_beta over the thresholds."""
    means = {name: float(np.mean(scores[f"{name}{suffix}"])) for name in ("accuracy", "f_beta")}
    curves = np.asarray(scores[f"{CURVE}{suffix}"].combine_chunks().flatten())
    return means | {"max_f_beta": float(curves.reshape(scores.num_rows, -1).mean(0).max())}


def _by_sequence(scores: pa.Table, column: str) -> dict[str, list[float]]:
    """The scores that count, in the frames' order; nothing where there is no such column."""
    frames: dict[str, list[float]] = {}
    if column not in scores.column_names:
        return frames
    for name, score in zip(scores["sequence"].to_pylist(), scores[column].to_pylist(), strict=True):
        if not math.isnan(score):
            frames.setdefault(name, []).append(score)
    return frames


def _mean_of(statistic: Callable[[Sequence[float]], float], frames: Mapping[str, list[float]]) -> float:
    return sum(map(statistic, frames.values())) / max(len(frames), 1)


def _frames(row: Row, protocol: str) -> Iterator[dict[str, Any]]:
    """The frames of a scored row, with the asked protocol's scores under their plain names."""
    names = [name for name in row if name not in NOT_SCORES]
    suffix = "" if "j" in names else f"_{protocol}"
    for number, frame_index in enumerate(row["frame_index"]):
        scores = {name: row[name][number] for name in names}
        asked = {name.removesuffix(suffix): score for name, score in scores.items() if name.endswith(suffix)}
        frame = {"frame_index": int(frame_index), "frame": row["frame"][number]}
        yield {"sequence": row["sequence"], **frame, "f": math.nan, **asked, **scores}


def _frame_key(frame: Mapping[str, Any]) -> tuple[str, int]:
    return frame["sequence"], frame["frame_index"]
