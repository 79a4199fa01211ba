"""What the units of a job came to: sums over the summary rows in which a write stage ends."""

from collections import Counter
from dataclasses import dataclass, field

from pipeline.manifest import ShardEntry
from pipeline.records import Row

SECONDS = "seconds_"
"""Summary rows hold the time of each stage under `seconds_<stage>`."""


@dataclass(slots=True)
class UnitTotals:
    """Counts of units by status, rows and bytes written, and seconds by stage (summed over workers)."""

    units: Counter[str] = field(default_factory=Counter)
    """Under done, skipped and quarantined."""
    num_inputs: int = 0
    """Inputs that were planned: an input's first row counts it."""
    num_rows: int = 0
    num_bytes: int = 0
    seconds: Counter[str] = field(default_factory=Counter)
    entries: list[ShardEntry] = field(default_factory=list)
    """The shards written, for the manifest."""

    def add(self, row: Row) -> None:
        """Adds one summary row."""
        self.units[row["status"]] += row["num_units"]
        self.num_inputs += row.get("num_inputs", 0)
        for key, value in row.items():
            if key.startswith(SECONDS):
                self.seconds[key.removeprefix(SECONDS)] += value
        if row["status"] == "done":
            self.num_rows += row["num_rows"]
            self.num_bytes += row["num_bytes"]
            columns = ("unit", "source", "num_rows", "num_bytes", "sha256")
            self.entries.append(ShardEntry(**{column: row[column] for column in columns}))

    def metrics(self) -> dict[str, float]:
        """The sums so far, as tracked over time."""
        units = {f"units_{status}": float(count) for status, count in self.units.items()}
        return {"rows": float(self.num_rows), "bytes": float(self.num_bytes)} | units
