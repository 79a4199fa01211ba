"""What all benchmarks share: material, runs side by side, and the line that each prints."""

import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

DATA = Path(os.environ.get("GWM_TEST_DATA", Path(__file__).parents[2] / "../shared/data"))
T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Compared(Generic[T, U]):
    """Medians of runs that alternate between a reference and ours, and the last result of each."""

    reference_s: float
    ours_s: float
    ratio: float
    """How many times faster ours is: the median over the rounds."""
    expected: T
    result: U


def side_by_side(
    reference: Callable[[], T], ours: Callable[[], U], *, rounds: int = 3, warmup: int = 1
) -> Compared[T, U]:
    """Runs both in turn, so that what slows the machine slows both."""
    seconds: list[tuple[float, float]] = []
    for number in range(warmup + rounds):
        began = time.perf_counter()
        expected = reference()
        between = time.perf_counter()
        result = ours()
        ended = time.perf_counter()
        if number >= warmup:
            seconds.append((between - began, ended - between))
    return Compared(
        reference_s=statistics.median(first for first, _ in seconds),
        ours_s=statistics.median(second for _, second in seconds),
        ratio=statistics.median(first / second for first, second in seconds),
        expected=expected,
        result=result,
    )


def steady_rates(units: Iterable[Mapping[str, Any]], seconds: str) -> tuple[float, float]:
    """Rows a second of a pipeline's finished units, and how many of its workers compute at a time.

    Counted from the time when the first finished unit came to its worker, so that starting Ray and the workers does
    not count. `seconds` names the column with the time that a worker computed for the unit.
    """
    done = [(time.perf_counter(), unit) for unit in units]
    began = done[0][0] - done[0][1][seconds]
    elapsed = done[-1][0] - began
    return sum(unit["num_rows"] for _, unit in done) / elapsed, sum(
        unit[seconds] for _, unit in done
    ) / elapsed


def report(
    benchmark: str,
    case: str,
    measured: str,
    value: float,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    **details: Any,
) -> None:
    """Prints one JSON line: what was measured, its target, whether it was met, and what else is worth knowing."""
    is_met = (at_least is None or value >= at_least) and (at_most is None or value <= at_most)
    target = f">= {at_least:g}" if at_least is not None else f"<= {at_most:g}" if at_most is not None else ""
    line = {
        "benchmark": benchmark,
        "case": case,
        "measured": measured,
        "value": round(value, 4 if abs(value) < 1 else 2),
        "target": target,
        "met": is_met if target else None,
    }
    print(json.dumps({**line, **details}), flush=True)


def report_pipeline(
    benchmark: str, case: str, unit: str, *, rate: float, bare: float, busy_share: float, **details: Any
) -> None:
    """Prints two lines: a pipeline's units a second against those of a bare loop, and its workers' busy share."""
    report(
        benchmark,
        case,
        f"times the {unit}/s of a bare loop on the same cores",
        rate / bare,
        at_least=0.85,
        **details,
        **rounded(**{f"bare_{unit}_per_s": bare, f"{unit}_per_s": rate}),
    )
    report(benchmark, case, "busy share of the workers", busy_share)


def rounded(**seconds: float) -> dict[str, float]:
    """Seconds to three digits, for the details of a line."""
    return {name: float(f"{value:.3g}") for name, value in seconds.items()}


def davis_frames(sequence: str, num_frames: int | None = None) -> list[Path]:
    """The first frames of a DAVIS sequence, or all."""
    paths = sorted((DATA / "DAVIS2016/JPEGImages/480p" / sequence).glob("*.jpg"))
    if not paths:
        raise SystemExit(f"{DATA} has no sequence {sequence}; GWM_TEST_DATA names the folder of the material")
    return paths[:num_frames]


def read_frames(paths: list[Path], height_px: int, width_px: int) -> npt.NDArray[np.uint8]:
    """Frames [T, H, W, 3], RGB, resized."""
    frames = [
        cv2.resize(cv2.imread(str(path)), (width_px, height_px), interpolation=cv2.INTER_AREA)[..., ::-1]
        for path in paths
    ]
    return np.ascontiguousarray(np.stack(frames))
