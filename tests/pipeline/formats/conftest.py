"""Images, videos and their masks, for all formats."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.config import ExportConfig
from pipeline.dataset import Dataset
from pipeline.export import export
from pipeline.masks import MASK_SCHEMA_VERSION, MaskRow, decode_mask

Mask = Any
Masks = dict[tuple[str, int | None], MaskRow]
MakeMasks = Callable[..., tuple[str, Masks]]


def decoded(row: MaskRow) -> Mask:
    """The row's mask [H, W]."""
    assert row.mask_rle is not None
    assert row.height_px is not None
    assert row.width_px is not None
    return decode_mask(row.mask_rle, row.height_px, row.width_px)


def exported(format: str, output: Path | str, **values: Any) -> dict[str, Any]:  # noqa: A002
    """The summary of an export."""
    return export(ExportConfig(format=format, output=str(output), **values))


@pytest.fixture
def make_masks(segment_stages: Any) -> MakeMasks:
    """Segments everything below tmp_path/videos, unless told otherwise: the dataset's URL, and its rows."""

    def make(**values: str) -> tuple[str, Masks]:
        config = segment_stages.config(**values)
        dataset = Dataset.open(config.output, kind="masks", config=config, schema_version=MASK_SCHEMA_VERSION)
        segment_stages.run(config)
        dataset.write_manifest()
        return config.output, segment_stages.masks(config)

    return make


@pytest.fixture
def videos(tmp_path: Path, make_video: Any) -> Path:
    """A video file of 10 frames, and a folder of 9 JPEG frames that are numbered in fives."""
    make_video("clips/v.mp4", num_frames=10)
    folder = tmp_path / "videos" / "horse"
    folder.mkdir()
    for number in range(9):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 56, 3), np.uint8)
        cv2.imwrite(str(folder / f"{5 * number:05d}.jpg"), pixels)
    return tmp_path / "videos"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A JPEG, one that is to be turned by its EXIF data, a PNG, and a file that is no image."""
    folder = tmp_path / "videos" / "photos"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (30, 44, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "a.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(folder / "turned.jpg", exif=exif)
    Image.fromarray(pixels).save(folder / "b.png")
    (folder / "bad.jpg").write_bytes(b"bad")
    return folder.parent
