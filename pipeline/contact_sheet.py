"""One picture of some photos, the mask drawn over each and its name beneath."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from unicodedata import combining, normalize

import numpy as np
import pyarrow.parquet as pq
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from pipeline import storage
from pipeline.config import DecodeLimits
from pipeline.contained import contained
from pipeline.dataset import Dataset
from pipeline.errors import GwmError
from pipeline.images import Image, read_image_at
from pipeline.masks import MaskRow, mask_rows
from pipeline.model_card import anchor_positions
from pipeline.pictures import encode_jpeg
from pipeline.stages.write_overlay import draw_mask

MAX_PHOTOS = 48
MAX_COLUMNS = 8
CELL_HEIGHT_PX, CELL_WIDTH_PX, NAME_HEIGHT_PX, GAP_PX = 180, 240, 20, 8
WHITE, GREY, BLACK = (255, 255, 255), (224, 224, 224), (40, 40, 40)


class Photo(NamedTuple):
    """A single image among the inputs."""

    name: str
    url: str
    unit: str
    """The chunk that has its mask."""
    number: int
    """Which of the chunk's images it is."""


@dataclass(slots=True)
class EvenChoice:
    """At most `count` of however many photos, spread evenly over their order; holds twice as many."""

    count: int = MAX_PHOTOS
    kept: list[Photo] = field(default_factory=list)
    step: int = 1
    seen: int = 0

    def add(self, photos: Iterable[Photo]) -> None:
        """Takes the next photos."""
        for photo in photos:
            if self.seen % self.step == 0:
                self.kept.append(photo)
            self.seen += 1
            if len(self.kept) > 2 * self.count:
                self.kept, self.step = self.kept[::2], 2 * self.step

    def chosen(self) -> list[Photo]:
        """Those of all photos so far."""
        return [self.kept[position] for position in anchor_positions(len(self.kept), self.count)]


def contact_sheet(photos: Sequence[Photo], dataset: Dataset, limits: DecodeLimits) -> bytes:
    """The sheet as JPEG; a photo without a mask is an empty cell with its name."""
    cells = [_cell(photo, dataset, limits) for photo in photos]
    columns = min(MAX_COLUMNS, len(cells), int(np.ceil(np.sqrt(1.5 * len(cells)))))
    rows = -(-len(cells) // columns)
    step_x, step_y = CELL_WIDTH_PX + GAP_PX, CELL_HEIGHT_PX + NAME_HEIGHT_PX + GAP_PX
    sheet = Pillow.new("RGB", (columns * step_x + GAP_PX, rows * step_y + GAP_PX), WHITE)
    for place, cell in enumerate(cells):
        sheet.paste(cell, (GAP_PX + place % columns * step_x, GAP_PX + place // columns * step_y))
    return encode_jpeg(np.asarray(sheet))


def _cell(photo: Photo, dataset: Dataset, limits: DecodeLimits) -> Pillow.Image:
    """The photo with its mask in the middle of a cell, and its name."""
    cell = Pillow.new("RGB", (CELL_WIDTH_PX, CELL_HEIGHT_PX + NAME_HEIGHT_PX), WHITE)
    drawn = _drawn(photo, dataset, limits)
    if drawn is None:
        cell.paste(GREY, (0, 0, CELL_WIDTH_PX, CELL_HEIGHT_PX))
    else:
        height_px, width_px = drawn.shape[:2]
        corner = ((CELL_WIDTH_PX - width_px) // 2, (CELL_HEIGHT_PX - height_px) // 2)
        cell.paste(Pillow.fromarray(drawn), corner)
    font = ImageFont.load_default(size=13)
    text, name = ImageDraw.Draw(cell), _ascii(photo.name)
    while len(name) > 1 and text.textlength(name, font=font) > CELL_WIDTH_PX:
        name = f"…{name[2:]}"
    left = (CELL_WIDTH_PX - text.textlength(name, font=font)) / 2
    text.text((left, CELL_HEIGHT_PX + 2), name, fill=BLACK, font=font)
    return cell


def _ascii(name: str) -> str:
    """The name in the letters that Pillow's own font has."""
    letters = (letter for letter in normalize("NFKD", name) if not combining(letter))
    return "".join(letter if letter.isascii() and letter.isprintable() else "?" for letter in letters)


def _drawn(photo: Photo, dataset: Dataset, limits: DecodeLimits) -> Image | None:
    """The photo in its cell's size with its mask over it; None where it has none, or one of them cannot be read."""
    try:
        mask = _mask_of(photo, dataset)
        if mask is None or mask.height_px is None or mask.width_px is None:
            return None
        scale = min(CELL_HEIGHT_PX / mask.height_px, CELL_WIDTH_PX / mask.width_px)
        size = [max(1, round(side * scale)) for side in (mask.height_px, mask.width_px)]
        image, _ = contained(limits, read_image_at, photo.url, *size)
        return draw_mask(image.transpose(1, 2, 0), mask)
    except GwmError:
        raise
    except Exception:
        return None


def _mask_of(photo: Photo, dataset: Dataset) -> MaskRow | None:
    if not dataset.is_done(photo.unit):
        return None
    with storage.open_read(dataset.shard_url(photo.unit)) as file:
        return mask_rows(pq.read_table(file).slice(photo.number, 1))[0]
