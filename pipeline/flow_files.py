"""Flow in the files of other tools: Middlebury's .flo and KITTI's 16-bit PNG.

Estimated flow lies as the published code keeps it: one folder for each gap, in it one for each video, in it one
file for each frame that has a frame `gap` later, named as that frame: Flows_gap1/blackswan/00003.flo.
"""

import struct
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

import cv2
import numpy as np
import numpy.typing as npt

from pipeline import storage
from pipeline.config import DecodeLimits, EstimateFlowConfig
from pipeline.contained import contained
from pipeline.errors import GwmError, UnitError
from pipeline.images import present
from pipeline.inputs import VIDEO_SUFFIXES
from pipeline.records import FLOW_SCALE, Row, encode_flow

FlowPx = npt.NDArray[np.float32]
"""[2, H, W]: dx right, dy down, pixels; not a number where it is unknown."""

FLO_HEADER = struct.Struct("<fii")
FLO_MAGIC = 202021.25
FLO_UNKNOWN_PX = 1e9
"""A larger component means that the pixel's flow is unknown."""
KITTI_ZERO = 2**15
SUFFIXES = (".flo", ".png")


def encode_flo(flow: FlowPx) -> bytes:
    """Middlebury's .flo: magic number, width and height, then dx and dy of each pixel in float32."""
    height_px, width_px = flow.shape[1:]
    pixels = np.where(np.isfinite(flow), flow, 2 * FLO_UNKNOWN_PX).transpose(1, 2, 0)
    return FLO_HEADER.pack(FLO_MAGIC, width_px, height_px) + pixels.astype("<f4").tobytes()


def decode_flo(encoded: bytes) -> FlowPx:
    """The flow of a .flo file; ValueError where it is none."""
    if len(encoded) < FLO_HEADER.size:
        raise ValueError("it is too short")
    magic, width_px, height_px = FLO_HEADER.unpack_from(encoded)
    if magic != FLO_MAGIC or min(width_px, height_px) < 1:
        raise ValueError("its header is wrong")
    if len(encoded) != FLO_HEADER.size + 8 * width_px * height_px:
        raise ValueError(f"it has not {width_px} x {height_px} pixels as it says")
    pixels = np.frombuffer(encoded, "<f4", offset=FLO_HEADER.size).reshape(height_px, width_px, 2)
    flow = pixels.transpose(2, 0, 1).astype(np.float32)
    return np.where(np.abs(flow) > FLO_UNKNOWN_PX, np.float32(np.nan), flow)


def encode_kitti(flow: FlowPx) -> bytes:
    """KITTI's PNG: red and green are dx and dy in px * 64 + 2^15, 16 bits; blue is 1 where they are known.

    Exact for flow on the grid of 1/64 px, as in flow shards; components saturate at 511 px.
    """
    known = np.isfinite(flow).all(0)
    red, green = encode_flow(np.where(known, flow, 0)).astype(np.int32) + KITTI_ZERO
    bgr = np.stack([known, green * known, red * known], -1).astype(np.uint16)
    done, encoded = cv2.imencode(".png", bgr)
    if not done:
        raise ValueError(f"flow of shape {flow.shape} cannot be encoded as PNG")
    return bytes(encoded)


def decode_kitti(encoded: bytes) -> FlowPx:
    """The flow of a KITTI PNG; ValueError where it is none."""
    bgr = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED) if encoded else None
    if bgr is None or bgr.dtype != np.uint16 or bgr.ndim != 3 or bgr.shape[2] != 3:
        raise ValueError("it is no PNG with three channels of 16 bits")
    flow = (bgr[..., :0:-1].transpose(2, 0, 1).astype(np.float32) - KITTI_ZERO) / FLOW_SCALE
    return np.where(bgr[..., 0] > 0, flow, np.float32(np.nan))


def read_flow_file(url: str) -> FlowPx:
    """The flow of a .flo or .png file; UnitError if there is none that can be read."""
    with present(url):
        encoded = storage.read_bytes(url)
    try:
        return decode_flo(encoded) if url.endswith(".flo") else decode_kitti(encoded)
    except (ValueError, cv2.error) as error:
        raise UnitError(f"{url} is not a flow file that can be read: {error}") from error


class FlowFiles:
    """Flow that is there already, in the place of an estimator."""

    weights_sha256: str | None = None

    def __init__(self, config: EstimateFlowConfig, limits: DecodeLimits) -> None:
        self._folders = {gap: str(config.files).replace("{gap}", str(gap)) for gap in config.gaps}
        self._limits = limits
        for folder in self._folders.values():
            if not storage.is_folder(folder):
                raise GwmError(f"estimate_flow.files: there is no folder {folder}.")

    def __call__(self, row: Row, exists: Mapping[int, npt.NDArray[np.bool_]]) -> dict[int, FlowPx]:
        """For each gap the flow [N, 2, h, w] of a clip's own frames, 0 where `exists` says no; at the files' size.

        UnitError names the first file that is missing, broken, not of the others' size, or not dense.
        """
        return {gap: self._read(row, gap, wanted) for gap, wanted in exists.items()}

    def _read(self, row: Row, gap: int, wanted: npt.NDArray[np.bool_]) -> FlowPx:
        folder = storage.join(self._folders[gap], video_folder(row["source"]))
        with present(folder):
            files = {PurePosixPath(url).name: url for url in storage.list_folder(folder)}
        flows: list[FlowPx | None] = []
        for stem, is_wanted in zip(_frame_stems(row), wanted, strict=True):
            flows.append(self._dense(_file_of(stem, files, folder)) if is_wanted else None)
        sizes = {flow.shape for flow in flows if flow is not None} or {(2, row["height_px"], row["width_px"])}
        if len(sizes) > 1:
            raise UnitError(f"{folder} has flow files of different sizes")
        shape = sizes.pop()
        return np.stack([np.zeros(shape, np.float32) if flow is None else flow for flow in flows])

    def _dense(self, url: str) -> FlowPx:
        flow: FlowPx = contained(self._limits, read_flow_file, url)
        if not np.isfinite(flow).all():
            raise UnitError(f"{url} has pixels without flow")
        return flow


def video_folder(source: str) -> str:
    """The folder of a video's flow: the video's own path, a video file's without its suffix."""
    path = PurePosixPath(source)
    return str(path.with_suffix("") if path.suffix.lower() in VIDEO_SUFFIXES else path)


def _frame_stems(row: Row) -> Sequence[str]:
    """Names of a clip's own frames without suffix: their files', or their numbers in the video."""
    own = slice(row["owned"], row["owned"] + row["stop"] - row["start"])
    if row["kind"] == "frames":
        return [PurePosixPath(url).stem for url in row["frame_urls"][own]]
    return [f"{number:05d}" for number in row["frame_index"][own]]


def _file_of(stem: str, files: Mapping[str, str], folder: str) -> str:
    found = [files[name] for suffix in SUFFIXES if (name := f"{stem}{suffix}") in files]
    if not found:
        raise UnitError(f"there is no {storage.join(folder, stem)}.flo or .png")
    return found[0]
