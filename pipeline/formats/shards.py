"""What all formats share: the shards of a dataset one after another, their rows, and the images behind masks."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, islice
from pathlib import PurePosixPath

import numpy as np

from pipeline import storage
from pipeline.columns import read_columns
from pipeline.config import DecodeLimits, ExportConfig
from pipeline.contained import contained
from pipeline.dataset import Dataset
from pipeline.errors import GwmError, UnitError
from pipeline.file_names import safe_key
from pipeline.frames import FrameList, read_frame_list
from pipeline.images import read_jpeg
from pipeline.inputs import LIST_SUFFIXES, VIDEO_SUFFIXES, Source, find_images, frame_urls, input_root
from pipeline.masks import MaskRow, decode_mask, readable_mask
from pipeline.metrics import Mask
from pipeline.progress import Progress
from pipeline.records import encode_image

WRITERS = 4
"""Shards at work at a time: while one waits for storage another is decoded."""
FRAMES_AT_ONCE = 16
"""Decoded frames of a video that are held at a time."""
COLUMNS = (
    "source",
    "frame_index",
    "height_px",
    "width_px",
    "mask_rle",
    "area_fraction",
    "foreground_score",
    "error",
)


def mask_dataset(config: ExportConfig) -> Dataset:
    """The masks to export; GwmError where there are none."""
    return Dataset.read(str(config.masks), kind="masks")


def each_shard(dataset: Dataset, write: Callable[[str], Counter[str]]) -> Counter[str]:
    """The sums of what `write` returns for the URL of each shard; a few shards are at work at a time."""
    totals: Counter[str] = Counter()
    shards = dataset.shards()
    with Progress(unit="shards") as progress, ThreadPoolExecutor(WRITERS) as threads:
        while batch := list(islice(shards, WRITERS)):
            for counts in threads.map(write, batch):
                totals += counts
                progress.advance(**totals)
    return totals


def read_mask_rows(shard: str, limits: DecodeLimits) -> list[MaskRow]:
    """The rows of a mask shard, without the K regions."""
    columns = read_columns(shard, COLUMNS, limits)
    return [
        MaskRow(**dict(zip(COLUMNS, values, strict=True))) for values in zip(*columns.values(), strict=True)
    ]


def masked(rows: Sequence[MaskRow]) -> tuple[list[MaskRow], Counter[str]]:
    """The rows that have a mask, and how many have and have none."""
    found = [row for row in rows if row.mask_rle is not None]
    return found, Counter(images=len(found), errors=len(rows) - len(found))


def by_source(rows: Sequence[MaskRow]) -> Iterator[tuple[str, list[MaskRow]]]:
    """Rows that follow each other and have one source."""
    for source, run in groupby(rows, key=lambda row: row.source):
        yield source, list(run)


def mask_of(row: MaskRow, limits: DecodeLimits) -> Mask:
    """The row's mask [H, W]; GwmError if its bytes are no mask of its size."""
    with readable_mask(row.source):
        return contained(limits, decode_mask, row.mask_rle, row.height_px, row.width_px)  # type: ignore[arg-type]


class Inputs:
    """The images and videos that masks were made of, found by the sources that the masks' rows name."""

    def __init__(self, spec: str, limits: DecodeLimits) -> None:
        self._spec = spec
        self._root = input_root(spec)
        is_list = PurePosixPath(spec).suffix.lower() in LIST_SUFFIXES
        self._listed = {source.name: source.url for source in find_images(spec)} if is_list else {}
        self._limits = limits

    def file_names(self, rows: Sequence[MaskRow]) -> list[str]:
        """Paths of the rows' images below the input; all rows are of one source. Frames of a video get a number."""
        source = rows[0].source
        if rows[0].frame_index is None:
            return [source]
        if is_video_file(source):
            return [frame_path(row) for row in rows]
        names = [url.rsplit("/", 1)[-1] for url in self._frame_urls(source, rows)]
        return [f"{source}/{name}" for name in names]

    def jpegs(self, rows: Sequence[MaskRow]) -> Iterator[bytes]:
        """The rows' images, upright; all rows are of one source. GwmError names what is missing or unlike its mask."""
        read = self._video_frames if is_video_file(rows[0].source) else self._images
        try:
            yield from read(rows)
        except UnitError as error:
            raise GwmError(f"images={self._spec}: {error}.") from error

    def frame_list(self, rows: Sequence[MaskRow]) -> tuple[FrameList, list[int]]:
        """Where the rows' images lie, and each one's position there; all rows are of one source."""
        source = rows[0].source
        if is_video_file(source):
            frames = FrameList(kind="video", urls=(self._url(source),), num_frames=0)
            return frames, [row.frame_index or 0 for row in rows]
        is_image = rows[0].frame_index is None
        urls = [self._url(source)] if is_image else self._frame_urls(source, rows)
        return FrameList(kind="files", urls=tuple(urls), num_frames=len(urls)), list(range(len(urls)))

    def _images(self, rows: Sequence[MaskRow]) -> Iterator[bytes]:
        for url, row in zip(self.frame_list(rows)[0].urls, rows, strict=True):
            jpeg, size = contained(self._limits, read_jpeg, url)
            if size != (row.height_px, row.width_px):
                raise UnitError(f"{url} is not of its mask's size")
            yield jpeg

    def _video_frames(self, rows: Sequence[MaskRow]) -> Iterator[bytes]:
        remaining = iter(rows)
        while some := list(islice(remaining, FRAMES_AT_ONCE)):
            frames, positions = self.frame_list(some)
            size = some[0].height_px or 0, some[0].width_px or 0
            for frame in read_frame_list(frames, positions, *size, self._limits):
                yield encode_image(np.ascontiguousarray(frame.transpose(1, 2, 0)))

    def _frame_urls(self, source: str, rows: Sequence[MaskRow]) -> list[str]:
        urls = frame_urls(Source(url=self._url(source), name=source, kind="frames"))
        positions = [row.frame_index or 0 for row in rows]
        if max(positions) >= len(urls):
            raise GwmError(f"images={self._spec}: {source} has {len(urls)} frames and more masks.")
        return [urls[position] for position in positions]

    def _url(self, source: str) -> str:
        """A source's place; a folder of frames that is itself the input is named like it."""
        if source in self._listed:
            return self._listed[source]
        url = storage.join(self._root, source)
        if self._root.rsplit("/", 1)[-1] == source and not storage.exists(url):
            return self._root
        return url


def is_video_file(source: str) -> bool:
    """Whether a row's source is a video file, and no folder of frames or image."""
    return PurePosixPath(source).suffix.lower() in VIDEO_SUFFIXES


def frame_path(row: MaskRow) -> str:
    """An image's own path; a frame's number, as a JPEG in a folder called like its video."""
    return row.source if row.frame_index is None else f"{row.source}/{row.frame_index:05d}.jpg"


class Folders:
    """Names of folders, one for each source."""

    def __init__(self) -> None:
        self._sources: dict[str, str] = {}

    def name(self, wanted: str, source: str) -> str:
        """The folder that is called so, or safely; GwmError where another source has it."""
        folder = safe_key(wanted, is_folder=True)
        if self._sources.setdefault(folder, source) != source:
            raise GwmError(f"{self._sources[folder]} and {source} would lie in one folder, {folder}.")
        return folder
