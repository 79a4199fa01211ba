"""A clip's shard: written whole or not at all, and the same bytes each time."""

import json
import time

import numpy as np
import pyarrow as pa

from pipeline.config import EstimateFlowConfig, PrepareConfig
from pipeline.dataset import Dataset
from pipeline.images import resize_image
from pipeline.records import (
    Row,
    encode_image,
    flow_array,
    flow_column,
    flow_parquet_options,
    flow_schema,
    has_flow_column,
)


def write_flow_shard(row: Row, config: PrepareConfig, dataset: Dataset) -> Row:
    """Write the clip's shard, or put a failed unit into quarantine; return the summary row of the unit."""
    began = time.monotonic()
    summary = _summary(row)
    if row["status"] == "failed":
        failure = json.loads(row["failure"])
        where = {"source": row["source"], "stage": failure["stage"], "attempts": failure["attempts"]}
        dataset.quarantine(row["unit"], **where, error=row["failure"])
        return {**summary, "status": "quarantined", "reason": failure["reason"]}
    if row["status"] != "planned":
        return summary
    table = flow_shard(row, config)
    entry = dataset.write_shard(row["unit"], table, **flow_parquet_options(config.estimate_flow.gaps))
    return {
        **summary,
        "status": "done",
        "num_rows": entry.num_rows,
        "num_pairs": sum(int(np.sum(row[has_flow_column(gap)])) for gap in config.estimate_flow.gaps),
        "num_bytes": entry.num_bytes,
        "sha256": entry.sha256,
        "seconds_write_flow_shard": time.monotonic() - began,
    }


def flow_shard(row: Row, config: PrepareConfig) -> pa.Table:
    """Return the record (pipeline/records.py) of a clip that has its flow."""
    gaps = config.estimate_flow.gaps
    height_px, width_px = row["stored_height_px"], row["stored_width_px"]
    num_rows = len(row["frames"])
    schema = flow_schema(
        gaps,
        height_px,
        width_px,
        {"source": row["source"], **_made_by(row, config.estimate_flow)},
    )
    pictures = (np.asarray(frame).transpose(1, 2, 0) for frame in row["frames"])
    images = [encode_image(resize_image(picture, height_px, width_px)) for picture in pictures]
    columns = [
        pa.array([row["source"]] * num_rows, pa.string()),
        pa.array(row["frame_index"], pa.int32()),
        pa.array(row["pts_s"], pa.float64()),
        pa.array(images, pa.binary()),
        *(flow_array(np.asarray(row[flow_column(gap)])) for gap in gaps),
        *(pa.array(np.asarray(row[has_flow_column(gap)]), pa.bool_()) for gap in gaps),
        pa.array([row["source_height_px"]] * num_rows, pa.int32()),
        pa.array([row["source_width_px"]] * num_rows, pa.int32()),
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _made_by(row: Row, flow: EstimateFlowConfig) -> dict[str, str | int]:
    """Return how the flow came about: by an estimator, or from files, of which no more is known."""
    if flow.files is not None:
        return {"estimator": "files"}
    return {
        "estimator": flow.estimator,
        "iterations": flow.iterations,
        "precision": flow.precision,
        "weights_sha256": row["weights_sha256"],
    }


def _summary(row: Row) -> Row:
    """Return the columns that every unit ends with."""
    return {
        "unit": row["unit"],
        "source": row["source"],
        "status": row["status"],
        "reason": "",
        "num_units": int(row.get("num_units") or 1),
        "num_inputs": int(row.get("num_inputs") or 0),
        "input_units": int(row.get("input_units") or 0),
        "num_rows": 0,
        "num_pairs": 0,
        "num_bytes": 0,
        "sha256": "",
        "seconds_plan_clips": float(row.get("seconds_plan_clips") or 0.0),
        "seconds_decode_clip": float(row.get("seconds_decode_clip") or 0.0),
        "seconds_estimate_flow": float(row.get("seconds_estimate_flow") or 0.0),
        "seconds_write_flow_shard": 0.0,
    }
