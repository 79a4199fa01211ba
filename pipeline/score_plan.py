"""What evaluate scores: a row for each sequence, with its ground truth and where its masks or frames lie."""

from collections.abc import Callable, Sequence

from pipeline.columns import read_columns
from pipeline.config import DecodeLimits, EvaluateConfig
from pipeline.contained import contained
from pipeline.dataset import Dataset
from pipeline.errors import GwmError, UnitError
from pipeline.frames import FrameList
from pipeline.inputs import Source, find_images, frame_urls
from pipeline.layouts import AnnotatedSequence, GroundTruth, official_positions, paper_positions
from pipeline.predictions import find_predictions, sequence_name
from pipeline.records import Row
from pipeline.video import probe

PROTOCOLS = ("official", "label_free", "paper", "oracle")
IMAGES_IN_A_ROW = 64
"""Single images are scored this many at a time."""

FindFrames = Callable[[AnnotatedSequence], FrameList]


def check_inputs(config: EvaluateConfig) -> None:
    """GwmError if the configuration names no protocol, or not exactly one thing to score."""
    if config.protocol not in PROTOCOLS:
        raise GwmError(f"protocol={config.protocol} is not known: it is one of {', '.join(PROTOCOLS)}.")
    if (config.masks is None) == (config.model is None):
        raise GwmError("Give either masks= (shards, a folder or a zip of PNGs) or model= to score.")
    if config.masks is not None and config.protocol in ("paper", "oracle"):
        raise GwmError(f"protocol={config.protocol} chooses among the K regions of a model: give model=.")
    if config.model is not None and config.protocol == "official":
        raise GwmError("protocol=official scores given masks: give masks=, or use protocol=label_free.")
    if config.model is None and (config.images or config.flow):
        raise GwmError("images= and flow= name the frames that model= segments: give model= too.")
    if config.refine.use_flow and not (config.model and config.flow):
        raise GwmError("refine.use_flow=true refines the masks of model= by the flow of flow=: give both.")
    if config.images and config.flow and not config.refine.use_flow:
        raise GwmError("Give either images= or flow= as the frames to segment, not both.")


def plan_scores(config: EvaluateConfig, truth: GroundTruth) -> list[Row]:
    """One row for each sequence, or for 64 single images; GwmError names a mask or frame that is missing."""
    rows: list[Row] = []
    if config.masks is not None:
        predictions = find_predictions(config.masks, config.decode)
        for sequence in truth.sequences:
            positions = official_positions(truth.dataset, sequence)
            places = [predictions.find(sequence, position) for position in positions]
            where: Row = {"files": [place.file for place in places], "rows": [place.row for place in places]}
            where |= {"masks_kind": predictions.kind, "masks_url": predictions.url}
            images = _layout_frames(sequence).to_row()  # for the report
            rows.append({**_frame_row(truth, sequence, positions), **where, **images})
        return [part for row in rows for part in _parts(row)]
    frames = _frame_finder(config)
    for sequence in truth.sequences:
        found = frames(sequence)
        if len(found) != len(sequence.frame_names):
            counts = f"{len(found)} frames to segment, but {len(sequence.frame_names)} in {config.data}"
            raise GwmError(f"{sequence.name} has {counts}.")
        counted = {*official_positions(truth.dataset, sequence), *paper_positions(truth.dataset, sequence)}
        rows.append({**_frame_row(truth, sequence, sorted(counted)), **found.to_row()})
    return [part for row in rows for part in _parts(row)]


def _frame_row(truth: GroundTruth, sequence: AnnotatedSequence, positions: Sequence[int]) -> Row:
    official = set(official_positions(truth.dataset, sequence))
    paper = set(paper_positions(truth.dataset, sequence))
    return {
        "sequence": sequence.name,
        "is_video": sequence.is_video,
        "frame_index": list(positions),
        "frame": [sequence.frame_names[position] for position in positions],
        "annotation_urls": [sequence.annotation_urls[position] for position in positions],
        "in_official": [position in official for position in positions],
        "in_paper": [position in paper for position in positions],
    }


def _parts(row: Row) -> list[Row]:
    """A video's row as it is; single images in rows of their own."""
    if row["is_video"]:
        return [row]
    scored = ("frame_index", "frame", "annotation_urls", "in_official", "in_paper", "files", "rows")
    return [
        row | {name: row[name][first : first + IMAGES_IN_A_ROW] for name in scored if name in row}
        for first in range(0, len(row["frame_index"]), IMAGES_IN_A_ROW)
    ]


def _frame_finder(config: EvaluateConfig) -> FindFrames:
    if config.flow is not None and not config.refine.use_flow:
        return _FlowFrames(config.flow, config.decode)
    if config.images is not None:
        return _ImageFrames(config.images, config.decode)
    return _layout_frames


def _layout_frames(sequence: AnnotatedSequence) -> FrameList:
    return FrameList(kind="files", urls=sequence.frame_urls, num_frames=len(sequence.frame_urls))


class _ImageFrames:
    """Frames of `images=`: videos and folders of frames by their last name, single images by their stem."""

    def __init__(self, spec: str, limits: DecodeLimits) -> None:
        self._spec = spec
        self._limits = limits
        self._sources: dict[str, Source] = {}
        for source in find_images(spec):
            name = sequence_name(source.name)
            self._sources[name.rsplit(".", 1)[0] if source.kind == "image" else name] = source

    def __call__(self, sequence: AnnotatedSequence) -> FrameList:
        """The frames of one sequence."""
        if not sequence.is_video:
            urls = tuple(self._source(name).url for name in sequence.frame_names)
            return FrameList(kind="files", urls=urls, num_frames=len(urls))
        source = self._source(sequence.name)
        if source.kind == "video":
            return FrameList(kind="video", urls=(source.url,), num_frames=self._num_frames(source))
        urls = tuple(frame_urls(source))
        return FrameList(kind="files", urls=urls, num_frames=len(urls))

    def _num_frames(self, video: Source) -> int:
        try:
            return len(contained(self._limits, probe, video).pts)
        except UnitError as error:
            raise GwmError(f"{error}.") from error

    def _source(self, name: str) -> Source:
        if name not in self._sources:
            raise GwmError(f"images={self._spec} holds no {name}.")
        return self._sources[name]


class _FlowFrames:
    """Frames that a flow dataset stores, by the video's last name."""

    def __init__(self, url: str, limits: DecodeLimits) -> None:
        self._url = url
        self._videos: dict[str, dict[int, tuple[str, int]]] = {}
        for shard in Dataset.read(url, kind="flow").shards():
            columns = read_columns(shard, ("video", "frame_index"), limits)
            pairs = zip(columns["video"], columns["frame_index"], strict=True)
            for row, (video, frame_index) in enumerate(pairs):
                self._videos.setdefault(sequence_name(video), {})[frame_index] = (shard, row)

    def __call__(self, sequence: AnnotatedSequence) -> FrameList:
        """The frames of one sequence."""
        frames = self._videos.get(sequence.name)
        if frames is None or sorted(frames) != list(range(len(frames))):
            raise GwmError(f"flow={self._url} does not hold all frames of {sequence.name}.")
        places = [frames[number] for number in range(len(frames))]
        return FrameList(
            kind="flow",
            urls=tuple(shard for shard, _ in places),
            rows=tuple(row for _, row in places),
            num_frames=len(places),
        )
