"""The end of gwm segment: what its masks look like. A film of each video, with Ray Data, and one sheet of photos."""

from collections import Counter
from collections.abc import Iterator, Mapping
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
from pipeline.unit_totals import UnitTotals

MAX_BLOCKS = 1024
"""Of more videos, some are drawn one after another."""


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
            unit = input_unit(row, config.unit_fingerprint())
            named = enumerate(zip(row["names"], row["urls"], strict=True))
            self.photos.add(Photo(name, url, unit, number) for number, (name, url) in named)
        elif self.films.setdefault(overlay_url(row["source"], dataset.url), row) is not row:
            self.clashes.append(row["source"])


def write_overlays(
    config: PinnedConfig, dataset: Dataset, progress: Progress, totals: UnitTotals
) -> dict[str, Any]:
    """Draws what is not drawn yet of the masks that are there; returns what the summary says of it.

    `look_at` says where it is. A film that cannot be made is counted in `failed`, with the `reason` of one of them; a
    rerun tries it again.
    """
    if not config.write_overlays:
        return {}
    inputs = Drawings()
    for row in inputs_of(absolute_spec(config.images), config.chunk_images):
        inputs.add(row, config, dataset)
    outcomes: Counter[str] = Counter(failed=len(inputs.clashes))
    reasons = [f"{name}: the overlay of another video has its name" for name in inputs.clashes]
    num_frames = 0
    for row in drawn_films([*inputs.films.values()], config, dataset):
        num_frames += row["num_frames"]
        progress.advance(0, frames_drawn=num_frames)
        outcomes[row["status"]] += 1
        totals.seconds["write_overlay"] += row["seconds"]
        reasons += [f"{row['source']}: {row['reason']}"] if row["reason"] else []
    outcomes[_write_contact_sheet(inputs.photos.chosen(), config, dataset)] += 1
    films = [*inputs.films] if len(inputs.films) == 1 else [storage.join(dataset.url, "overlays")]
    drawn = [url for url in (*films, contact_sheet_url(dataset.url)) if storage.exists(url)]
    return {
        **{status: outcomes[status] for status in ("written", "skipped", "failed")},
        **({"reason": reasons[0]} if reasons else {}),
        "look_at": " and ".join(drawn),
    }


def drawn_films(videos: list[Row], config: PinnedConfig, dataset: Dataset) -> Iterator[Row]:
    """Videos -> rows of `write_overlay`: some for each, as it goes, and one with the outcome."""
    if not videos:
        return
    write = partial(write_overlay, config=config, dataset=dataset, fingerprint=config.unit_fingerprint())
    place = config.placement.write_overlay
    each = ray.data.from_items(videos, override_num_blocks=min(len(videos), MAX_BLOCKS))
    yield from each.flat_map(write, **tasks(place)).iter_rows()  # bound by the codecs


def say_where_to_look(overlays: Mapping[str, Any]) -> None:
    """A command's last words: where its overlays are, and how many there are not."""
    if overlays.get("failed"):
        say(f"{overlays['failed']} without an overlay, among them {overlays['reason']}.")
    if overlays.get("look_at"):
        say(f"Look at {overlays['look_at']}")


def _write_contact_sheet(photos: list[Photo], config: PinnedConfig, dataset: Dataset) -> str:
    """The outcome, as that of a film."""
    url = contact_sheet_url(dataset.url)
    if not photos:
        return "none"
    if storage.exists(url):
        return "skipped"
    storage.write_bytes(url, contact_sheet(photos, dataset, config.decode))
    return "written"
