"""What is to be written for a download: found out from its listings and lists, before anything is decoded."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from pipeline import storage
from pipeline.benchmark_data.table import NOT_TRUTH, TEST, RawDataset, Suffixes
from pipeline.errors import GwmError
from pipeline.layouts import LAYOUTS


@dataclass(frozen=True, slots=True)
class Item:
    """One image to be written, and its ground truth."""

    name: str
    """SEQUENCE/FRAME of a video's frame, with its number as five digits; otherwise the image's own name."""
    image: str
    truth: tuple[str, ...]
    """A file for each object; none for a frame that is not annotated."""


@dataclass(frozen=True, slots=True)
class Plan:
    """All that can be written, and a sentence for each thing that is missing."""

    items: tuple[Item, ...]
    problems: tuple[str, ...]


def plan(raw: RawDataset, source: str) -> Plan:
    """The items of a download in `source`.

    GwmError: a list that is missing, two files for one image, a frame without a number.
    """
    found = list(_videos(raw, source) if raw.is_video else _images(raw, source))
    items = tuple(one for one in found if isinstance(one, Item))
    problems = [one for one in found if isinstance(one, str)]
    if raw.num_images not in (None, len(items)):
        what = "frames" if raw.is_video else "images"
        problems.append(f"There should be {raw.num_images} {what} in {source}: {len(items)} are there.")
    return Plan(items, tuple(problems))


def _videos(raw: RawDataset, source: str) -> Iterator[Item | str]:
    names = raw.sequences or _listed_sequences(raw, source)
    if raw.num_sequences not in (None, len(names)):
        yield f"The lists in {source} should name {raw.num_sequences} sequences: they name {len(names)}."
    for name in names:
        yield from _video(raw, source, name)


def _listed_sequences(raw: RawDataset, source: str) -> tuple[str, ...]:
    """Sequences of train.txt and val.txt: their names, or a line `/JPEGImages/480p/NAME/00000.jpg ...` per frame."""
    folders = [storage.join(source, folder) for folder in raw.sequence_lists]
    folder = next((folder for folder in folders if storage.exists(folder)), None)
    if folder is None:
        raise GwmError(f"There is no {' or '.join(folders)}: it lists the sequences of the data set.")
    lines = [line for name in ("train.txt", "val.txt") for line in _lines(storage.join(folder, name))]
    paths = [PurePosixPath(line.split()[0]) for line in lines]
    return tuple(dict.fromkeys(path.parent.name or path.name for path in paths))


def _video(raw: RawDataset, source: str, sequence: str) -> Iterator[Item | str]:
    """The frames of a sequence, which have their ground truth by their numbers."""
    frames_at, truth_at = (
        [storage.join(source, folder.format(sequence=sequence)) for folder in folders]
        for folders in (raw.images, raw.truth)
    )
    frame_urls = _first_folder(frames_at, (raw.image_suffixes,), deep=False)
    frames = {number: _only(urls) for number, urls in _by_number(frame_urls).items()}
    truth = _by_number(_first_folder(truth_at, raw.truth_suffixes, deep=True))
    if not frames or not truth:
        yield f"There are no images in {' or '.join(truth_at if frames else frames_at)}."
        return
    num_objects = max(map(len, truth.values()))
    for number in sorted(frames.keys() | truth):
        masks = tuple(truth.get(number, ()))
        if number not in frames:
            yield f"{masks[0]} is the ground truth of a frame that is not there."
        elif not masks and LAYOUTS[raw.layout].dense:
            yield f"{frames[number]} has no ground truth."
        elif masks and len(masks) < num_objects:
            yield f"{frames[number]} has ground truth of {len(masks)} objects, other frames of {num_objects}."
        else:
            yield Item(f"{sequence}/{number:05d}", frames[number], masks)


def _images(raw: RawDataset, source: str) -> Iterator[Item | str]:
    """Pairs of the same name."""
    images_at, truth_at = (storage.join(source, folders[0]) for folders in (raw.images, raw.truth))
    images, truth = _by_name(images_at, raw.image_suffixes), _by_name(truth_at, raw.truth_suffixes[0])
    wanted = sorted(images.keys() | truth) if raw.test_split is None else _test_names(raw.test_split, source)
    for name in wanted:
        if name not in images:
            yield f"There is no image {storage.join(images_at, name)}."
        elif name not in truth:
            yield f"There is no ground truth {storage.join(truth_at, name)}."
        else:
            yield Item(PurePosixPath(name).name, images[name], (truth[name],))


def _test_names(test_split: tuple[str, str], source: str) -> list[str]:
    """The paths, without suffixes, of the images that the split file marks as test images."""
    names_at, splits_at = (storage.join(source, name) for name in test_split)
    paths, splits = _pairs(names_at), _pairs(splits_at)
    if paths.keys() != splits.keys():
        raise GwmError(f"{names_at} and {splits_at} do not number the same images.")
    return [_without_suffix(paths[number]) for number, split in splits.items() if split == TEST]


def _pairs(url: str) -> dict[str, str]:
    """Lines of two words."""
    words = [line.split() for line in _lines(url)]
    bad = next((line for line in words if len(line) != 2), None)
    if bad is not None:
        raise GwmError(f"{url} should have two words on each line, not '{' '.join(bad)}'.")
    return dict(words)


def _lines(url: str) -> list[str]:
    """The lines of a text that are not empty."""
    text = storage.read_bytes(url).decode(errors="replace")
    return [line for line in text.splitlines() if line.strip()]


def _first_folder(folders: Sequence[str], suffixes: Sequence[Suffixes], *, deep: bool) -> list[str]:
    """The images of the first folder, and of the first kind, of which there are any."""
    every = ([url for url in storage.list_files(folder) if _counts(url, folder, deep)] for folder in folders)
    files = next(filter(None, every), [])
    kinds = ([url for url in files if PurePosixPath(url).suffix.lower() in kind] for kind in suffixes)
    return next(filter(None, kinds), [])


def _counts(url: str, folder: str, deep: bool) -> bool:
    path = storage.relative(url, folder)
    return (deep or "/" not in path) and NOT_TRUTH not in PurePosixPath(path).name


def _by_number(urls: Sequence[str]) -> dict[int, list[str]]:
    """Files by the last number in their names."""
    numbered: dict[int, list[str]] = {}
    for url in urls:
        digits = re.findall(r"\d+", PurePosixPath(url).stem)
        if not digits:
            raise GwmError(f"{url} has no frame number in its name.")
        numbered.setdefault(int(digits[-1]), []).append(url)
    return numbered


def _only(urls: Sequence[str]) -> str:
    if len(urls) > 1:
        raise GwmError(f"{urls[0]} and {urls[1]} are two images of one frame.")
    return urls[0]


def _by_name(folder: str, suffixes: Suffixes) -> Mapping[str, str]:
    """Images below a folder by their paths without suffixes."""
    named: dict[str, list[str]] = {}
    for url in storage.list_files(folder):
        if PurePosixPath(url).suffix.lower() in suffixes:
            named.setdefault(_without_suffix(storage.relative(url, folder)), []).append(url)
    if not named:
        raise GwmError(f"There are no images in {folder}.")
    return {name: _only(urls) for name, urls in named.items()}


def _without_suffix(path: str) -> str:
    return str(PurePosixPath(path).with_suffix(""))
