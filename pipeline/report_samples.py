"""The frames of a report, read back from the flow shards, the mask shards and the ground truth."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.dataset import Dataset
from pipeline.manifest import ShardEntry
from pipeline.masks import MaskRow, decode_mask, mask_rows
from pipeline.pictures import (
    colour_flow,
    colour_regions,
    encode_jpeg,
    mask_picture,
    overlay,
    resize,
    side_by_side,
    stacked,
)
from pipeline.records import decode_flow, decode_image, flow_column, has_flow_column
from pipeline.report import Picture, Sample

MAX_VIDEOS = 12
PLACES = (0.3, 0.7)
"""Where in a video its frames are taken, as fractions of its length."""
PLACES_COMPARED = (0.1, 0.3, 0.5, 0.7, 0.9)
STRIP_ROWS = 5
STRIP_HEIGHT_PX = 120
GAP = 1
"""The flow that is shown: to the next frame."""

Scores = Mapping[tuple[str, int], float]
"""J by sequence and frame index."""


def read_samples(flow: str, masks: str, truth: str | None, scores: Scores) -> list[Sample]:
    """A few frames of each of the first videos; `truth` is the folder of annotations, one folder a video."""
    flow_dataset, mask_dataset = Dataset.read(flow, kind="flow"), Dataset.read(masks, kind="masks")
    flow_shards, mask_shards = _by_source(flow_dataset), _by_source(mask_dataset)
    samples = []
    for video in sorted(flow_shards)[:MAX_VIDEOS]:
        sequence = PurePosixPath(video).stem
        rows = _mask_rows(mask_dataset, mask_shards.get(video, []))
        for index, image, frame_flow in _frames(flow_dataset, flow_shards[video], PLACES):
            pictures = _frame_pictures(image, frame_flow) | _mask_pictures(image, rows.get(index))
            if truth is not None:
                mask_url = storage.join(truth, sequence, f"{index:05d}.png")
                pictures["ground truth"] = decode_image(storage.read_bytes(mask_url))
            score = scores.get((sequence, index))
            samples.append(Sample(sequence=sequence, frame_index=index, j=score, pictures=pictures))
    return samples


def read_comparison(flow: str, before: str, after: str) -> list[Sample]:
    """A few frames of each of the first videos with the masks of two datasets."""
    flow_dataset, datasets = (
        Dataset.read(flow, kind="flow"),
        [Dataset.read(url, kind="masks") for url in (before, after)],
    )
    flow_shards, mask_shards = _by_source(flow_dataset), [_by_source(dataset) for dataset in datasets]
    samples = []
    for video in sorted(flow_shards)[:MAX_VIDEOS]:
        rows = [
            _mask_rows(dataset, shards.get(video, []))
            for dataset, shards in zip(datasets, mask_shards, strict=True)
        ]
        for index, image, frame_flow in _frames(flow_dataset, flow_shards[video], PLACES_COMPARED):
            masks = [_mask_pictures(image, found.get(index))["mask over frame"] for found in rows]
            pictures = _frame_pictures(image, frame_flow) | {"before": masks[0], "after": masks[1]}
            sequence = PurePosixPath(video).stem
            samples.append(Sample(sequence=sequence, frame_index=index, j=None, pictures=pictures))
    return samples


def strip(samples: Sequence[Sample]) -> bytes:
    """A JPEG of some of the samples, one of each sequence, in rows of the report's pictures."""
    first = {sample.sequence: sample for sample in samples}
    found = [[p for p in sample.pictures.values() if p is not None] for sample in first.values()]
    most = max(map(len, found))
    complete = [pictures for pictures in found if len(pictures) == most][:STRIP_ROWS]
    rows = [side_by_side([resize(picture, height_px=STRIP_HEIGHT_PX) for picture in row]) for row in complete]
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    return encode_jpeg(stacked(padded))


def read_scores(evaluation: str) -> dict[tuple[str, int], float]:
    """J of every frame of an evaluation."""
    with storage.open_read(storage.join(evaluation, "scores.parquet")) as file:
        rows = pq.read_table(file, columns=["sequence", "frame_index", "j"]).to_pylist()
    return {(row["sequence"], row["frame_index"]): row["j"] for row in rows}


def _by_source(dataset: Dataset) -> dict[str, list[ShardEntry]]:
    shards = defaultdict(list)
    for entry in dataset.manifest():
        shards[entry.source].append(entry)
    return dict(shards)


def _frames(
    dataset: Dataset, shards: Sequence[ShardEntry], places: Sequence[float]
) -> Iterator[tuple[int, Picture, npt.NDArray[np.float32] | None]]:
    """Frame index, image and flow of the frames to show; no flow where the video ends."""
    indices = {shard.unit: _column(dataset, shard, "frame_index") for shard in shards}
    kept = sorted(index for found in indices.values() for index in found)
    wanted = {kept[int(place * len(kept))] for place in places}
    columns = ["frame_index", "image", flow_column(GAP), has_flow_column(GAP)]
    found = []
    for unit, frame_indices in indices.items():
        with storage.open_read(dataset.shard_url(unit)) as source:
            file = pq.ParquetFile(source)
            for position in (i for i, index in enumerate(frame_indices) if index in wanted):
                row = file.read_row_group(position, columns=columns)
                flow = decode_flow(row[flow_column(GAP)].combine_chunks().to_numpy_ndarray()[0])
                has_flow = row[has_flow_column(GAP)][0].as_py()
                image = decode_image(row["image"][0].as_py())
                found.append((frame_indices[position], image, flow if has_flow else None))
    yield from sorted(found, key=_first)


def _first(frame: tuple[int, Picture, npt.NDArray[np.float32] | None]) -> int:
    return frame[0]


def _column(dataset: Dataset, shard: ShardEntry, name: str) -> list[int]:
    with storage.open_read(dataset.shard_url(shard.unit)) as source:
        values: list[int] = pq.read_table(source, columns=[name])[name].to_pylist()
    return values


def _mask_rows(dataset: Dataset, shards: Sequence[ShardEntry]) -> dict[int, MaskRow]:
    """A video's masks by frame index."""
    rows: dict[int, MaskRow] = {}
    for shard in shards:
        with storage.open_read(dataset.shard_url(shard.unit)) as source:
            found = mask_rows(pq.read_table(source))
        rows |= {row.frame_index: row for row in found if row.frame_index is not None}
    return rows


def _frame_pictures(image: Picture, flow: npt.NDArray[np.float32] | None) -> dict[str, Picture | None]:
    return {"frame": image, "optical flow": None if flow is None else colour_flow(flow)}


def _mask_pictures(image: Picture, row: MaskRow | None) -> dict[str, Picture | None]:
    """Regions, overlay and mask at the size of the image; none where the frame has no mask."""
    if row is None or row.mask_rle is None or row.height_px is None or row.width_px is None:
        return {"regions": None, "mask over frame": None, "mask": None}
    size = (row.height_px, row.width_px)
    mask = _resized(decode_mask(row.mask_rle, *size), image)
    regions = np.stack(
        [_resized(decode_mask(rle, *size), image) for rle in row.segments_rle or [row.mask_rle]]
    )
    return {
        "regions": colour_regions(regions),
        "mask over frame": overlay(image, mask),
        "mask": mask_picture(mask),
    }


def _resized(mask: npt.NDArray[np.bool_], image: Picture) -> npt.NDArray[np.float32]:
    """The share of each of the image's pixels that the mask covers."""
    shown = cv2.resize(mask.astype(np.float32), image.shape[1::-1], interpolation=cv2.INTER_AREA)
    return np.asarray(shown, np.float32)
