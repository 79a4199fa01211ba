"""Curves as the points of an inline SVG."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline import storage

Floats = npt.NDArray[np.float64]

MAX_POINTS = 300
"""Of one line; where there are more values, the lowest of each run is shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Lines over one axis, in a box of `width` x `height`."""

    description: str
    """What a reader who does not see it is told."""
    lines: Mapping[str, str]
    """Points of each line by name: x,y pairs as SVG has them, y down."""
    width: int
    height: int
    x_ends: tuple[str, str] = ("", "")
    """Labels at the ends of the horizontal axis."""
    y_ends: tuple[str, str] = ("0", "100")
    """Labels at the bottom and at the top."""


def j_curve(description: str, values: Mapping[str, Floats]) -> Curve:
    """J of a sequence's frames, a line for each protocol, on an axis from 0 to 1; frames left out have no point."""
    width, height = 300, 60
    lines = {}
    for name, scores in values.items():
        shown = lowest_of_runs(scores)
        x = np.linspace(0, width, len(shown)) if len(shown) > 1 else np.array([width / 2])
        counts = np.isfinite(shown)
        lines[name] = _points(x[counts], height * (1 - shown[counts]))
    return Curve(description=description, lines=lines, width=width, height=height)


def read_losses(model: str) -> Curve | None:
    """The loss as logged while a model was trained; where every batch was bad there is none."""
    entries = json.loads(storage.read_bytes(storage.join(model, "metrics.json")))
    return loss_curve([(int(entry["step"]), float(entry["loss"])) for entry in entries if "loss" in entry])


def loss_curve(losses: Sequence[tuple[int, float]]) -> Curve | None:
    """The loss by step; none where fewer than two values are numbers."""
    finite = [(step, loss) for step, loss in losses if math.isfinite(loss)]
    if len(finite) < 2:
        return None
    width, height = 600, 160
    steps, values = np.array(finite, np.float64).T
    low, high = float(values.min()), float(values.max())
    x = width * (steps - steps[0]) / (steps[-1] - steps[0])
    y = height * (1 - (values - low) / (high - low or 1.0))
    first, last = f"step {steps[0]:.0f}", f"step {steps[-1]:.0f}"
    return Curve(
        description=f"training loss from {first} to {last}: {values[0]:.3g} to {values[-1]:.3g}",
        lines={"loss": _points(x, y)},
        width=width,
        height=height,
        x_ends=(first, last),
        y_ends=(f"{low:.3g}", f"{high:.3g}"),
    )


def lowest_of_runs(values: Floats) -> Floats:
    """The values, or where they are too many to be drawn, the lowest of each run of them."""
    if len(values) <= MAX_POINTS:
        return values
    runs = np.array_split(np.where(np.isnan(values), np.inf, values), MAX_POINTS)
    return np.array([run.min() for run in runs])


def _points(x: Floats, y: Floats) -> str:
    return " ".join(f"{px:.1f},{py:.1f}" for px, py in zip(x, y, strict=True))
