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
from jaxtyping import Bool, Float, Float64, UInt8

from gwm_model.labels import (
    MIN_AREA,
    Colours,
    Labels,
    carry_labels,
    colour_cells,
    colour_histogram,
    divide_component,
    nearest_label,
    split_components,
)
from gwm_model.optical_flow import FlowEstimator

HEIR_SHARE = 0.25
"""An object reaches a component that holds at least this share of its carried pixels."""
MIN_OVERLAP = 0.3
"""Overlap, as a share of the smaller of the two, from which a piece of foreground may continue an object."""
ALIKE = 0.6
"""Similarity, from -1 to 1, from which a piece of foreground may be an object that was hidden."""
REACH = 1.5
"""How far from its expected place a hidden object may come out, in its own diameters, more with time."""
GAP = 0.5
"""How far apart the parts of an object may be, in its own diameters."""
MAX_HIDDEN_FRAMES = 48
"""An object that is hidden for longer is forgotten: it comes back with a new number."""
MIN_FRAMES = 8
"""What is seen in fewer frames is no object: a flicker of the mask, or a part of another object."""
MEMORY = 0.9
"""Weight of the past in an object's appearance."""


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
    """Follows the objects of one video, frame by frame; keeps the last frame, and a few kB for each object."""

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
        carried = np.zeros(mask.shape, np.int32) if self._labels is None else carry_labels(self._labels, flow)
        colours = colour_cells(frame)
        labels, claims = self._cut(split_components(mask), carried, colours)
        pieces = _pieces(labels, claims, carried, colours, features, flow)
        owners = self._continue(pieces, carried)
        owners |= self._recover(pieces, owners)
        joined = _join(pieces, owners)
        for track in self._tracks:
            track.num_hidden += 1
        begun = {
            row: self._begin(piece)
            for row, piece in enumerate(pieces)
            if row not in owners and row not in joined
        }
        parents = {track.parent for track in begun.values()}
        result = np.zeros(mask.shape, np.int32)
        for row, track in (owners | begun).items():
            _update(track, pieces[row], memory=0.0 if track.number in parents else MEMORY)
        for row, track in (owners | begun | joined).items():
            result[pieces[row].mask] = track.number
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
            nearest = nearest_label(np.where(np.isin(seeds, heirs), seeds, 0))
            owner = divide_component(
                inside, nearest, colours, {n: self._tracks[n - 1].colours for n in candidates}
            )
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
        from scipy.optimize import linear_sum_assignment  # takes a second to import

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


def _join(pieces: list[_Piece], owners: dict[int, _Track]) -> dict[int, _Track]:
    """Which of the other pieces are parts of an object, cut off by something before it: alike, and not far from it."""
    joined = {}
    for row in sorted(set(range(len(pieces))) - set(owners)):
        piece = pieces[row]
        distance = cv2.distanceTransform((~piece.mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5)
        alike = {
            other: float(piece.look @ pieces[other].look)
            for other in owners
            if distance[pieces[other].mask].min() <= GAP * np.sqrt(pieces[other].area)
        }
        best = max(alike, key=alike.__getitem__, default=-1)
        if best >= 0 and alike[best] >= ALIKE:
            joined[row] = owners[best]
    return joined


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
                colours=colour_histogram(colours[mask]),
                centre=np.array([columns.mean(), rows.mean()]),
                velocity=-np.median(flow[:, mask], axis=1).astype(np.float64),
                area=float(len(rows)),
                carried={int(n): int(c) for n, c in zip(numbers, counts, strict=True) if n > 0},
                claim=claims.get(int(number), 0),
            )
        )
    return pieces


def _look(
    mask: Bool[np.ndarray, "h w"], colours: Colours, features: Float64[np.ndarray, "C i j"]
) -> Float64[np.ndarray, " D"]:
    """A unit vector: the colours' histogram and the mean feature, each of the same weight.

    The product of two is the mean of the histograms' Bhattacharyya coefficient and the features' cosine.
    """
    histogram = np.sqrt(colour_histogram(colours[mask]))
    weights = cv2.resize(mask.astype(np.float32), features.shape[:0:-1], interpolation=cv2.INTER_AREA)
    mean = features.reshape(len(features), -1) @ weights.ravel()
    return _unit(np.concatenate([_unit(histogram), _unit(mean)]))


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
