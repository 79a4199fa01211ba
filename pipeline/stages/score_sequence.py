"""Masks of a sequence, or of single images, against their ground truth: every frame's scores."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from gwm_model.merge import bipartitions
from pipeline.config import DecodeLimits, EvaluateConfig
from pipeline.errors import GwmError, UnitError
from pipeline.frames import FrameList, read_frame_list
from pipeline.images import Image
from pipeline.inference import ObjectRule, RegionModel, at_source, object_at_source
from pipeline.masks import encode_mask
from pipeline.metrics import Map, Mask, Scores, binary_mask, image_scores, mask_scores, soft_mask
from pipeline.model_card import ModelCard, anchor_positions
from pipeline.pictures import picture_size
from pipeline.predictions import Place, read_mask, read_predictions
from pipeline.records import Row
from pipeline.report.draw import Wanted
from pipeline.report.page import Sample
from pipeline.torch_settings import set_up_torch
from pipeline.video_flow import VideoFlow, read_video_flow

MODEL_PROTOCOLS = ("label_free", "paper", "oracle")
SIDES_AT_ONCE = 16


def score_sequence(row: Row, limits: DecodeLimits, num_samples: int = 0) -> Row:
    """The row's scores of given masks, one for each frame in `frame_index`: `j` and `f`; more of single images.

    A mask of another size than its ground truth is resized (nearest pixel) and counted in `num_resized`. `wanted` has
    what a report of `num_samples` may draw of the row.
    """
    places = [Place(file=file, row=index) for file, index in zip(row["files"], row["rows"], strict=True)]
    meaning, score = (binary_mask, mask_scores) if row["is_video"] else (soft_mask, image_scores)
    masks = read_predictions(row["masks_url"], row["masks_kind"], places, limits, meaning)
    scores, wanted, num_resized = list[Scores](), list[Wanted](), 0
    for number, (mask, truth) in enumerate(zip(masks, _truths(row["annotation_urls"], limits), strict=True)):
        num_resized += mask.shape != truth.shape
        mask = _resized(mask, truth.shape)
        scores.append(score(mask, truth))
        if num_samples:
            wanted.append(_wanted(row, number, mask > 0.5))
    columns = _columns(scores)
    kept = _extremes(wanted, columns["j"], num_samples)
    return {**_frames_of(row), "num_resized": num_resized, **columns, "wanted": kept}


class ScoreSequence:
    """Scores of a segmenter on a sequence under every protocol, from one forward pass.

    Columns `j_label_free`, `j_paper`, `j_oracle`, and `f_label_free` and what else single images are scored by; not a
    number outside a protocol's frames.
    """

    def __init__(self, config: EvaluateConfig, card: ModelCard, device: str, num_threads: int) -> None:
        set_up_torch(num_threads)
        self._config = config
        self._size = (card.height_px, card.width_px)
        self._model = RegionModel(
            str(config.model),
            config.merge,
            batch_size=config.batch_size,
            device=device,
            scales=config.input_scales,
        )

    def __call__(self, row: Row) -> Row:
        """The row's scores: one for each frame in `frame_index`; and `wanted`, as in `score_sequence`."""
        num_samples, wanted = self._config.report.num_samples, list[Wanted]()
        try:
            scores = list(self._score(row, FrameList.of_row(row), wanted))
        except UnitError as error:
            raise GwmError(f"{row['sequence']} cannot be scored: {error}.") from error
        columns = _columns(scores)
        kept = _extremes(wanted, columns[f"j_{self._config.protocol}"], num_samples)
        return {**_frames_of(row), "num_resized": 0, **columns, "wanted": kept}

    def _score(self, row: Row, frames: FrameList, wanted: list[Wanted]) -> Iterator[Scores]:
        """The frames' scores; what could be drawn of them is added to `wanted`."""
        score = mask_scores if row["is_video"] else image_scores
        rule = self._video_rule(frames) if row["is_video"] else None
        positions = list(row["frame_index"])
        for first in range(0, len(positions), self._config.batch_size):
            part = slice(first, first + self._config.batch_size)
            masks, features = self._regions(frames, positions[part])
            objects = self._model.object_probability(masks, features, rule, self._flow(row, positions[part]))
            own_labels = self._model.labels(masks, features)
            truths = list(_truths(row["annotation_urls"][part], self._config.decode))
            grounds = self._grounds(frames, positions[part], truths)
            for image, (truth, ground) in enumerate(zip(truths, grounds, strict=True)):
                alone, at = slice(image, image + 1), (*truth.shape, ground, self._config.refine)
                found = object_at_source(objects[alone], *at)[0].cpu().numpy()
                regions = at_source(masks[alone], *at)[0]
                scores = protocol_scores(score(found, truth), regions, own_labels[image], truth)
                if self._config.report.num_samples:
                    wanted.append(_wanted(row, first + image, found > 0.5, regions))
                yield _inside(scores, row, first + image)

    def _flow(self, row: Row, positions: Sequence[int]) -> VideoFlow | None:
        uses_flow = self._config.refine.use_flow and row["is_video"]
        return read_video_flow(str(self._config.flow), row["sequence"], positions) if uses_flow else None

    def _video_rule(self, frames: FrameList) -> ObjectRule:
        anchors = anchor_positions(len(frames), self._config.anchor_frames)
        return self._model.rule(*self._regions(frames, anchors))

    def _grounds(
        self, frames: FrameList, positions: Sequence[int], truths: Sequence[Mask]
    ) -> Iterator[list[Image]]:
        """The picture along whose edges each mask is refined; none where they are not."""
        if self._config.refine.method == "none":
            yield from ([] for _ in positions)
            return
        numbered = zip(positions, truths, strict=True)
        for size, run in groupby(numbered, key=lambda one: picture_size(*one[1].shape)):
            wanted = [position for position, _ in run]
            pictures = read_frame_list(frames, wanted, *size, self._config.decode)
            yield from ([picture] for picture in pictures.transpose(0, 2, 3, 1))

    def _regions(self, frames: FrameList, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        images = read_frame_list(frames, positions, *self._size, self._config.decode)
        return self._model.regions(torch.from_numpy(images))


def protocol_scores(
    label_free: Scores,
    regions: Float[Tensor, "K H W"],
    labels: Int64[Tensor, " K"],
    truth: Mask,
) -> Scores:
    """J of one frame under each protocol, from region probabilities at the ground truth's size.

    label_free: given, of the object as `gwm segment` finds it. paper: of the sides of `labels`, the frame's own
    cut, the one nearer to the truth. oracle: of all bipartitions' sides. The last two know nothing of stray parts,
    and count two empty masks as 0, as the paper's code does.
    """
    target = torch.from_numpy(truth).to(regions.device)
    sides = torch.stack([labels, 1 - labels])
    splits = bipartitions(len(regions), regions.device)
    every = torch.cat([splits, 1 - splits])
    return {
        **{f"{name}_label_free": value for name, value in label_free.items()},
        "j_paper": _best(regions, target, sides),
        "j_oracle": _best(regions, target, every),
    }


def _best(regions: Float[Tensor, "K H W"], truth: Bool[Tensor, "H W"], sides: Int64[Tensor, "S K"]) -> float:
    """The highest J of the sides (sets of regions, 1 = member); 0 if mask and truth are empty."""
    pixels, target = regions.flatten(1), truth.flatten()
    best = 0.0
    for some in torch.split(sides, SIDES_AT_ONCE):
        chosen = some.to(pixels.dtype) @ pixels > 0.5
        both = (chosen & target).sum(1)
        either = (chosen | target).sum(1)
        best = max(best, float((both / either.clamp_min(1)).max()))
    return best


def _inside(scores: Scores, row: Row, number: int) -> Scores:
    """The scores, not a number for a protocol that leaves this frame out."""
    counts = {
        name: row["in_official" if name.endswith("_label_free") else "in_paper"][number] for name in scores
    }
    return {name: score if counts[name] else float("nan") for name, score in scores.items()}


def _wanted(row: Row, number: int, mask: Mask, regions: Float[Tensor, "K H W"] | None = None) -> Wanted:
    """A frame as a report's sample: its mask, and each region where it is the most probable one."""
    name, frame_index = row["frame"][number], None
    if row["is_video"]:
        name, frame_index = row["sequence"], int(row["frame_index"][number])
    nearest = np.empty(0) if regions is None else regions.argmax(0).cpu().numpy()
    numbers = range(0 if regions is None else len(regions))
    return Wanted(
        sample=Sample(name=name, frame_index=frame_index, pictures={}),
        size=(mask.shape[0], mask.shape[1]),
        masks={"mask": encode_mask(mask)},
        regions=[encode_mask(np.equal(nearest, region)) for region in numbers],
        truth_url=row["annotation_urls"][number],
    )


def _extremes(wanted: list[Wanted], j: list[float], num_samples: int) -> list[Wanted | None]:
    """Those of the frames with the lowest and the highest J that `num_samples` may show, of each a half.

    Equal scores stay in the order of the frames, as in the report's choice among all rows.
    """
    counted = [number for number in np.argsort(j, kind="stable") if not np.isnan(j[number])]
    half = (num_samples + 1) // 2
    kept = {*counted[:half], *counted[-half:]} if half else set()
    return [wanted[number] if number in kept else None for number in range(len(j))]


def _columns(frames: Sequence[Scores]) -> Row:
    """The frames' scores by name."""
    columns = defaultdict(list)
    for scores in frames:
        for name, score in scores.items():
            columns[name].append(score)
    return dict(columns)


def _truths(urls: Sequence[str], limits: DecodeLimits) -> Iterator[Mask]:
    for url in urls:
        yield read_mask(url, limits)


def _resized(mask: Map, shape: tuple[int, ...]) -> Map:
    if mask.shape == shape:
        return mask
    resized: Map = cv2.resize(mask.astype(np.float32), shape[::-1], interpolation=cv2.INTER_NEAREST)
    return resized


def _frames_of(row: Row) -> Row:
    names = ("sequence", "frame_index", "frame")
    return {name: row[name] for name in names}
