"""The optical flow of a video's frames, from a flow dataset of the same videos: for refining masks by it."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.errors import GwmError, UnitError
from pipeline.flow_dataset import open_flow_dataset
from pipeline.predictions import sequence_name
from pipeline.records import Row, decode_flow, flow_column, has_flow_column

INDEXED_SHARDS = 4096
"""Shards of which is kept which frames they hold."""


class VideoFlow(NamedTuple):
    """Flow of frames to others."""

    flow: npt.NDArray[np.float16]
    """[N, G, 2, H, W], pixels of its own size; zeros where there is none."""
    has_flow: npt.NDArray[np.bool_]
    """[N, G]."""

    def to_row(self) -> Row:
        """Columns that carry the flow in a row."""
        return self._asdict()

    @staticmethod
    def of_row(row: Row) -> "VideoFlow | None":
        """The flow that `to_row` put into a row, if any."""
        return VideoFlow(np.array(row["flow"]), np.array(row["has_flow"])) if "flow" in row else None


def read_video_flow(url: str, video: str, positions: Sequence[int]) -> VideoFlow:
    """The flow of a video's frames at these positions; a frame that the dataset left out has none.

    The video is known by its source, or else by its last name where one source alone has it. GwmError: the dataset does
    not hold it. UnitError: none of the frames is there.
    """
    by_source, by_name, gaps = _index(url)
    shards = by_source.get(video) or by_name.get(sequence_name(video))
    if shards is None:
        raise GwmError(f"flow={url} holds no video {video}.")
    places = {position: place for place, position in enumerate(positions)}
    frames = {
        places[position]: (flow, has_flow)
        for shard in shards
        for position, flow, has_flow in _frames(shard, gaps, places)
    }
    if not frames:
        raise UnitError(f"flow={url} holds none of these frames of {video}")
    shape = next(iter(frames.values()))[0].shape
    found = VideoFlow(
        np.zeros((len(positions), *shape), np.float16), np.zeros((len(positions), len(gaps)), np.bool_)
    )
    for place, (flow, has_flow) in frames.items():
        found.flow[place], found.has_flow[place] = flow, has_flow
    return found


@lru_cache(maxsize=2)
def _index(
    url: str,
) -> tuple[Mapping[str, Sequence[str]], Mapping[str, Sequence[str]], tuple[int, ...]]:
    """The shards of each source, those of each last name that one source alone has, and the gaps."""
    dataset = open_flow_dataset(url)
    by_source: dict[str, list[str]] = {}
    for entry in dataset.shards:
        by_source.setdefault(entry.source, []).append(dataset.dataset.shard_url(entry.unit))
    num_sources = Counter(map(sequence_name, by_source))
    by_name = {sequence_name(source): shards for source, shards in by_source.items()}
    return by_source, {name: by_name[name] for name in by_name if num_sources[name] == 1}, dataset.gaps


def _frames(
    shard: str, gaps: Sequence[int], wanted: Mapping[int, int]
) -> Iterator[tuple[int, npt.NDArray[np.float32], list[bool]]]:
    """Position, flow [G, 2, H, W] and whether it exists, of the wanted frames in a shard."""
    rows = [(row, position) for row, position in enumerate(_positions(shard)) if position in wanted]
    if not rows:
        return
    columns = [*map(flow_column, gaps), *map(has_flow_column, gaps)]
    with storage.open_read(shard) as source:
        file = pq.ParquetFile(source)
        for number, position in rows:
            row = file.read_row_group(number, columns=columns)  # a row group is one row
            flow = [row[flow_column(gap)].combine_chunks().to_numpy_ndarray()[0] for gap in gaps]
            has_flow = [row[has_flow_column(gap)][0].as_py() for gap in gaps]
            yield position, decode_flow(np.stack(flow)), has_flow


@lru_cache(maxsize=INDEXED_SHARDS)
def _positions(shard: str) -> tuple[int, ...]:
    """The positions of a shard's frames: read once, as every chunk of a video asks for those of all its shards."""
    with storage.open_read(shard) as source:
        return tuple(pq.read_table(source, columns=["frame_index"])["frame_index"].to_pylist())
