"""Evaluation data sets: which frames there are, where their ground truth lies, and which of them count.

| dataset    | frames below    | truth below      | mean over | official frames     | paper's frames       |
|------------|-----------------|------------------|-----------|---------------------|----------------------|
| davis2016  | JPEGImages/480p | Annotations/480p | sequences | all but first, last | number > 1, not last |
| segtrackv2 | JPEGImages      | Annotations      | frames    | all                 | all but the last     |
| fbms59     | JPEGImages      | Annotations      | frames    | all annotated       | all but a last frame |
| images     | images          | masks            | images    | all                 | all                  |

A video's frames and masks lie in a folder with its name, `images` and `masks` hold theirs directly. The
paper's code takes its frames from the flow files: it never sees a last frame, and skips DAVIS frames 0 and 1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from pipeline import storage
from pipeline.errors import GwmError
from pipeline.inputs import IMAGE_SUFFIXES

IMAGES = "images"
"""The name under which single images are scored, as one group."""

DAVIS_VAL = """
blackswan bmx-trees breakdance camel car-roundabout car-shadow cows dance-twirl dog drift-chicane
drift-straight goat horsejump-high kite-surf libby motocross-jump paragliding-launch parkour
scooter-black soapbox
"""
SEGTRACK = """
bird_of_paradise birdfall bmx cheetah drift frog girl hummingbird monkey monkeydog parachute penguin
soldier worm
"""
FBMS_TEST = """
camel01 cars1 cars10 cars4 cars5 cats01 cats03 cats06 dogs01 dogs02 farm01 giraffes01 goats01
horses02 horses04 horses05 lion01 marple12 marple2 marple4 marple6 marple7 marple9 people03 people1
people2 rabbits02 rabbits03 rabbits04 tennis
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The conventions of one evaluation data set."""

    frames: str
    annotations: str
    official: tuple[str, ...] = ()
    """Sequences that a published mean is taken over."""
    dense: bool = True
    """Every frame must be annotated."""
    mean_over_sequences: bool = False
    """Mean of the sequences' means; otherwise the mean over all frames."""


LAYOUTS: Mapping[str, Layout] = {
    "davis2016": Layout(
        frames="JPEGImages/480p",
        annotations="Annotations/480p",
        official=tuple(DAVIS_VAL.split()),
        mean_over_sequences=True,
    ),
    "segtrackv2": Layout(frames="JPEGImages", annotations="Annotations", official=tuple(SEGTRACK.split())),
    "fbms59": Layout(
        frames="JPEGImages", annotations="Annotations", official=tuple(FBMS_TEST.split()), dense=False
    ),
    "images": Layout(frames="images", annotations="masks"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotatedSequence:
    """One video, or the group of single images, with its ground truth."""

    name: str
    is_video: bool
    """The frames are one video, in order; otherwise they have nothing to do with one another."""
    frame_names: tuple[str, ...]
    """Stems of the frames' file names, sorted."""
    frame_urls: tuple[str, ...]
    annotation_urls: Mapping[int, str]
    """Ground truth of the annotated frames, by position in `frame_names`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroundTruth:
    """What is there of a data set."""

    dataset: str
    layout: Layout
    sequences: tuple[AnnotatedSequence, ...]
    missing: tuple[str, ...]
    """Official sequences that are not there; none where there is no official one at all."""


def read_layout(dataset: str, data: str) -> GroundTruth:
    """The sequences found under `data`; the official ones only, if there are any of them.

    GwmError: an unknown data set, an empty or missing folder, and by name a frame without ground truth or
    ground truth without its frame.
    """
    if dataset not in LAYOUTS:
        raise GwmError(f"dataset={dataset} is not known: it is one of {', '.join(LAYOUTS)}.")
    layout = LAYOUTS[dataset]
    folders = storage.join(data, layout.frames), storage.join(data, layout.annotations)
    read = _read_images if dataset == "images" else _read_videos
    sequences = read(*folders, layout)
    present = {sequence.name for sequence in sequences}
    official = [sequence for sequence in sequences if sequence.name in layout.official]
    return GroundTruth(
        dataset=dataset,
        layout=layout,
        sequences=tuple(official or sequences),
        missing=tuple(name for name in layout.official if name not in present) if official else (),
    )


def missing_sentence(truth: GroundTruth, data: str) -> str:
    """What to tell about the official sequences that are not there."""
    whole = len(truth.layout.official)
    return f"{len(truth.missing)} of the {whole} sequences of {truth.dataset} are not in {data}."


def official_positions(dataset: str, sequence: AnnotatedSequence) -> list[int]:
    """Positions of the frames that the data set's own protocol scores."""
    ends = {0, len(sequence.frame_names) - 1} if dataset == "davis2016" else set()
    return [position for position in sequence.annotation_urls if position not in ends]


def paper_positions(dataset: str, sequence: AnnotatedSequence) -> list[int]:
    """Positions of the frames that the paper's code scores."""
    positions = list(sequence.annotation_urls)
    if sequence.is_video:
        positions = [position for position in positions if position != len(sequence.frame_names) - 1]
    if dataset == "davis2016":
        positions = [position for position in positions if _frame_number(sequence, position) > 1]
    return positions


def _frame_number(sequence: AnnotatedSequence, position: int) -> int:
    name = sequence.frame_names[position]
    return int(name) if name.isdecimal() else position


def _read_videos(frames: str, annotations: str, layout: Layout) -> list[AnnotatedSequence]:
    """One sequence for each folder that holds both frames and ground truth."""
    truth, images = _by_folder(annotations), _by_folder(frames)
    return [
        _annotated(name, images.get(name, {}), truth[name], frames, layout, is_video=True)
        for name in sorted(truth)
        if not layout.official or name in layout.official or not set(layout.official) & set(truth)
    ]


def _read_images(frames: str, annotations: str, layout: Layout) -> list[AnnotatedSequence]:
    """All single images as one group; images and ground truth lie directly in their folders."""
    images, truth = _by_folder(frames).get("", {}), _by_folder(annotations).get("", {})
    return [_annotated(IMAGES, images, truth, frames, layout, is_video=False)]


def _annotated(
    name: str,
    images: Mapping[str, str],
    truth: Mapping[str, str],
    frames: str,
    layout: Layout,
    *,
    is_video: bool,
) -> AnnotatedSequence:
    where = storage.join(frames, name) if is_video else frames
    _check_pairs(where, images, truth, dense=layout.dense)
    stems = sorted(images, key=_frame_order)
    return AnnotatedSequence(
        name=name,
        is_video=is_video,
        frame_names=tuple(stems),
        frame_urls=tuple(images[stem] for stem in stems),
        annotation_urls={position: truth[stem] for position, stem in enumerate(stems) if stem in truth},
    )


def _check_pairs(where: str, images: Mapping[str, str], truth: Mapping[str, str], *, dense: bool) -> None:
    for stem in sorted(truth):
        if stem not in images:
            raise GwmError(f"{truth[stem]} has no frame {storage.join(where, stem)}.* beside it.")
    for stem in sorted(images) if dense else ():
        if stem not in truth:
            raise GwmError(f"{images[stem]} has no ground truth named {stem}.*.")


def _frame_order(stem: str) -> tuple[int, int, str]:
    """Numbers by value, then other names by letter."""
    return (0, int(stem), stem) if stem.isdecimal() else (1, 0, stem)


def _by_folder(root: str) -> dict[str, dict[str, str]]:
    """Image URLs by the folder below `root` (or "" for `root` itself) and the stem of the file's name."""
    folders: dict[str, dict[str, str]] = {}
    for url in storage.list_files(root):
        path = PurePosixPath(storage.relative(url, root))
        if path.suffix.lower() not in IMAGE_SUFFIXES or len(path.parts) > 2:
            continue
        stems = folders.setdefault(path.parts[0] if len(path.parts) == 2 else "", {})
        if path.stem in stems:
            raise GwmError(f"{stems[path.stem]} and {url} are two images of one frame.")
        stems[path.stem] = url
    if not folders:
        raise GwmError(f"There are no images under {root}.")
    return folders


def dataset_mean(layout: Layout, frames: Mapping[str, Sequence[float]]) -> float:
    """The data set's J from the scores of each sequence's frames."""
    scored = [scores for scores in frames.values() if scores]
    if layout.mean_over_sequences:
        return sum(sum(scores) / len(scores) for scores in scored) / max(len(scored), 1)
    every = [score for scores in scored for score in scores]
    return sum(every) / max(len(every), 1)
