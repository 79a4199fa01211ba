"""Flow as one file a frame, in the folders of the published code; `estimate_flow.files` reads them back.

JPEGImages/VIDEO/00003.jpg               the frame at the stored size
Flows_gap1/VIDEO/00003.flo (or .png)     its flow to the next frame, in px of that size
Flows_gap-1/VIDEO/00003.flo              its flow to the previous one
"""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.config import ExportConfig
from pipeline.errors import GwmError
from pipeline.flow_dataset import open_flow_dataset
from pipeline.flow_files import FlowPx, encode_flo, encode_kitti, video_folder
from pipeline.formats.shards import Folders, each_shard
from pipeline.records import decode_flow, flow_column, has_flow_column

Encode = Callable[[FlowPx], bytes]


def write_flo(config: ExportConfig) -> Counter[str]:
    """Middlebury's files; float32 holds every stored value exactly."""
    return _write(config, encode_flo, ".flo")


def write_kitti(config: ExportConfig) -> Counter[str]:
    """KITTI's PNGs; their grid is that of the shards, so nothing is lost."""
    return _write(config, encode_kitti, ".png")


def _write(config: ExportConfig, encode: Encode, suffix: str) -> Counter[str]:
    flow = open_flow_dataset(str(config.flow))
    write = partial(_write_shard, config.output, flow.gaps, encode, suffix, Folders())
    return each_shard(flow.dataset, write)


def _write_shard(
    output: str, gaps: tuple[int, ...], encode: Encode, suffix: str, folders: Folders, shard: str
) -> Counter[str]:
    counts: Counter[str] = Counter()
    for row in _rows(shard):
        video = row["video"][0].as_py()
        name = f"{folders.name(video_folder(video), video)}/{row['frame_index'][0].as_py():05d}"
        storage.write_bytes(storage.join(output, "JPEGImages", f"{name}.jpg"), row["image"][0].as_py())
        counts["frames"] += 1
        for gap in (gap for gap in gaps if row[has_flow_column(gap)][0].as_py()):
            flow = decode_flow(row[flow_column(gap)].to_numpy_ndarray()[0])
            storage.write_bytes(storage.join(output, f"Flows_gap{gap}", f"{name}{suffix}"), encode(flow))
            counts["flows"] += 1
    return counts


def _rows(shard: str) -> Iterator[pa.RecordBatch]:
    """The rows of a shard, one at a time."""
    try:
        with storage.open_read(shard) as source:
            yield from pq.ParquetFile(source).iter_batches(batch_size=1)
    except pa.ArrowException as error:
        raise GwmError(f"{shard} is not a flow shard that can be read: {error}.") from error
