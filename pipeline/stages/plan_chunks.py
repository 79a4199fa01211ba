"""Images and videos become chunks, the units of work: a run of images, or a run of one video's frames."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator

import pyarrow.parquet as pq

from pipeline import storage
from pipeline.config import SegmentConfig
from pipeline.contained import contained
from pipeline.dataset import Dataset, unit_id
from pipeline.errors import GwmError
from pipeline.frames import stamps
from pipeline.inputs import Source, find_images, frame_urls
from pipeline.masks import NUM_ERRORS
from pipeline.model_card import anchor_positions
from pipeline.overlay_files import forget_drawing
from pipeline.records import Row
from pipeline.stages.failure import failed_row
from pipeline.stages.plan_clips import check_size, clip_spans
from pipeline.video import VideoIndex, probe


def inputs_of(spec: str, chunk_images: int) -> Iterator[Row]:
    """The videos and the images of `images=`, some images together, as rows for `plan_chunks`."""
    return group_inputs(find_images(spec), chunk_images)


def group_inputs(sources: Iterable[Source], chunk_images: int) -> Iterator[Row]:
    """One row for each video or folder of frames, and one for every `chunk_images` single images."""
    images: list[Source] = []
    for source in sources:
        if source.kind != "image":
            yield _input_row(source.kind, [source])
            continue
        images.append(source)
        if len(images) == chunk_images:
            yield _input_row("images", images)
            images = []
    if images:
        yield _input_row("images", images)


def plan_chunks(row: Row, config: SegmentConfig, dataset: Dataset, fingerprint: str) -> list[Row]:
    """One row for each chunk still to do, and one for all that an earlier run did or put into quarantine.

    A chunk of a video carries where to find its own frames and its anchors, frames spread evenly over the
    whole video: the anchors alone decide which regions are the object, so that all chunks of a video agree. Where
    objects are numbered, a video is one chunk: a number depends on all the frames before. A video that cannot be
    read is a unit itself and fails as a whole.
    """
    began = time.monotonic()
    unit = input_unit(row, fingerprint)
    if row["kind"] != "images" and dataset.is_quarantined(
        unit
    ):  # not looked at again: it may have taken its time to fail
        return _with_counts([_settled(row["source"], "quarantined", 1)], 0.0)
    try:
        chunks = [_image_chunk(row, unit)] if row["kind"] == "images" else _video_chunks(row, unit, config)
    except GwmError:
        raise
    except Exception as error:
        chunks = [failed_row({"unit": unit, "source": row["source"]}, "plan_chunks", error)]
    rows = _still_to_do(chunks, dataset, retry=config.retry_quarantined)
    if any(chunk["status"] == "planned" for chunk in rows):
        forget_drawing(row, dataset)
    return _with_counts(rows, time.monotonic() - began)


def input_unit(row: Row, fingerprint: str) -> str:
    """The name of a row of `inputs_of` as a unit: that of a chunk of images, and part of those of a video's chunks."""
    return unit_id(fingerprint, row["kind"], *row["names"], *(int(size) for size in row["sizes"]))


def chunk_units(video: str, num_frames: int, config: SegmentConfig) -> list[tuple[str, int, int]]:
    """The chunks of a video: their units, each with the frames [start, stop) that it owns."""
    spans = clip_spans(num_frames, num_frames if config.write_objects else config.chunk_images)
    return [(unit_id(video, start, stop), start, stop) for start, stop in spans]


def _with_counts(rows: list[Row], seconds: float) -> list[Row]:
    """The rows of an input; the first counts the input, its units and the time."""
    units = sum(row.get("num_units", 1) for row in rows)
    own = {"num_inputs": 1, "input_units": units, "seconds_plan_chunks": seconds}
    none = {"num_inputs": 0, "input_units": 0, "seconds_plan_chunks": 0.0}
    return [{**row, **(none if i else own)} for i, row in enumerate(rows)]


def _input_row(kind: str, sources: list[Source]) -> Row:
    names = [source.name for source in sources]
    return {
        "kind": kind,
        "source": names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}",
        "names": names,
        "urls": [source.url for source in sources],
        "sizes": [-1 if source.size_bytes is None else source.size_bytes for source in sources],
    }


def _image_chunk(row: Row, unit: str) -> Row:
    urls, names = list(row["urls"]), list(row["names"])
    chunk = {"unit": unit, "source": row["source"], "status": "planned", "kind": "images"}
    return {**chunk, "names": names, "urls": urls, "frame_index": [-1] * len(names)}


def _video_chunks(row: Row, video: str, config: SegmentConfig) -> list[Row]:
    source = Source(url=row["urls"][0], name=row["names"][0], kind=row["kind"])
    index = contained(config.decode, probe, source)
    check_size(source, index.height_px, index.width_px, config.decode)
    urls = frame_urls(source) if source.kind == "frames" else []
    anchors = anchor_positions(len(index.pts), config.anchor_frames)
    chunks = []
    for unit, start, stop in chunk_units(video, len(index.pts), config):
        positions = list(range(start, stop))
        chunks.append(
            {
                "unit": unit,
                "source": source.name,
                "status": "planned",
                "kind": source.kind,
                "names": [source.name],
                "frame_index": positions,
                "video": video,
                "height_px": index.height_px,
                "width_px": index.width_px,
                **_places(index, source.url, urls, positions, ""),
                **_places(index, source.url, urls, anchors, "anchor_"),
            }
        )
    return chunks


def _places(index: VideoIndex, url: str, urls: list[str], positions: list[int], prefix: str) -> Row:
    """Columns that say where frames lie: their files, or their time stamps in the video."""
    if urls:
        return {f"{prefix}urls": [urls[position] for position in positions]}
    return {f"{prefix}urls": [url], **stamps(index, positions).to_row(prefix)}


def _still_to_do(chunks: list[Row], dataset: Dataset, *, retry: bool) -> list[Row]:
    """The chunks to do, and a row of the number of units for each other outcome.

    With `retry`, a finished chunk in which some image had an error is done again.
    """
    rows: list[Row] = []
    settled: Counter[str] = Counter()
    num_errors = 0
    for chunk in chunks:
        errors = _errors_in(dataset, chunk["unit"])
        if errors is not None and not (retry and errors):
            settled["skipped"] += 1
            num_errors += errors
        elif errors is None and dataset.is_quarantined(chunk["unit"]):
            settled["quarantined"] += 1
        else:
            rows.append(chunk)
    errors_of = {"skipped": num_errors}
    source = chunks[0]["source"]
    return rows + [
        _settled(source, status, count, errors_of.get(status, 0)) for status, count in settled.items()
    ]


def _settled(source: str, status: str, num_units: int, num_errors: int = 0) -> Row:
    """The row of units that need no work: no unit of their own, only their number."""
    return {
        "unit": "",
        "source": source,
        "status": status,
        "num_units": num_units,
        "num_errors": num_errors,
    }


def _errors_in(dataset: Dataset, unit: str) -> int | None:
    """Images without a mask in a finished unit's shard; none where the unit is not finished."""
    if not dataset.is_done(unit):
        return None
    with storage.open_read(dataset.shard_url(unit)) as file:
        metadata = pq.read_schema(file).metadata or {}
    return int(metadata.get(NUM_ERRORS, b"0"))
