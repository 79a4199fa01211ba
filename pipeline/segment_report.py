"""The report of gwm segment: a few images with their masks, what has none and why, time."""

from collections.abc import Mapping
from itertools import islice
from typing import Any

from pipeline import storage
from pipeline.config import SegmentConfig
from pipeline.dataset import Dataset
from pipeline.formats.shards import Inputs
from pipeline.load_config import digest
from pipeline.placement import unwrap
from pipeline.progress import say
from pipeline.report.page import NAME, Report, command_time, is_drawn, write_report
from pipeline.report.samples import chosen_masks, drawn, strips_of_masks, wanted_mask
from pipeline.report.undone import quarantined, without_mask
from pipeline.summary import version

MAX_LINKS = 200
RANKED_BY = "certainty"
"""The foreground score of a mask: the object's mean probability inside it."""


def write_segment_report(config: SegmentConfig, dataset: Dataset, summary: Mapping[str, Any]) -> None:
    """Writes report.html beside finished masks; one that shows the same masks is left as it is."""
    if config.report.num_samples == 0:
        return
    url = storage.join(dataset.url, NAME)
    state = report_state(dataset, config)
    if not is_drawn(url, state):
        try:
            write_report(url, make_report(config, dataset, summary, state))
        except Exception as error:
            raise unwrap(error) from error
    say(f"Report: {url}")


def make_report(config: SegmentConfig, dataset: Dataset, summary: Mapping[str, Any], state: str) -> Report:
    """The report's content, read back from the dataset."""
    rows = chosen_masks(dataset, config.report.num_samples)
    flow = None if config.flow is None else storage.absolute(config.flow)
    samples = drawn(
        strips_of_masks(rows, Inputs(config.images, config.decode), wanted_mask), config.decode, flow=flow
    )
    num_images, num_quarantined = summary["dataset"]["num_rows"], summary["units"]["quarantined"]
    return Report(
        title="Masks",
        lead="Each mask is made from its image alone, or in a video from its frame and the object that the whole video "
        f"decides on. The samples are spread evenly over all inputs; their {RANKED_BY} is the network's mean "
        "probability of the object inside its mask, and 0 where the mask is empty. No ground truth was used.",
        facts={
            "images": config.images,
            "model": config.model,
            "images and frames": f"{num_images:,}",
            "without a mask": f"{summary['errors']:,}",
            "in quarantine": f"{num_quarantined:,} of {sum(summary['units'].values()):,} chunks",
            "gwm": summary["version"],
        },
        samples=samples,
        ranked_by=RANKED_BY,
        undone=[*quarantined(dataset), *without_mask(dataset, summary["errors"])],
        num_undone=num_quarantined + summary["errors"],
        times=[command_time(summary)],
        links=written_pictures(dataset.url),
        state=state,
    )


def written_pictures(url: str, below: str = "") -> list[str]:
    """The contact sheet and the first overlay videos beside masks, as paths below `below`."""
    sheet = storage.join(url, "contact_sheet.jpg")
    videos = islice(storage.list_files(storage.join(url, "overlays")), MAX_LINKS)
    found = [sheet] if storage.exists(sheet) else []
    return [f"{below}{storage.relative(file, url)}" for file in (*found, *videos)]


def report_state(dataset: Dataset, config: SegmentConfig) -> str:
    """What the report of masks shows, except for times."""
    shards = {entry.unit: entry.sha256 for entry in dataset.manifest()}
    undone = list(storage.list_files(storage.join(dataset.url, "quarantine")))
    files = {"undone": str(undone), "links": str(written_pictures(dataset.url))}
    return digest({**shards, **files, "num_samples": config.report.num_samples, "version": version()})
