"""The samples of a report: chosen from a finished dataset of masks, and drawn by Ray tasks."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby

import numpy as np
import pyarrow.parquet as pq
import ray.data

from pipeline import storage
from pipeline.config import DecodeLimits
from pipeline.dataset import Dataset
from pipeline.formats.shards import FRAMES_AT_ONCE, Inputs
from pipeline.manifest import READERS, ShardEntry
from pipeline.masks import MaskRow, mask_rows
from pipeline.model_card import anchor_positions
from pipeline.pictures import encode_jpeg, resize, side_by_side, stacked
from pipeline.placement import tasks
from pipeline.placement_config import StagePlacement
from pipeline.progress import Progress
from pipeline.records import decode_image
from pipeline.report.draw import Strip, Wanted, draw_samples
from pipeline.report.page import Sample

PLACE = StagePlacement(num_cpus=1)
MAX_BLOCKS = 256
"""Tasks that many samples are shared out to."""
SIDES_PX = {100: 480, 1000: 320, 10_000: 160}
"""Longest side of the pictures by the number of samples, so that the page stays one file that opens."""
STRIP_ROWS = 5
STRIP_HEIGHT_PX = 120


def chosen_masks(dataset: Dataset, num_samples: int) -> list[MaskRow]:
    """Rows of a mask dataset, spread evenly over its inputs in the order of their names: always the same ones.

    Only the shards that hold them are read.
    """
    entries = sorted(dataset.manifest(), key=lambda entry: (entry.source, entry.unit))
    stops = np.cumsum([entry.num_rows for entry in entries], dtype=np.int64)
    places: dict[int, list[int]] = {}
    for position in anchor_positions(int(stops[-1]), num_samples) if entries else ():
        shard = int(np.searchsorted(stops, position, side="right"))
        places.setdefault(shard, []).append(position - int(stops[shard]) + entries[shard].num_rows)
    with ThreadPoolExecutor(READERS) as threads:
        found = threads.map(partial(_read_rows, dataset), map(entries.__getitem__, places), places.values())
        return [row for rows in found for row in rows]


def same_frames(dataset: Dataset, rows: Iterable[MaskRow]) -> dict[tuple[str, int | None], MaskRow]:
    """The rows of the same frames in another dataset, by source and frame."""
    wanted = {(row.source, row.frame_index) for row in rows}
    sources = {source for source, _ in wanted}
    entries = [entry for entry in dataset.manifest() if entry.source in sources]
    every = (row for entry in entries for row in _read_rows(dataset, entry, range(entry.num_rows)))
    return {(row.source, row.frame_index): row for row in every if (row.source, row.frame_index) in wanted}


def strips_of_masks(
    rows: Iterable[MaskRow], inputs: Inputs, wanted_of: Callable[[MaskRow], Wanted]
) -> list[Strip]:
    """The rows as samples, those of one video together; their images are looked up in `inputs`."""
    ordered = sorted(rows, key=lambda row: (row.source, row.frame_index or 0))
    runs = [
        list(run) for _, run in groupby(ordered, key=lambda row: (row.source, row.height_px, row.width_px))
    ]
    strips = []
    for some in (run[part] for run in runs for part in parts(len(run))):
        frames, positions = inputs.frame_list(some)
        wanted = [wanted_of(row) for row in some]
        strips.append(Strip(source=some[0].source, frames=frames, positions=positions, wanted=wanted))
    return strips


def parts(num_frames: int) -> list[slice]:
    """Frames of one video as they are drawn together, so that only a few are decoded at a time."""
    return [slice(first, first + FRAMES_AT_ONCE) for first in range(0, num_frames, FRAMES_AT_ONCE)]


def wanted_mask(row: MaskRow) -> Wanted:
    """A mask's row as a sample, ranked by how certain the network was."""
    return Wanted(
        sample=Sample(
            name=row.source,
            frame_index=row.frame_index,
            score=row.foreground_score,
            note=row.error or "",
            pictures={},
        ),
        size=(row.height_px or 0, row.width_px or 0),
        masks={"mask": row.mask_rle},
        regions=row.segments_rle or (),
        objects=row.objects_rle or (),
    )


def drawn(strips: Sequence[Strip], limits: DecodeLimits, *, flow: str | None) -> list[Sample]:
    """The samples with their pictures, by Ray tasks; `flow` is a flow dataset of their videos."""
    broken = [strip for strip in strips if min(strip.wanted[0].size) == 0]
    readable = [strip for strip in strips if min(strip.wanted[0].size) > 0]
    samples = [wanted.sample for strip in broken for wanted in strip.wanted]
    num_samples = sum(len(strip.wanted) for strip in strips)
    if readable:
        draw = partial(draw_samples, side_px=side_px(num_samples), limits=limits, flow=flow)
        rows = ray.data.from_items(
            [{"strip": strip} for strip in readable], override_num_blocks=min(len(readable), MAX_BLOCKS)
        )
        with Progress(total=num_samples, unit="samples") as progress:
            for row in rows.map(draw, **tasks(PLACE)).iter_rows():
                samples += row["samples"]
                progress.reach(len(samples))
    return sorted(samples, key=lambda sample: (sample.name, sample.frame_index or 0))


def side_px(num_samples: int) -> int:
    """The longest side of each picture on a page with so many samples."""
    return next((side for most, side in SIDES_PX.items() if num_samples <= most), min(SIDES_PX.values()))


def strip_picture(samples: Sequence[Sample]) -> bytes | None:
    """A JPEG of some of the samples, one of each input, in rows of the report's pictures; none where there is none."""
    complete = [sample for sample in samples if sample.pictures and None not in sample.pictures.values()]
    first = {sample.name: sample for sample in reversed(complete)}
    shown = sorted(first.values(), key=lambda sample: sample.name)[:STRIP_ROWS]
    rows = [
        side_by_side(
            [
                resize(decode_image(picture), height_px=STRIP_HEIGHT_PX)
                for picture in sample.pictures.values()
                if picture is not None
            ]
        )
        for sample in shown
    ]
    if not rows:
        return None
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    return encode_jpeg(stacked(padded))


def _read_rows(dataset: Dataset, entry: ShardEntry, positions: Sequence[int]) -> list[MaskRow]:
    with storage.open_read(dataset.shard_url(entry.unit)) as file:
        return mask_rows(pq.read_table(file).take(list(positions)))
