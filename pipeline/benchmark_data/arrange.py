"""A download -> the folders of a layout; files that are there already are left as they are."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import PurePosixPath

import numpy as np

from pipeline import storage
from pipeline.benchmark_data.plan import Item, Plan, plan
from pipeline.benchmark_data.table import RAW_DATASETS, RawDataset
from pipeline.benchmark_data.truth import centre_square, read_truth
from pipeline.errors import GwmError, UnitError
from pipeline.images import decode_grey, read_image
from pipeline.layouts import LAYOUTS, official_positions, paper_positions, read_layout
from pipeline.pictures import encode_png
from pipeline.progress import Progress, say

THREADS = 8
PROBLEMS_SHOWN = 5


def arrange(name: str, source: str, target: str, *, partly: bool = False) -> bool:
    """Writes the data set `name`, downloaded to `source`, below `target`; whether all of it is there.

    Frames are copied as they are, masks are PNGs {0, 255}. Everything is looked for before anything is written;
    every file is written whole, and a rerun writes what is missing.

    GwmError: an unknown name, something that is missing (unless `partly`), a file that cannot be read, a target
    with images that do not belong to it.
    """
    if name not in RAW_DATASETS:
        raise GwmError(f"NAME {name} is not known: it is one of {', '.join(RAW_DATASETS)}.")
    raw, source, target = RAW_DATASETS[name], storage.absolute(source), storage.absolute(target)
    if source == target:
        raise GwmError("SOURCE and TARGET are the same folder: a download stays as it is.")
    planned = plan(raw, source)
    _check(planned, partly=partly)
    num_written = _write(planned, raw, target)
    for sentence in _report(name, raw, planned, target, num_written):
        say(sentence)
    return not planned.problems


def _check(planned: Plan, *, partly: bool) -> None:
    """What is missing ends the work, or is said where a part is wanted and there is one."""
    problems = planned.problems
    if problems and not (partly and planned.items):
        more = f" {len(problems) - 1} more things are missing." if len(problems) > 1 else ""
        hint = " --partial takes what is there." if planned.items else ""
        raise GwmError(f"{problems[0]}{more}{hint}")
    for problem in problems[:PROBLEMS_SHOWN]:
        say(problem)
    if len(problems) > PROBLEMS_SHOWN:
        say(f"{len(problems) - PROBLEMS_SHOWN} more things are missing.")


def _write(planned: Plan, raw: RawDataset, target: str) -> int:
    """Writes the items that are not there; how many they were."""
    layout = LAYOUTS[raw.layout]
    folders = storage.join(target, layout.frames), storage.join(target, layout.annotations)
    there = {url for folder in folders for url in storage.list_files(folder)}
    wanted = {item: _targets(item, raw, *folders) for item in planned.items}
    urls = [url for targets in wanted.values() for url in targets]
    if len(set(urls)) < len(urls):
        twice = next(url for url in urls if urls.count(url) > 1)
        raise GwmError(f"Two images would become {twice}.")
    if strangers := there.difference(urls):
        raise GwmError(f"{min(strangers)} does not belong there: choose an empty folder.")
    missing = {item: targets for item, targets in wanted.items() if not there.issuperset(targets)}
    with Progress(total=len(missing), unit="images") as progress, ThreadPoolExecutor(THREADS) as threads:
        try:
            for _ in threads.map(partial(_write_item, raw=raw), missing, missing.values()):
                progress.advance()
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise
    return len(missing)


def _targets(item: Item, raw: RawDataset, frames: str, annotations: str) -> tuple[str, ...]:
    """Where the image of an item goes, and its mask if it has one."""
    suffix = ".png" if raw.square else PurePosixPath(item.image).suffix.lower()
    image = storage.join(frames, f"{item.name}{suffix}")
    return (image, storage.join(annotations, f"{item.name}.png")) if item.truth else (image,)


def _write_item(item: Item, targets: tuple[str, ...], raw: RawDataset) -> None:
    try:
        encoded, size = _image(item, raw)
        mask = read_truth(item, raw.levels) if item.truth else None
    except UnitError as error:
        raise GwmError(f"{error}.") from error
    if mask is not None and mask.shape != size:
        shapes = " and ".join("x".join(map(str, shape)) for shape in (size, mask.shape))
        raise GwmError(f"{item.image} and its ground truth {item.truth[0]} differ in size: {shapes}.")
    storage.write_bytes(targets[0], encoded)
    if mask is not None:
        pixels = mask.astype(np.uint8) * np.uint8(255)
        storage.write_bytes(targets[1], encode_png(centre_square(pixels) if raw.square else pixels))


def _image(item: Item, raw: RawDataset) -> tuple[bytes, tuple[int, ...]]:
    """The file to be written for an image, and the height and width of the image in the download."""
    if raw.square:
        image = read_image(item.image)
        return encode_png(centre_square(image)), image.shape[:2]
    encoded = storage.read_bytes(item.image)
    return encoded, decode_grey(item.image, encoded).shape


def _report(name: str, raw: RawDataset, planned: Plan, target: str, num_written: int) -> Iterator[str]:
    """What is there now, and what of it is scored."""
    sequences = {item.name.partition("/")[0] for item in planned.items}
    images = (
        f"{len(sequences)} sequences, {len(planned.items)} frames"
        if raw.is_video
        else f"{len(planned.items)} images"
    )
    annotated = sum(bool(item.truth) for item in planned.items)
    yield f"{name}: {images}, {annotated} with ground truth, in {target}; {num_written} written now."
    scored = read_layout(raw.layout, target).sequences
    official, paper = (
        sum(len(positions(raw.layout, sequence)) for sequence in scored)
        for positions in (official_positions, paper_positions)
    )
    yield f"gwm evaluate dataset={raw.layout} data={target} scores {official}, by the paper's protocol {paper}."
