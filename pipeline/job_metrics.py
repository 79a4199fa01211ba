"""What a command has done, as Ray metrics: every node's agent exports them for Prometheus."""

import sys
from typing import Any

from pipeline.unit_totals import UnitTotals

ROWS_OF = {"prepare": "frames", "segment": "images"}
"""What the rows of a command's shards are."""
COUNTERS = {
    "gwm_frames": "Frames written with their flow.",
    "gwm_pairs": "Pairs of frames whose flow was written.",
    "gwm_images": "Images and frames whose masks were written.",
    "gwm_bytes": "Bytes of shards written.",
    "gwm_units": "Units of work by outcome: done, skipped, quarantined.",
    "gwm_stage_seconds": "Time that workers spent in a stage.",
}
GAUGES = {
    "gwm_progress": "Units of work that the running command has behind it.",
    "gwm_progress_total": "Units of work that the running command has in all, where that is known.",
    "gwm_loss": "Training loss of the latest logged step.",
}
LABELS = {"gwm_units": ("command", "status"), "gwm_stage_seconds": ("command", "stage")}


class JobMetrics:
    """Counters and gauges of one command on its driver; without a running Ray they are not kept."""

    def __init__(self, command: str) -> None:
        self._command = command
        self._counted: dict[tuple[str, ...], float] = {}
        self._counters: dict[str, Any] = {}
        self._gauges: dict[str, Any] = {}
        if "ray" in sys.modules and sys.modules["ray"].is_initialized():
            from ray.util.metrics import Counter, Gauge

            self._counters = {
                name: Counter(name, text, LABELS.get(name, ("command",))) for name, text in COUNTERS.items()
            }
            self._gauges = {name: Gauge(name, text, ("command",)) for name, text in GAUGES.items()}

    def count(self, totals: UnitTotals) -> None:
        """Adds what the sums have grown by since the last call."""
        if not self._counters:
            return
        rows = f"gwm_{ROWS_OF[self._command]}"
        self._add(rows, totals.num_rows)
        self._add("gwm_pairs", totals.num_pairs)
        self._add("gwm_bytes", totals.num_bytes)
        for status, number in totals.units.items():
            self._add("gwm_units", number, status=status)
        for stage, seconds in totals.seconds.items():
            self._add("gwm_stage_seconds", seconds, stage=stage)

    def show(self, **values: float | None) -> None:
        """Sets gauges by their names without the prefix; those of no value stay as they are."""
        for name, value in values.items():
            if self._gauges and value is not None:
                self._gauges[f"gwm_{name}"].set(value, {"command": self._command})

    def _add(self, name: str, total: float, **label: str) -> None:
        key = (name, *label.values())
        grown = total - self._counted.get(key, 0)
        if grown > 0:
            self._counters[name].inc(grown, {"command": self._command, **label})
            self._counted[key] = total
