"""A video becomes clips: the units of work, each a run of kept frames with the neighbours its pairs need."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import numpy as np
import numpy.typing as npt

from pipeline import storage
from pipeline.config import DecodeConfig, DecodeLimits, PrepareConfig
from pipeline.contained import contained
from pipeline.dataset import Dataset, unit_id
from pipeline.errors import GwmError, UnitError
from pipeline.inputs import Source, find_videos, frame_urls
from pipeline.records import Row
from pipeline.stages.failure import failed_row
from pipeline.video import VideoIndex, fitted_size, kept_frames, probe


def videos_of(spec: str) -> Iterator[Row]:
    """Return the videos of `videos=` as rows, for `plan_clips`."""
    return map(asdict, find_videos(spec))


def plan_clips(row: Row, config: PrepareConfig, dataset: Dataset, fingerprint: str) -> list[Row]:
    """Return a row for each clip still to do, and one for all that earlier runs did or put into quarantine.

    `row` holds the fields of a Source. A video without an index is a unit itself and fails as a whole;
    so does the missing end of a cut file, while the frames before it are used.
    """
    began = time.monotonic()
    source = Source(**row)
    unit = unit_id(source.name, source.size_bytes or 0, fingerprint, "video")
    try:
        if dataset.is_quarantined(unit):  # not looked at again: it may have taken its time to fail
            rows = [_settled(source, "quarantined", 1)]
        else:
            rows = _planned(source, config, dataset, fingerprint)
    except GwmError:
        raise
    except Exception as error:
        rows = [failed_row({"unit": unit, "source": source.name}, "plan_clips", error)]
    seconds = time.monotonic() - began
    first, *others = rows
    own = {
        "num_inputs": 1,
        "input_units": sum(row.get("num_units", 1) for row in rows),
        "seconds_plan_clips": seconds,
    }
    none = {"num_inputs": 0, "input_units": 0, "seconds_plan_clips": 0.0}
    return [{**first, **own}, *({**row, **none} for row in others)]


def clip_spans(num_frames: int, clip_frames: int) -> list[tuple[int, int]]:
    """Return [start, stop) of the clips; a remainder under a quarter of a clip is joined to the last one."""
    starts = list(range(0, num_frames, clip_frames))
    if len(starts) > 1 and num_frames - starts[-1] < clip_frames / 4:
        starts.pop()
    return list(zip(starts, [*starts[1:], num_frames], strict=True))


def decoded_span(start: int, stop: int, num_frames: int, gaps: Sequence[int]) -> tuple[int, int]:
    """Return the frames to decode for a clip that owns [start, stop): as far as its pairs reach."""
    return max(0, start + min(0, *gaps)), min(num_frames, stop + max(0, *gaps))


def _planned(source: Source, config: PrepareConfig, dataset: Dataset, fingerprint: str) -> list[Row]:
    index = contained(config.decode, probe, source)
    num_bytes = source.size_bytes
    if num_bytes is None:
        num_bytes = storage.size_bytes(source.url) if source.kind == "video" else len(index.pts)
    rows: list[Row] = []
    settled: Counter[str] = Counter()
    for clip in _clips(source, index, config):
        unit = unit_id(source.name, num_bytes, fingerprint, clip["start"], clip["stop"])
        if dataset.is_done(unit):
            settled["skipped"] += 1
        elif dataset.is_quarantined(unit):
            settled["quarantined"] += 1
        else:
            rows.append({"unit": unit, **clip})
    if index.declared_frames > len(index.pts):
        unit = unit_id(source.name, num_bytes, fingerprint, "end")
        if dataset.is_quarantined(unit):
            settled["quarantined"] += 1
        else:
            rows.append(_missing_end(source, index, unit))
    return rows + [_settled(source, status, count) for status, count in settled.items()]


def _clips(source: Source, index: VideoIndex, config: PrepareConfig) -> list[Row]:
    """Return the clip rows of a video, still without unit; UnitError if it has no pair of frames."""
    kept = kept_frames(index.pts_s, stride=config.decode.stride, fps=config.decode.fps)
    gaps = config.estimate_flow.gaps
    if len(kept) <= min(abs(gap) for gap in gaps):
        count = "1 frame" if len(kept) == 1 else f"{len(kept)} frames"
        raise UnitError(
            f"{source.name} has {count} to use, so there is no pair of frames to estimate flow for"
        )
    size = _decode_size(source, index, config.decode)
    urls = frame_urls(source) if source.kind == "frames" else []
    common = {
        "source": source.name,
        "url": source.url,
        "kind": source.kind,
        "timed": index.timed,
        "source_height_px": index.height_px,
        "source_width_px": index.width_px,
        **size,
    }
    rows = []
    for start, stop in clip_spans(len(kept), config.decode.clip_frames):
        first, last = decoded_span(start, stop, len(kept), gaps)
        numbers = kept[first:last]
        rows.append(
            {
                **common,
                "status": "planned",
                "start": start,
                "stop": stop,
                "owned": start - first,
                "frame_index": numbers.tolist(),
                "pts": index.pts[numbers].tolist(),
                "pts_s": index.pts_s[numbers].tolist(),
                "seek_pts": _keyframe_before(index.keyframe_pts, int(index.pts[numbers[0]])),
                "frame_urls": [urls[number] for number in numbers] if urls else [],
            }
        )
    return rows


def _decode_size(source: Source, index: VideoIndex, config: DecodeConfig) -> dict[str, int]:
    check_size(source, index.height_px, index.width_px, config)
    height_px, width_px = fitted_size(index.height_px, index.width_px, config.height_px, config.width_px)
    check_size(source, height_px, width_px, config)
    return {"height_px": height_px, "width_px": width_px}


def check_size(source: Source, height_px: int, width_px: int, limits: DecodeLimits) -> None:
    """UnitError if frames of that size are not to be decoded."""
    if height_px * width_px > limits.max_pixels:
        size = f"{height_px} x {width_px} pixels"
        raise UnitError(f"{source.name} has frames of {size}, more than decode.max_bytes allows")


def _keyframe_before(keyframe_pts: npt.NDArray[np.int64], pts: int) -> int | None:
    """Return the last keyframe at or before a time stamp, None for the start of the file."""
    position = int(np.searchsorted(keyframe_pts, pts, side="right")) - 1
    return int(keyframe_pts[position]) if position >= 0 else None


def _settled(source: Source, status: str, num_units: int) -> Row:
    """Return the row of units that need no work: no unit of their own, only their number."""
    return {"unit": "", "source": source.name, "status": status, "num_units": num_units}


def _missing_end(source: Source, index: VideoIndex, unit: str) -> Row:
    listed, readable = index.declared_frames, len(index.pts)
    error = UnitError(f"{source.name} is cut off: it lists {listed} frames and only {readable} can be read")
    return failed_row({"unit": unit, "source": source.name}, "plan_clips", error)
