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
    input_units: int = 0
    """Units that these inputs have."""
    num_rows: int = 0
    num_pairs: int = 0
    """Pairs of frames with flow."""
    num_bytes: int = 0
    seconds: Counter[str] = field(default_factory=Counter)
    entries: list[ShardEntry] = field(default_factory=list)
    """The shards written, for the manifest."""

    def add(self, row: Row) -> None:
        """Adds one summary row."""
        self.units[row["status"]] += row["num_units"]
        self.num_inputs += row.get("num_inputs", 0)
        self.input_units += row.get("input_units", 0)
        for key, value in row.items():
            if key.startswith(SECONDS):
                self.seconds[key.removeprefix(SECONDS)] += value
        if row["status"] == "done":
            self.num_rows += row["num_rows"]
            self.num_pairs += row.get("num_pairs", 0)
            self.num_bytes += row["num_bytes"]
            columns = ("unit", "source", "num_rows", "num_bytes", "sha256")
            self.entries.append(ShardEntry(**{column: row[column] for column in columns}))

    def metrics(self) -> dict[str, float]:
        """The sums so far, as tracked over time."""
        units = {f"units_{status}": float(count) for status, count in self.units.items()}
        return {"rows": float(self.num_rows), "bytes": float(self.num_bytes)} | units

    def progress(self) -> dict[str, int]:
        """What is needed to say how far a job is: units by outcome, and how many its inputs have so far."""
        units = {status: self.units[status] for status in ("done", "skipped", "quarantined")}
        counts = {f"units_{status}": number for status, number in units.items()}
        return counts | {"inputs": self.num_inputs, "input_units": self.input_units}
