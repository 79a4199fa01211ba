"""Masks of a sequence against its ground truth: J of every frame, and F of its contours."""

from collections.abc import Iterator, Sequence
from itertools import groupby

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from gwm_model.merge import bipartitions, foreground_probability
from pipeline.config import DecodeLimits, EvaluateConfig
from pipeline.errors import GwmError, UnitError
from pipeline.frames import FrameList, read_frame_list
from pipeline.images import Image
from pipeline.inference import RegionModel, at_source, decide
from pipeline.metrics import Mask, boundary_f, jaccard
from pipeline.model_card import ModelCard, anchor_positions
from pipeline.pictures import picture_size
from pipeline.predictions import Place, read_mask, read_predictions
from pipeline.records import Row

MODEL_PROTOCOLS = ("label_free", "paper", "oracle")
SIDES_AT_ONCE = 16


def score_sequence(row: Row, limits: DecodeLimits) -> Row:
    """The row's scores of given masks: `j` and `f`, one for each frame in `frame_index`.

    A mask of another size than its ground truth is resized (nearest pixel) and counted in `num_resized`.
    """
    places = [Place(file=file, row=index) for file, index in zip(row["files"], row["rows"], strict=True)]
    masks = read_predictions(row["masks_url"], row["masks_kind"], places, limits)
    regions, contours, num_resized = [], [], 0
    for mask, truth in zip(masks, _truths(row["annotation_urls"], limits), strict=True):
        num_resized += mask.shape != truth.shape
        resized = _resized(mask, truth.shape)
        regions.append(jaccard(resized, truth))
        contours.append(boundary_f(resized, truth))
    return {**_frames_of(row), "num_resized": num_resized, "j": regions, "f": contours}


class ScoreSequence:
    """Scores of a segmenter on a sequence under every protocol, from one forward pass.

    Columns `j_label_free`, `j_paper`, `j_oracle`, and `f_label_free`; not a number outside a protocol's frames.
    """

    def __init__(self, config: EvaluateConfig, card: ModelCard, device: str, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        self._config = config
        self._size = (card.height_px, card.width_px)
        self._model = RegionModel(
            str(config.model), config.merge, batch_size=config.batch_size, device=device
        )

    def __call__(self, row: Row) -> Row:
        """The row's scores: one for each frame in `frame_index`."""
        frames = FrameList.of_row(row)
        scores: dict[str, list[float]] = {f"j_{protocol}": [] for protocol in MODEL_PROTOCOLS}
        scores["f_label_free"] = []
        try:
            for found in self._score(row, frames):
                for name, values in scores.items():
                    values.append(found[name])
        except UnitError as error:
            raise GwmError(f"{row['sequence']} cannot be scored: {error}.") from error
        return {**_frames_of(row), "num_resized": 0, **scores}

    def _score(self, row: Row, frames: FrameList) -> Iterator[dict[str, float]]:
        decision = self._video_decision(frames) if row["is_video"] else None
        method = self._config.merge.method
        positions = list(row["frame_index"])
        for first in range(0, len(positions), self._config.batch_size):
            part = slice(first, first + self._config.batch_size)
            masks, features = self._regions(frames, positions[part])
            own = decide(masks, features, is_video=False, method=method)
            labels, (video_labels, object_is) = own[0], decision or own
            truths = list(_truths(row["annotation_urls"][part], self._config.decode))
            grounds = self._grounds(frames, positions[part], truths)
            for image, (truth, ground) in enumerate(zip(truths, grounds, strict=True)):
                chosen = 0 if decision else image
                height_px, width_px = truth.shape
                scores = protocol_scores(
                    at_source(masks[image], height_px, width_px, ground, self._config.refine),
                    truth,
                    video_labels[chosen],
                    object_is[chosen],
                    labels[image],
                )
                yield _inside(scores, row, first + image)

    def _video_decision(self, frames: FrameList) -> tuple[Int64[Tensor, "1 K"], Int64[Tensor, " 1"]]:
        anchors = anchor_positions(len(frames), self._config.anchor_frames)
        labels, object_is = decide(
            *self._regions(frames, anchors), is_video=True, method=self._config.merge.method
        )
        return labels[:1], object_is[:1]

    def _grounds(
        self, frames: FrameList, positions: Sequence[int], truths: Sequence[Mask]
    ) -> Iterator[Image | None]:
        """The pictures along whose edges masks are refined; none where they are not."""
        if self._config.refine.method == "none":
            yield from [None] * len(positions)
            return
        numbered = zip(positions, truths, strict=True)
        for size, run in groupby(numbered, key=lambda one: picture_size(*one[1].shape)):
            wanted = [position for position, _ in run]
            pictures = read_frame_list(frames, wanted, *size, self._config.decode)
            yield from pictures.transpose(0, 2, 3, 1)

    def _regions(self, frames: FrameList, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        images = read_frame_list(frames, positions, *self._size, self._config.decode)
        return self._model.regions(torch.from_numpy(images))


def protocol_scores(
    regions: Float[Tensor, "K H W"],
    truth: Mask,
    labels: Int64[Tensor, " K"],
    object_is: Int64[Tensor, ""],
    frame_labels: Int64[Tensor, " K"],
) -> dict[str, float]:
    """J of one frame under each protocol, and label_free's F, from region probabilities at the ground truth's size.

    label_free: the object is the side `object_is` of `labels`. paper: of the sides of `frame_labels`, the
    frame's own cut, the one nearer to the truth. oracle: of all bipartitions' sides. The last two count two
    empty masks as 0, as the paper's code does.
    """
    target = torch.from_numpy(truth).to(regions.device)
    free = foreground_probability(regions[None], labels[None], object_is[None])[0]
    mask = (free > 0.5).cpu().numpy()
    sides = torch.stack([frame_labels, 1 - frame_labels])
    splits = bipartitions(len(regions), regions.device)
    every = torch.cat([splits, 1 - splits])
    return {
        "j_label_free": jaccard(mask, truth),
        "f_label_free": boundary_f(mask, truth),
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


def _inside(scores: dict[str, float], row: Row, number: int) -> dict[str, float]:
    """The scores, not a number for a protocol that leaves this frame out."""
    counts = {"j_label_free": row["in_official"][number], "j_paper": row["in_paper"][number]}
    counts |= {"j_oracle": counts["j_paper"], "f_label_free": counts["j_label_free"]}
    return {name: score if counts[name] else float("nan") for name, score in scores.items()}


def _truths(urls: Sequence[str], limits: DecodeLimits) -> Iterator[Mask]:
    for url in urls:
        yield read_mask(url, limits)


def _resized(mask: Mask, shape: tuple[int, ...]) -> Mask:
    if mask.shape == shape:
        return mask
    resized = cv2.resize(mask.astype(np.uint8), shape[::-1], interpolation=cv2.INTER_NEAREST)
    return np.asarray(resized, np.bool_)


def _frames_of(row: Row) -> Row:
    names = ("sequence", "frame_index", "frame")
    return {name: row[name] for name in names}
