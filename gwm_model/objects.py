"""Separate objects of a foreground mask, with numbers that last through a video.

In an image an object is a connected component. In a video the objects of the last frame are carried along the optical
flow, and the foreground is matched with them: a component that several objects reach is divided between them, an object
that nothing continues is hidden, and what nothing explains is a hidden object that looks alike, or a new one. Matching
by flow-warped overlap and by appearance is that of UnOVOST (Luiten et al., WACV 2020); here it runs frame by frame, on
one mask instead of proposals.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int32, Int64, UInt8
from scipy.optimize import linear_sum_assignment

from gwm_model.optical_flow import FlowEstimator

MIN_AREA = 1e-3
"""A component below this fraction of the image's area is a speck and no object."""
HEIR_SHARE = 0.25
"""An object reaches a component that holds at least this share of its carried pixels."""
MIN_OVERLAP = 0.3
"""Overlap, as a share of the smaller of the two, from which a piece of foreground may continue an object."""
ALIKE = 0.6
"""Similarity, from -1 to 1, from which a piece of foreground may be an object that was hidden."""
REACH = 1.5
"""How far from its expected place a hidden object may come out, in its own diameters, more with time."""
MAX_HIDDEN_FRAMES = 48
"""An object that is hidden for longer is forgotten: it comes back with a new number."""
MIN_FRAMES = 8
"""What is seen in fewer frames is no object: a flicker of the mask, or a part of another object."""
COLOURS_PER_CHANNEL = 6
MEMORY = 0.9
"""Weight of the past in an object's appearance."""

WINDOW = 0.05
"""Neighbourhood over which colours decide, as a fraction of the image's height."""
COLOUR_WEIGHT = 2.0
"""What the colours say against what the flow says."""
COLOUR_FLOOR, PRIOR_FLOOR = 1e-3, 0.05
"""Probability of a colour that an object has not shown, and of an object where the flow has not carried it."""

Labels = Int32[np.ndarray, "h w"]
"""0 is background."""
Colours = Int64[np.ndarray, "h w"]
"""Cells of colour space."""


def split_components(mask: Bool[np.ndarray, "H W"], min_area: float = MIN_AREA) -> Int32[np.ndarray, "H W"]:
    """Numbers the mask's 8-connected components from 1, the largest first, and leaves out specks.

    Args:
        mask: the foreground.
        min_area: the smallest component that counts, as a fraction of the image's area.
    """
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    area = stats[1:, cv2.CC_STAT_AREA]
    order = np.argsort(-area, kind="stable")
    kept = order[area[order] >= min_area * mask.size]
    number_of = np.zeros(count, np.int32)
    number_of[1 + kept] = np.arange(1, len(kept) + 1)
    return np.asarray(number_of[labels], np.int32)


def spread_labels(labels: Labels, mask: Bool[np.ndarray, "H W"]) -> Int32[np.ndarray, "H W"]:
    """Labels of the mask's pixels, of any size: the nearest label of the same place in `labels`.

    A component that no label touches keeps none.
    """
    resized = cv2.resize(labels, mask.shape[::-1], interpolation=cv2.INTER_NEAREST)
    seeds = np.where(mask, resized, 0)
    _, components = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    touched = np.isin(components, np.unique(components[seeds > 0]))
    return np.asarray(np.where(mask & touched, _nearest_label(seeds), 0), np.int32)


@dataclass(slots=True)
class _Track:
    """What is known of an object."""

    number: int
    parent: int
    """The object that it was a part of when it was seen first; 0 for none."""
    look: Float64[np.ndarray, " D"]
    colours: Float64[np.ndarray, " N"]
    """Share of its pixels in each cell of colour space."""
    centre: Float64[np.ndarray, " 2"]
    """x and y in px."""
    velocity: Float64[np.ndarray, " 2"]
    area: float
    num_seen: int = 0
    num_hidden: int = 0
    """Frames since it was seen last."""

    @property
    def expected(self) -> Float64[np.ndarray, " 2"]:
        """Where its centre should be if it has moved on as it did."""
        return np.asarray(self.centre + self.velocity * self.num_hidden, np.float64)

    @property
    def reach(self) -> float:
        """How far from there it may be."""
        return float(REACH * np.sqrt(self.area) * (1 + self.num_hidden / MIN_FRAMES))


@dataclass(slots=True)
class _Piece:
    """A part of the foreground that belongs to one object."""

    mask: Bool[np.ndarray, "h w"]
    look: Float64[np.ndarray, " D"]
    colours: Float64[np.ndarray, " N"]
    """Share of its pixels in each cell of colour space."""
    centre: Float64[np.ndarray, " 2"]
    velocity: Float64[np.ndarray, " 2"]
    area: float
    carried: dict[int, int]
    """Pixels of each object that the flow carried here."""
    claim: int
    """The object that the piece was cut for; 0 for a whole component."""


class ObjectTracker:
    """Follows the objects of one video, frame by frame; its memory does not grow with the video's length."""

    def __init__(self, estimator: FlowEstimator) -> None:
        self._estimator = estimator
        self._tracks: list[_Track] = []
        self._frame: UInt8[np.ndarray, "3 h w"] | None = None
        self._labels: Labels | None = None
        self._num_frames = 0

    def step(
        self,
        frame: UInt8[np.ndarray, "3 h w"],
        mask: Bool[np.ndarray, "h w"],
        features: Float[np.ndarray, "C i j"],
    ) -> Labels:
        """Labels of the next frame's foreground, to be renumbered by `numbers` when the video has ended.

        Args:
            frame: RGB.
            mask: the frame's foreground.
            features: appearance features on any grid over the same image.
        """
        flow = self._flow_to_last(frame)
        carried = np.zeros(mask.shape, np.int32) if self._labels is None else _carry(self._labels, flow)
        colours = _colours(frame)
        labels, claims = self._cut(split_components(mask), carried, colours)
        pieces = _pieces(labels, claims, carried, colours, features, flow)
        owners = self._continue(pieces, carried)
        owners |= self._recover(pieces, owners)
        for track in self._tracks:
            track.num_hidden += 1
        begun = {row: self._begin(piece) for row, piece in enumerate(pieces) if row not in owners}
        parents = {track.parent for track in begun.values()}
        result = np.zeros(mask.shape, np.int32)
        for row, piece in enumerate(pieces):
            track = owners[row] if row in owners else begun[row]
            _update(track, piece, memory=0.0 if track.number in parents else MEMORY)
            result[piece.mask] = track.number
        self._frame, self._labels = frame, result
        self._num_frames += 1
        return result

    def numbers(self) -> dict[int, int]:
        """The final number of each label: from 1 by first appearance; 0 for what is no object.

        What was seen too shortly counts as the object that it was a part of, if any.
        """
        enough = min(MIN_FRAMES, self._num_frames)
        numbers: dict[int, int] = {0: 0}
        count = 0
        for track in self._tracks:  # a parent is older than its parts
            if track.num_seen >= enough:
                count += 1
                numbers[track.number] = count
            else:
                numbers[track.number] = numbers[track.parent]
        return numbers

    def _flow_to_last(self, frame: UInt8[np.ndarray, "3 h w"]) -> Float[np.ndarray, "2 h w"]:
        """Flow in px from the frame to the one before; zero in the first frame."""
        if self._frame is None:
            return np.zeros((2, *frame.shape[1:]), np.float32)
        pair = torch.from_numpy(np.stack([self._frame, frame]))
        return self._estimator(pair, gaps=(-1,), start=1)[-1][0].numpy()

    def _cut(self, components: Labels, carried: Labels, colours: Colours) -> tuple[Labels, dict[int, int]]:
        """Labels of pieces, and which object claims a piece.

        A component that several objects reach, or one and an object that is hidden near it, is divided between them.
        """
        carried_area = np.bincount(carried.ravel(), minlength=len(self._tracks) + 1)
        labels, claims = components.copy(), dict[int, int]()
        count = int(components.max(initial=0))
        for component in range(1, count + 1):
            inside = components == component
            seeds = self._with_parents(np.where(inside, carried, 0))
            area = np.bincount(seeds.ravel(), minlength=len(carried_area))
            area[0] = 0
            heirs = np.flatnonzero((area >= HEIR_SHARE * carried_area) & (area >= MIN_AREA * inside.size))
            if not len(heirs):
                continue
            candidates = [*heirs.tolist(), *self._hidden_near(inside)]
            if len(candidates) < 2:
                continue
            nearest = _nearest_label(np.where(np.isin(seeds, heirs), seeds, 0))
            owner = _divide(inside, nearest, colours, {n: self._tracks[n - 1].colours for n in candidates})
            first, *others = np.unique(owner[inside]).tolist()
            claims[component] = first
            for number in others:
                count += 1
                labels[owner == number] = count
                claims[count] = number
        return labels, claims

    def _hidden_near(self, inside: Bool[np.ndarray, "h w"]) -> list[int]:
        """Objects that are hidden and may come out at a component."""
        rows, columns = np.nonzero(inside)
        places = np.stack([columns, rows], 1)
        return [
            track.number
            for track in self._tracks
            if 0 < track.num_hidden <= MAX_HIDDEN_FRAMES
            and track.num_seen >= MIN_FRAMES
            and float(np.linalg.norm(places - track.expected, axis=1).min()) < track.reach
        ]

    def _with_parents(self, labels: Labels) -> Labels:
        """The labels, where parts that were apart only shortly and look like their parent are with it again."""
        present = np.unique(labels)
        number_of = np.arange(len(self._tracks) + 1, dtype=np.int32)
        for number in present[present > 0]:
            track = self._tracks[number - 1]
            is_short = track.num_seen < MIN_FRAMES and track.parent > 0 and track.parent in present
            if is_short and track.look @ self._tracks[track.parent - 1].look >= ALIKE:
                number_of[number] = number_of[track.parent]
        return np.asarray(number_of[labels], np.int32)

    def _continue(self, pieces: list[_Piece], carried: Labels) -> dict[int, _Track]:
        """Which pieces continue which objects: the best one-to-one matching by overlap and appearance."""
        area = np.bincount(carried.ravel(), minlength=len(self._tracks) + 1)
        scores = np.zeros((len(pieces), len(self._tracks)))
        for row, piece in enumerate(pieces):
            for number, overlap in piece.carried.items():
                track = self._tracks[number - 1]
                if overlap >= MIN_OVERLAP * min(piece.area, area[number]):
                    union = piece.area + area[number] - overlap
                    scores[row, number - 1] = overlap / union + 0.5 * max(0.0, piece.look @ track.look)
            if piece.claim:
                scores[row, piece.claim - 1] += 1.0
        return self._assigned(scores)

    def _recover(self, pieces: list[_Piece], owners: dict[int, _Track]) -> dict[int, _Track]:
        """Which of the other pieces are objects that were hidden: alike, and not far from where they should be."""
        taken = {track.number for track in owners.values()}
        scores = np.zeros((len(pieces), len(self._tracks)))
        for row in set(range(len(pieces))) - set(owners):
            piece = pieces[row]
            origin = self._origin(piece)
            threshold = ALIKE if origin is None else max(ALIKE, float(piece.look @ origin.look))
            for column, track in enumerate(self._tracks):
                if track.number in taken or track.num_hidden > MAX_HIDDEN_FRAMES:
                    continue
                alike = float(piece.look @ track.look)
                distance = float(np.linalg.norm(piece.centre - track.expected)) / track.reach
                if alike >= threshold and distance < 1:
                    scores[row, column] = alike + 1 - distance
        return self._assigned(scores)

    def _assigned(self, scores: Float64[np.ndarray, "N M"]) -> dict[int, _Track]:
        """The one-to-one assignment of the highest sum, without pairs of score 0."""
        rows, columns = linear_sum_assignment(scores, maximize=True)
        pairs = zip(rows.tolist(), columns.tolist(), strict=True)
        return {row: self._tracks[column] for row, column in pairs if scores[row, column] > 0}

    def _origin(self, piece: _Piece) -> _Track | None:
        """The object that most of the piece's pixels come from; none where most come from the background."""
        number = max(piece.carried, key=piece.carried.__getitem__, default=0)
        most = number > 0 and piece.carried[number] >= 0.5 * piece.area
        return self._tracks[number - 1] if most else None

    def _begin(self, piece: _Piece) -> _Track:
        origin = self._origin(piece)
        track = _Track(
            number=len(self._tracks) + 1,
            parent=0 if origin is None else origin.number,
            look=piece.look,
            colours=piece.colours,
            centre=piece.centre,
            velocity=piece.velocity,
            area=piece.area,
        )
        self._tracks.append(track)
        return track


def _carry(labels: Labels, flow: Float[np.ndarray, "2 h w"]) -> Labels:
    """The last frame's labels at this frame: each pixel looks along its flow to where it was."""
    y, x = np.mgrid[: labels.shape[0], : labels.shape[1]].astype(np.float32)
    source = labels.astype(np.float32)  # remap takes no int32; numbers below 2^24 stay exact
    carried = cv2.remap(source, x + flow[0], y + flow[1], cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT)
    return np.asarray(carried, np.int32)


def _pieces(
    labels: Labels,
    claims: dict[int, int],
    carried: Labels,
    colours: Colours,
    features: Float[np.ndarray, "C i j"],
    flow: Float[np.ndarray, "2 h w"],
) -> list[_Piece]:
    """The pieces of a frame, in the order of their labels."""
    centred = (features - features.mean((1, 2), keepdims=True)).astype(np.float64)
    pieces = []
    for number in np.unique(labels[labels > 0]):
        mask = labels == number
        rows, columns = np.nonzero(mask)
        numbers, counts = np.unique(carried[mask], return_counts=True)
        pieces.append(
            _Piece(
                mask=mask,
                look=_look(mask, colours, centred),
                colours=_histogram(colours[mask]),
                centre=np.array([columns.mean(), rows.mean()]),
                velocity=-np.median(flow[:, mask], axis=1).astype(np.float64),
                area=float(len(rows)),
                carried={int(n): int(c) for n, c in zip(numbers, counts, strict=True) if n > 0},
                claim=claims.get(int(number), 0),
            )
        )
    return pieces


def _divide(
    inside: Bool[np.ndarray, "h w"],
    nearest: Labels,
    colours: Colours,
    models: dict[int, Float64[np.ndarray, " N"]],
) -> Labels:
    """The object at each pixel of a component: where the flow says so, unless the colours around say otherwise.

    Args:
        inside: the component.
        nearest: the object that the flow carried to each pixel, or to the nearest pixel with one.
        colours: the cell of colour space of each pixel.
        models: each object's share of pixels in every cell.
    """
    size = 2 * round(inside.shape[0] * WINDOW / 2) + 1
    weight = _blurred(inside.astype(np.float32), size).clip(1e-6)
    scores = {}
    for number, model in models.items():
        likelihood = np.log(model + COLOUR_FLOOR).astype(np.float32)[colours]
        prior = _blurred((inside & (nearest == number)).astype(np.float32), size) / weight
        evidence = _blurred(np.where(inside, likelihood, 0), size) / weight
        scores[number] = COLOUR_WEIGHT * evidence + np.log(prior + PRIOR_FLOOR)
    while True:
        numbers = np.array(list(scores), np.int32)
        owner = np.where(inside, numbers[np.argmax(list(scores.values()), axis=0)], 0).astype(np.int32)
        area = {number: np.count_nonzero(owner == number) for number in scores}
        smallest = min(area, key=area.__getitem__)
        if len(scores) == 1 or area[smallest] >= MIN_AREA * inside.size:
            return owner
        del scores[smallest]


def _blurred(values: Float32[np.ndarray, "h w"], size: int) -> Float32[np.ndarray, "h w"]:
    return np.asarray(cv2.blur(values, (size, size), borderType=cv2.BORDER_CONSTANT), np.float32)


def _colours(frame: UInt8[np.ndarray, "3 h w"]) -> Colours:
    """The cell of colour space that each pixel lies in."""
    steps = frame.astype(np.int64) * COLOURS_PER_CHANNEL // 256
    cells = (steps[0] * COLOURS_PER_CHANNEL + steps[1]) * COLOURS_PER_CHANNEL + steps[2]
    return np.asarray(cells, np.int64)


def _look(
    mask: Bool[np.ndarray, "h w"], colours: Colours, features: Float64[np.ndarray, "C i j"]
) -> Float64[np.ndarray, " D"]:
    """A unit vector: the colours' histogram and the mean feature, each of the same weight.

    The product of two is the mean of the histograms' Bhattacharyya coefficient and the features' cosine.
    """
    histogram = np.sqrt(_histogram(colours[mask]))
    weights = cv2.resize(mask.astype(np.float32), features.shape[:0:-1], interpolation=cv2.INTER_AREA)
    mean = features.reshape(len(features), -1) @ weights.ravel()
    return _unit(np.concatenate([_unit(histogram), _unit(mean)]))


def _histogram(colours: Int64[np.ndarray, " P"]) -> Float64[np.ndarray, " N"]:
    counts = np.bincount(colours, minlength=COLOURS_PER_CHANNEL**3)
    return np.asarray(counts / max(len(colours), 1), np.float64)


def _unit(vector: Float64[np.ndarray, " D"]) -> Float64[np.ndarray, " D"]:
    return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-12), np.float64)


def _update(track: _Track, piece: _Piece, *, memory: float) -> None:
    """The object as it is seen now; with a memory of 0 it has lost a part, and only what is left counts."""
    track.look = _unit(memory * track.look + (1 - memory) * piece.look)
    track.colours = memory * track.colours + (1 - memory) * piece.colours
    track.centre, track.area = piece.centre, piece.area
    track.velocity = (track.velocity + piece.velocity) / 2
    track.num_seen += 1
    track.num_hidden = 0


def _nearest_label(seeds: Int32[np.ndarray, "H W"]) -> Int32[np.ndarray, "H W"]:
    """Each pixel's nearest label that is not 0; 0 everywhere if there is none."""
    if not seeds.any():
        return seeds
    free = (seeds == 0).astype(np.uint8)
    _, index = cv2.distanceTransformWithLabels(
        free, cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    label_of = np.zeros(index.max() + 1, np.int32)
    label_of[index[seeds > 0]] = seeds[seeds > 0]
    return np.asarray(label_of[index], np.int32)
