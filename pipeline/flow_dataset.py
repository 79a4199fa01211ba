"""A flow dataset as training sees it: an index of frames, a deterministic order, and single frames read on demand."""

import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from threading import Lock
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.dataset import Dataset
from pipeline.errors import GwmError
from pipeline.manifest import ShardEntry, content_digest
from pipeline.records import decode_flow, decode_image, flow_column, has_flow_column

SHUFFLE_SHARDS = 256
"""Shards whose frames are shuffled together: the order stays random and a reader keeps this many files in sight."""
OPEN_SHARDS = 512
"""Shards kept open for reading (their footers are then read once)."""


FLOW_FILE = "flow.json"
"""In the output of training: the shards that it began with."""


class Frame(NamedTuple):
    """One frame of a flow dataset, decoded."""

    image: npt.NDArray[np.uint8]
    """RGB [H, W, 3] at the stored size."""
    flow: npt.NDArray[np.float32]
    """[G, 2, H, W], px, in the order of the dataset's gaps; zeros where there is none."""
    has_flow: npt.NDArray[np.bool_]
    """[G]."""


@dataclass(frozen=True, slots=True)
class FlowDataset:
    """The shards of a flow dataset, in a fixed order, and the gaps they hold."""

    shards: tuple[ShardEntry, ...]
    gaps: tuple[int, ...]
    dataset: Dataset

    @property
    def num_frames(self) -> int:
        """Frames in all shards."""
        return sum(shard.num_rows for shard in self.shards)

    def first_ids(self) -> npt.NDArray[np.int64]:
        """The id of each shard's first frame: ids number the frames of all shards in order."""
        rows = np.array([0, *(shard.num_rows for shard in self.shards)], np.int64)
        return np.cumsum(rows)[:-1]

    def content_digest(self) -> str:
        """Equal for equal shards, wherever they lie."""
        return content_digest(self.shards)

    def sources(self, frame_ids: Sequence[int]) -> list[str]:
        """The inputs that these frames were made from, each once, sorted."""
        shards = np.searchsorted(self.first_ids(), frame_ids, side="right") - 1
        return sorted({self.shards[shard].source for shard in shards})

    def epoch(self, seed: int, epoch: int) -> Iterator[int]:
        """All frame ids, each once, in an order that depends on seed and epoch alone.

        Shards are shuffled, then the frames of every SHUFFLE_SHARDS of them, so that no list of all frames is needed.
        """
        generator = np.random.default_rng([seed, epoch])
        shards, first = generator.permutation(len(self.shards)), self.first_ids()
        for start in range(0, len(shards), SHUFFLE_SHARDS):
            window = shards[start : start + SHUFFLE_SHARDS]
            ids = np.concatenate([first[shard] + np.arange(self.shards[shard].num_rows) for shard in window])
            yield from generator.permutation(ids).tolist()

    def batches(
        self, seed: int, batch_size: int, first_step: int, *, by_video: bool = False
    ) -> Iterator[list[int]]:
        """Endless batches of frame ids from `first_step` on; epochs follow each other without a gap.

        `by_video` knows no epochs: each frame is one of a video that is drawn whatever its length.
        """
        if by_video:
            videos = self._videos()
            for step in count(first_step):
                generator = np.random.default_rng([seed, step])
                drawn = generator.integers(len(videos), size=batch_size)
                yield [int(generator.choice(videos[video])) for video in drawn]
        position = first_step * batch_size
        epoch, skipped = divmod(position, self.num_frames)
        stream = islice(self._epochs(seed, epoch), skipped, None)
        while True:
            yield list(islice(stream, batch_size))

    def _videos(self) -> list[npt.NDArray[np.int64]]:
        """The frame ids of each video."""
        videos: dict[str, list[npt.NDArray[np.int64]]] = {}
        for shard, first in zip(self.shards, self.first_ids(), strict=True):
            videos.setdefault(shard.source, []).append(first + np.arange(shard.num_rows))
        return [np.concatenate(ids) for ids in videos.values()]

    def _epochs(self, seed: int, epoch: int) -> Iterator[int]:
        while True:
            yield from self.epoch(seed, epoch)
            epoch += 1


def open_flow_dataset(url: str) -> FlowDataset:
    """The flow dataset at `url`. GwmError if there is none, or if it is empty."""
    dataset = Dataset.read(url, kind="flow")
    shards = tuple(dataset.manifest())
    try:
        gaps = tuple(int(gap) for gap in json.loads(dataset.description()["config"]["estimate_flow.gaps"]))
    except (KeyError, TypeError, ValueError) as error:
        raise GwmError(f"The flow dataset {url} has a damaged dataset.json.") from error
    if not shards:
        raise GwmError(
            f"The flow dataset {url} is empty: run gwm prepare until it ends, or gwm verify to rebuild its manifest."
        )
    return FlowDataset(shards, gaps, dataset)


def refuse_other_flow(output: str, flow: FlowDataset) -> None:
    """Notes in `output` with which shards training began; GwmError where it began with others."""
    url = storage.join(output, FLOW_FILE)
    now = {"digest": flow.content_digest(), "num_shards": len(flow.shards), "num_frames": flow.num_frames}
    if storage.create_bytes(url, (json.dumps(now) + "\n").encode()):
        return
    try:
        before = json.loads(storage.read_bytes(url))
        is_same = before["digest"] == now["digest"]
    except (ValueError, KeyError, TypeError) as error:
        raise GwmError(f"{url} is damaged: choose another output.") from error
    if not is_same:
        raise GwmError(
            f"The flow dataset {flow.dataset.url} has changed since training into {output} began "
            f"({before['num_shards']} shards with {before['num_frames']} frames then, {now['num_shards']} with "
            f"{now['num_frames']} now): one run does not mix the two; choose another output."
        )


class FrameReader:
    """Reads single frames by id; thread-safe, keeps the most recently used shards open."""

    def __init__(self, flow: FlowDataset):
        self.flow = flow
        self.first_ids = flow.first_ids()
        self.columns = ["image", *map(flow_column, flow.gaps), *map(has_flow_column, flow.gaps)]
        self.files: OrderedDict[int, tuple[pq.ParquetFile, Lock]] = OrderedDict()
        self.lock = Lock()

    def read(self, frame_id: int) -> Frame:
        """The frame with this id."""
        shard = int(np.searchsorted(self.first_ids, frame_id, side="right")) - 1
        file, lock = self._open(shard)
        with lock:
            row = file.read_row_group(int(frame_id - self.first_ids[shard]), columns=self.columns)
        flow = [row[flow_column(gap)].combine_chunks().to_numpy_ndarray()[0] for gap in self.flow.gaps]
        return Frame(
            image=decode_image(row["image"][0].as_py()),
            flow=decode_flow(np.stack(flow)),
            has_flow=np.array([row[has_flow_column(gap)][0].as_py() for gap in self.flow.gaps]),
        )

    def _open(self, shard: int) -> tuple[pq.ParquetFile, Lock]:
        with self.lock:
            if shard in self.files:
                self.files.move_to_end(shard)
            else:
                source = storage.open_read(self.flow.dataset.shard_url(self.flow.shards[shard].unit))
                self.files[shard] = (pq.ParquetFile(source), Lock())
                if len(self.files) > OPEN_SHARDS:
                    self.files.popitem(last=False)
            return self.files[shard]
