"""Frames ready for training, kept on the worker's disk: small images, flow on the mask grid, backbone features.

The arrays are memory-mapped files shared by the ranks of a node: the system keeps in memory what fits and
reads the rest from disk. A frame is filled in when it is first drawn, and never computed twice while it is
kept. What a killed process had filled in is used again: the system still holds it. A power cut may leave a frame that
is marked without being written; `cache.directory` can be deleted at any time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Sample:
    """One frame, ready for a batch."""

    image: npt.NDArray[np.uint8]
    """[3, h, w] at the segmenter's input size."""
    features: list[npt.NDArray[np.float16]]
    """[C, i, j] each; empty if the backbone is trained or there is none."""
    flow: npt.NDArray[np.float16]
    """[G, 2, H, W] on the grid of the masks, px of the stored size."""
    has_flow: npt.NDArray[np.bool_]
    """[G]."""

    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """The sample as named arrays."""
        features = {f"features_{index:03d}": feature for index, feature in enumerate(self.features)}
        return {"image": self.image, "flow": self.flow, "has_flow": self.has_flow, **features}


class SampleCache:
    """Samples by frame id, in `directory`, for the first frames that fit into `max_bytes`."""

    def __init__(self, directory: Path, num_frames: int, max_bytes: int):
        self.directory = directory
        self.num_frames = num_frames
        self.max_bytes = max_bytes
        self.arrays: dict[str, npt.NDArray[np.generic]] = {}
        self.filled: npt.NDArray[np.generic] = np.zeros(0, np.uint8)

    def get(self, frame_id: int, make: Callable[[int], Sample]) -> Sample:
        """The kept sample, or the one that `make` computes, which is then kept if there is room."""
        if not self.arrays:
            sample = make(frame_id)
            self._allocate(sample)
            self._put(frame_id, sample)
            return sample
        if frame_id < len(self.filled) and self.filled[frame_id]:
            return self._kept(frame_id)
        sample = make(frame_id)
        self._put(frame_id, sample)
        return sample

    def _allocate(self, sample: Sample) -> None:
        arrays = sample.arrays()
        frame_bytes = sum(array.nbytes for array in arrays.values())
        capacity = min(self.num_frames, self.max_bytes // frame_bytes)
        self.directory.mkdir(parents=True, exist_ok=True)
        for name, array in arrays.items():
            self.arrays[name] = _shared_array(self.directory / name, (capacity, *array.shape), array.dtype)
        self.filled = _shared_array(self.directory / "filled", (capacity,), np.dtype(np.uint8))

    def _put(self, frame_id: int, sample: Sample) -> None:
        if frame_id < len(self.filled):
            for name, array in sample.arrays().items():
                self.arrays[name][frame_id] = array
            self.filled[frame_id] = 1  # last: a frame is there when all its arrays are

    def _kept(self, frame_id: int) -> Sample:
        rows = {name: array[frame_id] for name, array in self.arrays.items()}
        features = [rows[name] for name in sorted(rows) if name.startswith("features_")]
        return Sample(rows["image"], features, rows["flow"], rows["has_flow"])


def cache_folder(directory: str | None, *names: str) -> Path:
    """Where a run's cache lies: below the given folder, or the system's temporary one."""
    return Path(directory or gettempdir()) / "gwm-cache" / "-".join(names)


def _shared_array(path: Path, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> npt.NDArray[np.generic]:
    """A memory-mapped file of zeros, made once; sparse until it is written."""
    size = int(np.prod(shape)) * dtype.itemsize
    if size == 0:
        return np.zeros(shape, dtype)
    with path.open("ab") as file:
        file.truncate(max(size, file.seek(0, 2)))
    return np.memmap(path, dtype, "r+", shape=shape)
