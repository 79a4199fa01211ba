"""The flow record: what one row of a flow shard holds, and how its pixels become bytes.

One row per frame. Any Parquet reader sees these columns:

| column                            | type                   | meaning                                   |
|-----------------------------------|------------------------|-------------------------------------------|
| video                             | string                 | source, relative to the input root        |
| frame_index                       | int32                  | 0-based in the video's presentation order |
| pts_s                             | float64                | presentation time, seconds                |
| image                             | binary                 | JPEG q95 4:4:4 at the stored size         |
| flow_p1, flow_m1, ...             | tensor int16 [2, H, W] | flow to frame +1, -1, ...: dx right, dy   |
|                                   |                        | down, in pixels of the stored size * 64   |
| has_flow_p1, has_flow_m1, ...     | bool                   | whether that frame exists; else flow is 0 |
| source_height_px, source_width_px | int32                  | upright size of the source                |

The tensors are Arrow's `fixed_shape_tensor`. Every row is a row group, so that one frame can be read alone.
Gaps count kept frames (decode.stride, decode.fps). Schema metadata: schema_version, kind, source, gaps,
flow_scale, estimator, iterations, precision, weights_sha256, height_px, width_px; of flow that was there already,
estimator=files without the three that follow.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa

Row = dict[str, Any]
"""One row of a Ray dataset, as stages see it."""

FLOW_SCHEMA_VERSION = 1
FLOW_SCALE = 64
"""Stored int16 values are pixels times this."""
MAX_FLOW_PX = 511.0
"""Flow components saturate at plus or minus this."""
JPEG_OPTIONS = [
    cv2.IMWRITE_JPEG_QUALITY,
    95,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
]


def flow_column(gap: int) -> str:
    """Return the name of the column with the flow to the frame `gap` later: flow_p1, flow_m2."""
    return f"flow_{'p' if gap > 0 else 'm'}{abs(gap)}"


def has_flow_column(gap: int) -> str:
    """Return the name of the column that says whether the frame `gap` later exists."""
    return f"has_{flow_column(gap)}"


def encode_flow(flow_px: npt.NDArray[np.float32]) -> npt.NDArray[np.int16]:
    """Return the stored integers of finite flow in pixels: rounded to 1/64 px, saturated at 511 px."""
    return np.rint(np.clip(flow_px, -MAX_FLOW_PX, MAX_FLOW_PX) * FLOW_SCALE).astype(np.int16)


def decode_flow(stored: npt.NDArray[np.int16]) -> npt.NDArray[np.float32]:
    """Return flow in pixels of the stored size; inverse of encode_flow within 1/128 px."""
    return stored.astype(np.float32) / np.float32(FLOW_SCALE)


def encode_image(image: npt.NDArray[np.uint8]) -> bytes:
    """Return an RGB image [H, W, 3] as JPEG, quality 95 without chroma subsampling."""
    done, encoded = cv2.imencode(".jpg", image[..., ::-1], JPEG_OPTIONS)
    if not done:
        raise ValueError(f"an image of shape {image.shape} cannot be encoded as JPEG")
    return bytes(encoded)


def decode_image(encoded: bytes) -> npt.NDArray[np.uint8]:
    """Return the RGB image [H, W, 3] of the column `image` (JPEG, PNG or WebP)."""
    image = cv2.imdecode(np.frombuffer(encoded, dtype=np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError("the bytes are not an image")
    return np.asarray(image[..., ::-1], dtype=np.uint8)


def flow_schema(
    gaps: Sequence[int], height_px: int, width_px: int, metadata: Mapping[str, str | int | Sequence[int]]
) -> pa.Schema:
    """Return the Arrow schema of a flow shard. Nothing is nullable: absent flow is zeros and a false flag."""
    flow = pa.fixed_shape_tensor(pa.int16(), [2, height_px, width_px])
    columns: list[tuple[str, pa.DataType]] = [
        ("video", pa.string()),
        ("frame_index", pa.int32()),
        ("pts_s", pa.float64()),
        ("image", pa.binary()),
        *((flow_column(gap), flow) for gap in gaps),
        *((has_flow_column(gap), pa.bool_()) for gap in gaps),
        ("source_height_px", pa.int32()),
        ("source_width_px", pa.int32()),
    ]
    described = {
        "kind": "flow",
        "schema_version": FLOW_SCHEMA_VERSION,
        "gaps": list(gaps),
        "flow_scale": FLOW_SCALE,
        "height_px": height_px,
        "width_px": width_px,
        **metadata,
    }
    text = {key: value if isinstance(value, str) else json.dumps(value) for key, value in described.items()}
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns], metadata=text)


def flow_array(flow: npt.NDArray[np.int16]) -> pa.ExtensionArray:
    """Return stored flow [N, 2, H, W] as an Arrow tensor column."""
    return pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(flow))


def flow_parquet_options(gaps: Sequence[int]) -> dict[str, Any]:
    """Return the Parquet options of a flow shard: split bytes, then zstd; row groups of one row."""
    return {
        "compression": "zstd",
        "compression_level": 3,
        "row_group_size": 1,
        "use_dictionary": ["video"],
        "column_encoding": {f"{flow_column(gap)}.list.element": "BYTE_STREAM_SPLIT" for gap in gaps},
        "write_statistics": ["video", "frame_index", "pts_s"],
    }
