"""Optical flow of a clip's frames to their neighbours: the stage that holds the network."""

import time
from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gwm_model.optical_flow import FlowEstimator, load_flow_estimator
from pipeline import storage
from pipeline.config import EstimateFlowConfig, PrepareConfig
from pipeline.errors import GwmError, UnitError
from pipeline.flow_files import FlowFiles, FlowPx
from pipeline.records import Row, encode_flow, flow_column, has_flow_column
from pipeline.stages.failure import failed_row
from pipeline.torch_settings import set_up_torch
from pipeline.video import fitted_size


def load_estimator(config: EstimateFlowConfig, device: str) -> FlowEstimator:
    """Return the configured estimator on a device; GwmError if the weights cannot be had or do not fit."""
    weights = config.weights
    try:
        with storage.local_weights(weights) as path:
            return load_flow_estimator(
                config.estimator,
                weights=str(path),
                iterations=config.iterations,
                device=device,
                precision=config.precision,
            )
    except (ValueError, OSError) as error:
        raise GwmError(f"estimate_flow.weights: {error}") from error


def open_flow_source(config: PrepareConfig, device: str) -> FlowEstimator | FlowFiles:
    """Return the estimator, or the files that are there in its place; GwmError if they cannot be had."""
    if config.estimate_flow.files is not None:
        return FlowFiles(config.estimate_flow, config.decode)
    return load_estimator(config.estimate_flow, device)


def with_absolute_paths(config: PrepareConfig) -> PrepareConfig:
    """Return the configuration with absolute local paths to weights and files: workers have folders of their own."""
    flow = config.estimate_flow
    files = None if flow.files is None else storage.absolute(flow.files)
    return replace(
        config, estimate_flow=replace(flow, weights=storage.absolute_weights(flow.weights), files=files)
    )


class EstimateFlow:
    """Adds the flow of the owned frames to a clip's row, at the stored size and as stored integers."""

    def __init__(self, config: PrepareConfig, device: str, num_threads: int) -> None:
        set_up_torch(num_threads)
        self._config = config
        self._source = open_flow_source(config, device)

    def __call__(self, row: Row) -> Row:
        """Return the row with `flow_*`, `has_flow_*` and only the owned frames; other rows pass unchanged."""
        if row["status"] != "planned":
            return row
        began = time.monotonic()
        try:
            added = self._flows(row)
        except GwmError:
            raise
        except Exception as error:
            return failed_row(row, "estimate_flow", error)
        owned = slice(row["owned"], row["owned"] + row["stop"] - row["start"])
        kept = {**row, "frames": row["frames"][owned]}
        kept |= {key: row[key][owned] for key in ("frame_index", "pts", "pts_s")}
        return {**kept, **added, "seconds_estimate_flow": time.monotonic() - began}

    def _flows(self, row: Row) -> Row:
        frames = torch.from_numpy(np.array(row["frames"]))
        start, stop = row["owned"], row["owned"] + row["stop"] - row["start"]
        store = self._config.store
        size = fitted_size(row["height_px"], row["width_px"], store.height_px, store.width_px)
        gaps = self._config.estimate_flow.gaps
        has_flow = {
            gap: np.array([0 <= t + gap < len(frames) for t in range(start, stop)], np.bool_) for gap in gaps
        }
        flows: dict[int, Tensor] | dict[int, FlowPx]
        if isinstance(self._source, FlowFiles):
            flows = self._source(row, has_flow)
        else:
            flows = self._source(frames, gaps, start=start, stop=stop)
        added: Row = {
            "stored_height_px": size[0],
            "stored_width_px": size[1],
            "weights_sha256": self._source.weights_sha256 or "",
        }
        for gap in gaps:
            flow_px = torch.as_tensor(flows.pop(gap)).cpu().numpy()
            added[has_flow_column(gap)] = has_flow[gap]
            added[flow_column(gap)] = stored_flow(flow_px, has_flow[gap], *size)
        return added


def stored_flow(
    flow_px: npt.NDArray[np.float32], exists: npt.NDArray[np.bool_], height_px: int, width_px: int
) -> npt.NDArray[np.int16]:
    """Return flow [N, 2, H, W] at the stored size as integers, its vectors scaled too; 0 where absent."""
    if not np.isfinite(flow_px[exists]).all():
        raise UnitError("the flow estimator returned values that are not finite")
    stored = np.zeros((len(flow_px), 2, height_px, width_px), dtype=np.int16)
    for number in np.flatnonzero(exists):
        stored[number] = encode_flow(resize_flow(flow_px[number], height_px, width_px))
    return stored


def resize_flow(flow_px: npt.NDArray[np.float32], height_px: int, width_px: int) -> npt.NDArray[np.float32]:
    """Return one flow field [2, H, W] at another size, its vectors in pixels of that size."""
    height, width = flow_px.shape[1:]
    if (height, width) == (height_px, width_px):
        return flow_px
    shrinks = height_px <= height and width_px <= width
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    scale = (width_px / width, height_px / height)
    resized = [
        cv2.resize(part, (width_px, height_px), interpolation=method) * np.float32(factor)
        for part, factor in zip(flow_px, scale, strict=True)
    ]
    return np.stack(resized)
