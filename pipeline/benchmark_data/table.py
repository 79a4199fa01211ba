"""What is known of each download: where its images and ground truth lie, what of them counts, how much there is.

| data set   | what of it                                   | foreground                          | must be there   |
|------------|----------------------------------------------|-------------------------------------|-----------------|
| davis2016  | the sequences of ImageSets/2016 (or of 480p) | all objects                         | 50, 3455 frames |
| davis2017  | the sequences of ImageSets/2017              | all objects                         | 90              |
| segtrackv2 | all                                          | all objects                         | 14, 1066 frames |
| fbms59     | all; ground truth for some frames            | grey levels, all objects            | 59 = 29 + 30    |
| cub        | the images that the split file marks 2       | above half; centre squares          | 1000 images     |
| duts-te    | all                                          | above half                          | 5019 images     |
| ecssd      | all                                          | above half                          | 1000 images     |
| dut-omron  | all                                          | above half                          | 5168 images     |

The grey levels of fbms59, and that its .ppm files go before .pgm, are those of MotionGrouping's tools/FBMS_clean.py,
which the paper's code points to. Its tools/SegTrack_clean.py merges the objects of five of the six sequences that
have several, and leaves penguin's six apart; here penguin's are merged too, since one mask is scored.

The 1000 images of cub are the test split that ReDO published (Chen et al., NeurIPS 2019). The paper's code, as that of
Melas-Kyriazi et al., from whom it has its image benchmarks, scores folders of 1000 test images and does not say
which they are; this is the published split of that size.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.inputs import IMAGE_SUFFIXES
from pipeline.layouts import FBMS_TEST, SEGTRACK

FBMS_TRAINING = """
bear01 bear02 cars2 cars3 cars6 cars7 cars8 cars9 cats02 cats04 cats05 cats07 ducks01 horses01 horses03
horses06 lion02 marple1 marple10 marple11 marple13 marple3 marple5 marple8 meerkats01 people04 people05
rabbits01 rabbits05
"""

Suffixes = frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class GreyLevels:
    """The grey levels of objects, as fractions of white."""

    above: float
    above_in: Mapping[str, float] = field(default_factory=dict)
    """The same for single sequences."""
    ppm_background_above: float = 1.0
    """In .ppm files background is white, and objects are coloured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RawDataset:
    """One download. Of alternative folders, the first one that has images counts; `{sequence}` is a video's name."""

    layout: str
    """The name of its evaluation layout."""
    images: tuple[str, ...]
    truth: tuple[str, ...]
    sequences: tuple[str, ...] = ()
    sequence_lists: tuple[str, ...] = ()
    """Folders with train.txt and val.txt, which name the sequences; alternatives."""
    test_split: tuple[str, str] | None = None
    """The files that number the images and assign each number to a split."""
    image_suffixes: Suffixes = IMAGE_SUFFIXES
    truth_suffixes: tuple[Suffixes, ...] = (IMAGE_SUFFIXES,)
    """Alternatives, too: the first of which there are files."""
    levels: GreyLevels | None = None
    """None: masks are read as `gwm evaluate` reads them."""
    square: bool = False
    """Images and masks are cut to their centre squares."""
    num_sequences: int | None = None
    """How many the lists name."""
    num_images: int | None = None

    @property
    def is_video(self) -> bool:
        """Whether it has sequences of frames, and not single images."""
        return self.layout != "images"


HALF = GreyLevels(above=0.5)
TEST = "2"
"""The test images' mark in `test_split`."""
NOT_TRUTH = "PROB"
"""FBMS59 has these letters in the names of files that are no segmentations."""

RAW_DATASETS: Mapping[str, RawDataset] = {
    "davis2016": RawDataset(
        layout="davis2016",
        images=("JPEGImages/480p/{sequence}",),
        truth=("Annotations/480p/{sequence}",),
        sequence_lists=("ImageSets/2016", "ImageSets/480p"),
        num_sequences=50,
        num_images=3455,
    ),
    "davis2017": RawDataset(
        layout="davis2016",
        images=("JPEGImages/480p/{sequence}",),
        truth=("Annotations/480p/{sequence}",),
        sequence_lists=("ImageSets/2017",),
        num_sequences=90,
    ),
    "segtrackv2": RawDataset(
        layout="segtrackv2",
        images=("JPEGImages/{sequence}", "PNGImages/{sequence}"),
        truth=("GroundTruth/{sequence}",),
        sequences=tuple(SEGTRACK.split()),
        num_images=1066,
    ),
    "fbms59": RawDataset(
        layout="fbms59",
        images=("Trainingset/{sequence}", "Testset/{sequence}"),
        truth=("Trainingset/{sequence}/GroundTruth", "Testset/{sequence}/GroundTruth"),
        sequences=(*FBMS_TRAINING.split(), *FBMS_TEST.split()),
        image_suffixes=frozenset((".jpg",)),
        truth_suffixes=(frozenset((".ppm",)), frozenset((".pgm",))),
        levels=GreyLevels(above=0.1, above_in={"marple7": 0.05, "marple2": 0.4}, ppm_background_above=0.99),
    ),
    "cub": RawDataset(
        layout="images",
        images=("images",),
        truth=("segmentations",),
        test_split=("images.txt", "train_val_test_split.txt"),
        levels=HALF,
        square=True,
        num_images=1000,
    ),
    "duts-te": RawDataset(
        layout="images",
        images=("DUTS-TE-Image",),
        truth=("DUTS-TE-Mask",),
        levels=HALF,
        num_images=5019,
    ),
    "ecssd": RawDataset(
        layout="images",
        images=("images",),
        truth=("ground_truth_mask",),
        levels=HALF,
        num_images=1000,
    ),
    "dut-omron": RawDataset(
        layout="images",
        images=("DUT-OMRON-image",),
        truth=("pixelwiseGT-new-PNG",),
        levels=HALF,
        num_images=5168,
    ),
}
