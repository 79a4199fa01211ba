"""The end of gwm segment: what its masks look like. A film of each video, with Ray Data, and one sheet of photos."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray.data

from pipeline import storage
from pipeline.contact_sheet import EvenChoice, Photo, contact_sheet
from pipeline.dataset import Dataset
from pipeline.inputs import absolute_spec
from pipeline.model_card import PinnedConfig
from pipeline.overlay_files import contact_sheet_url, overlay_url
from pipeline.placement import tasks
from pipeline.progress import Progress, say
from pipeline.records import Row
from pipeline.stages.plan_chunks import input_unit, inputs_of
from pipeline.stages.write_overlay import write_overlay


@dataclass(frozen=True, slots=True)
class Drawings:
    """What there is to draw."""

    films: dict[str, Row] = field(default_factory=dict)
    """Videos by the URL of their film."""
    clashes: list[str] = field(default_factory=list)
    """Videos whose film would have another's name."""
    photos: EvenChoice = field(default_factory=EvenChoice)

    def add(self, row: Row, config: PinnedConfig, dataset: Dataset) -> None:
        """Takes the next input, a row of `inputs_of`."""
        if row["kind"] == "images":
            unit, places = (
                input_unit(row, config.unit_fingerprint()),
                zip(row["names"], row["urls"], strict=True),
            )
            self.photos.add(Photo(*place, unit, number) for number, place in enumerate(places))
        elif self.films.setdefault(overlay_url(row["source"], dataset.url), row) is not row:
            self.clashes.append(row["source"])


def write_overlays(config: PinnedConfig, dataset: Dataset, progress: Progress) -> dict[str, Any]:
    """Draws what is not drawn yet of the masks that are there; returns what the summary says of it.

    `look_at` says where it is. What cannot be drawn is counted in `failed`, with the `reason` of one of them; a rerun
    tries it again.
    """
    if not config.write_overlays:
        return {}
    inputs = Drawings()
    for row in inputs_of(absolute_spec(config.images), config.chunk_images):
        inputs.add(row, config, dataset)
    outcomes = _write_films(inputs, config, dataset, progress)
    photos, sheet = inputs.photos.chosen(), contact_sheet_url(dataset.url)
    if photos and storage.exists(sheet):
        outcomes.append(("skipped", ""))
    elif photos:
        storage.write_bytes(sheet, contact_sheet(photos, dataset, config.decode))
        outcomes.append(("written", ""))
    films = [*inputs.films] if len(inputs.films) == 1 else [storage.join(dataset.url, "overlays")]
    counts = Counter(status for status, _ in outcomes)
    return {
        **{status: counts[status] for status in ("written", "skipped", "failed")},
        "reason": next((reason for _, reason in outcomes if reason), ""),
        "look_at": [url for url in (*films, sheet) if storage.exists(url)],
    }


def _write_films(
    inputs: Drawings, config: PinnedConfig, dataset: Dataset, progress: Progress
) -> list[tuple[str, str]]:
    """The outcome of each video, and the reason where it failed."""
    outcomes = [("failed", f"{name}: the overlay of another video has its name") for name in inputs.clashes]
    num_frames = 0
    for row in drawn_films([*inputs.films.values()], config, dataset).iter_rows() if inputs.films else ():
        if row["status"] == "drawing":
            num_frames += row["num_frames"]
            progress.advance(0, frames_drawn=num_frames)
        else:
            outcomes.append((row["status"], row["reason"] and f"{row['source']}: {row['reason']}"))
    return outcomes


def drawn_films(videos: list[Row], config: PinnedConfig, dataset: Dataset) -> ray.data.Dataset:
    """Videos -> rows of `write_overlay`: some for each, as it goes, and one with the outcome."""
    write = partial(write_overlay, config=config, dataset=dataset, fingerprint=config.unit_fingerprint())
    each = ray.data.from_items(videos, override_num_blocks=len(videos))
    return each.flat_map(write, **tasks(config.placement.write_overlay))  # bound by the codecs


def say_where_to_look(overlays: Mapping[str, Any]) -> None:
    """A command's last words: where its overlays are, and how many there are not."""
    if overlays.get("failed"):
        say(f"{overlays['failed']} overlays could not be made. {overlays['reason']}.")
    if overlays.get("look_at"):
        say(f"Look at {' and '.join(overlays['look_at'])}")
