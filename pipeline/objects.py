"""Separate objects of masks: an image's by their size, a video's by numbers that last."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import cv2
import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco

from gwm_model.labels import split_components, spread_labels
from pipeline.masks import encode_mask
from pipeline.metrics import Mask
from pipeline.records import Row


class Objects(Protocol):
    """Takes frames with their masks one by one, and gives the object columns of all."""

    def add(self, frame: npt.NDArray[np.uint8], features: npt.NDArray[np.float32], mask: Mask) -> None:
        """Takes the next frame [3, h, w], its features [C, i, j] and its mask at the source's size [H, W]."""
        ...

    def columns(self) -> Iterator[Row]:
        """The object columns of each frame, in order, once the last frame was added."""
        ...


def open_objects(is_video: bool) -> Objects:
    """The objects of a video, or of single images."""
    return VideoObjects() if is_video else ImageObjects()


class ImageObjects:
    """The objects of single images: the components of each mask, the largest first."""

    def __init__(self) -> None:
        self._columns: list[Row] = []

    def add(self, frame: npt.NDArray[np.uint8], features: npt.NDArray[np.float32], mask: Mask) -> None:  # noqa: ARG002
        """Takes the next image; only its mask counts."""
        labels = split_components(mask)
        numbers = range(1, int(labels.max(initial=0)) + 1)
        self._columns.append(_columns({number: encode_mask(labels == number) for number in numbers}))

    def columns(self) -> Iterator[Row]:
        """The object columns of each image, in order."""
        yield from self._columns


class VideoObjects:
    """The objects of one video, frame by frame: until the numbers are known, as run lengths."""

    def __init__(self) -> None:
        # These import torch, and a written shard's objects are read without it.
        from gwm_model.objects import ObjectTracker
        from gwm_model.optical_flow import load_flow_estimator

        self._tracker = ObjectTracker(load_flow_estimator("dis"))
        self._frames: list[tuple[tuple[int, ...], dict[int, bytes]]] = []
        """Size and labelled masks of each frame."""

    def add(self, frame: npt.NDArray[np.uint8], features: npt.NDArray[np.float32], mask: Mask) -> None:
        """Takes the next frame [3, h, w], its features [C, i, j] and its mask at the source's size [H, W]."""
        share = cv2.resize(mask.astype(np.float32), frame.shape[:0:-1], interpolation=cv2.INTER_AREA)
        labels = spread_labels(self._tracker.step(frame, share > 0.5, features), mask)
        present = np.unique(labels[labels > 0]).tolist()
        self._frames.append((mask.shape, {label: encode_mask(labels == label) for label in present}))

    def columns(self) -> Iterator[Row]:
        """The object columns of each frame, in order, once the last frame was added."""
        numbers = self._tracker.numbers()
        for size, rles in self._frames:
            parts: dict[int, list[bytes]] = {}
            for label, rle in rles.items():
                parts.setdefault(numbers[label], []).append(rle)
            yield _columns({number: _union(parts[number], size) for number in parts if number > 0})


def _union(rles: Sequence[bytes], size: Sequence[int]) -> bytes:
    merged = coco.merge([{"size": list(size), "counts": rle} for rle in rles])
    return bytes(merged["counts"])


def _columns(rles: Mapping[int, bytes]) -> Row:
    return {"object_ids": sorted(rles), "objects_rle": [rles[number] for number in sorted(rles)]}
