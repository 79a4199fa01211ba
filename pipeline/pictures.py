"""Pictures to look at: numpy uint8 RGB [H, W, 3] in and out, used by reports, training and segment."""

from collections.abc import Sequence
from io import BytesIO

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

REGION_COLOURS = np.array(
    [
        [52, 101, 164],
        [245, 151, 48],
        [78, 154, 86],
        [204, 70, 85],
        [125, 95, 172],
        [96, 186, 197],
        [226, 196, 70],
        [140, 110, 90],
    ],
    np.uint8,
)
PICTURE_SIDE_PX = 854
"""Longest side of a picture that stands for an image: ground of its overlay, guide of its mask."""
OBJECT_COLOUR = np.array([255, 64, 96], np.uint8)
TINT = 0.38
"""Share of an object's colour in its pixels."""
DARKER_AND_GREYER = np.float32(0.6) * (np.float32(0.5) * np.eye(3, dtype=np.float32) + np.float32(0.5 / 3))
"""What becomes of the background's colours: halfway to grey, then 0.6 of it."""


def colour_flow(flow: Float[np.ndarray, "2 H W"], max_px: float | None = None) -> UInt8[np.ndarray, "H W 3"]:
    """The flow on a colour wheel: hue is the direction, saturation the length.

    Full saturation is at `max_px`, or at the 99th percentile of the length. Flow that is not finite is black.
    """
    finite = np.isfinite(flow).all(0)
    dx, dy = np.where(finite, flow, 0.0).astype(np.float32)
    length, degrees = cv2.cartToPolar(dx, dy, angleInDegrees=True)
    scale = max_px if max_px is not None else max(float(np.percentile(length, 99)), 1e-3)
    saturation = np.clip(length / scale, 0, 1)
    hsv = np.stack([degrees, saturation, finite.astype(np.float32)], -1)
    return np.asarray(np.rint(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255), np.uint8)


def colour_regions(probabilities: Float[np.ndarray, "K H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """The regions' colours mixed by their probabilities."""
    colours = REGION_COLOURS[np.arange(len(probabilities)) % len(REGION_COLOURS)].astype(np.float32)
    mixed = np.einsum("khw,kc->hwc", probabilities.astype(np.float32), colours)
    return np.asarray(np.clip(np.rint(mixed), 0, 255), np.uint8)


def overlay(
    image: UInt8[np.ndarray, "H W 3"],
    mask: Float[np.ndarray, "H W"] | Bool[np.ndarray, "H W"],
    *,
    colour: UInt8[np.ndarray, "3"] | UInt8[np.ndarray, "H W 3"] = OBJECT_COLOUR,
    outline_px: int = 1,
) -> UInt8[np.ndarray, "H W 3"]:
    """The image with the object tinted, its outline drawn and the background darkened and greyed."""
    weight = np.clip(np.ascontiguousarray(mask, np.float32), 0, 1)
    background = cv2.transform(image, DARKER_AND_GREYER)
    tint = np.ascontiguousarray(np.broadcast_to(colour, image.shape))
    tinted = cv2.addWeighted(image, 1 - TINT, tint, TINT, 0)
    mixed = cv2.blendLinear(tinted, background, weight, 1 - weight)
    return _outlined(mixed, weight > 0.5, outline_px)


def overlay_objects(
    image: UInt8[np.ndarray, "H W 3"], numbers: UInt8[np.ndarray, "H W"], *, outline_px: int = 1
) -> UInt8[np.ndarray, "H W 3"]:
    """As `overlay`, each object in its number's colour of the palette of PASCAL VOC and DAVIS; 0 is background."""
    picture = overlay(image, numbers > 0, colour=voc_palette()[numbers], outline_px=outline_px)
    for number in np.unique(numbers[numbers > 0]):
        _outlined(picture, numbers == number, outline_px)
    return picture


def _outlined(
    picture: UInt8[np.ndarray, "H W 3"], mask: Bool[np.ndarray, "H W"], outline_px: int
) -> UInt8[np.ndarray, "H W 3"]:
    """The picture itself, with the mask's outline drawn on it."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, contours, -1, (255, 255, 255), outline_px)
    return picture


def mask_picture(mask: Float[np.ndarray, "H W"] | Bool[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """The mask in grey, 1 as white."""
    grey = np.rint(np.clip(mask.astype(np.float32), 0, 1) * 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def picture_size(height_px: int, width_px: int, side_px: int = PICTURE_SIDE_PX) -> tuple[int, int]:
    """Height and width of the picture that stands for an image of this size: none is longer than `side_px`."""
    scale = min(1.0, side_px / max(height_px, width_px))
    return max(1, round(height_px * scale)), max(1, round(width_px * scale))


def resize(image: UInt8[np.ndarray, "H W 3"], *, height_px: int) -> UInt8[np.ndarray, "h w 3"]:
    """The image at another height, its aspect ratio kept."""
    width_px = max(1, round(image.shape[1] * height_px / image.shape[0]))
    interpolation = cv2.INTER_AREA if height_px < image.shape[0] else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, (width_px, height_px), interpolation=interpolation), np.uint8)


def side_by_side(
    pictures: Sequence[UInt8[np.ndarray, "H W 3"]], gap_px: int = 4
) -> UInt8[np.ndarray, "H W2 3"]:
    """The pictures in one row at the height of the first, with white gaps between them."""
    height_px = pictures[0].shape[0]
    gap = np.full((height_px, gap_px, 3), 255, np.uint8)
    row = [pictures[0]]
    for picture in pictures[1:]:
        row += [gap, picture if picture.shape[0] == height_px else resize(picture, height_px=height_px)]
    return np.concatenate(row, axis=1)


def stacked(pictures: Sequence[UInt8[np.ndarray, "H W 3"]], gap_px: int = 4) -> UInt8[np.ndarray, "H2 W 3"]:
    """The pictures, all of one width, under one another with white gaps between them."""
    gap = np.full((gap_px, pictures[0].shape[1], 3), 255, np.uint8)
    column = [pictures[0]]
    for picture in pictures[1:]:
        column += [gap, picture]
    return np.concatenate(column, axis=0)


def encode_png(image: UInt8[np.ndarray, "H W 3"] | UInt8[np.ndarray, "H W"]) -> bytes:
    """PNG bytes of an RGB or grey picture."""
    return _encode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 6])


def encode_indexed_png(numbers: UInt8[np.ndarray, "H W"]) -> bytes:
    """PNG bytes of a picture that holds numbers, shown in the palette of PASCAL VOC and DAVIS; 0 is black."""
    picture = Image.fromarray(numbers)
    picture.putpalette(voc_palette().tobytes())
    encoded = BytesIO()
    picture.save(encoded, format="PNG")
    return encoded.getvalue()


def voc_palette() -> UInt8[np.ndarray, "256 3"]:
    """Colours of numbers as PASCAL VOC defines them: a number's bits in turn become the highest bits of R, G and B."""
    numbers = np.arange(256)[:, None]
    bits = [(numbers >> (3 * place + np.arange(3)) & 1) << (7 - place) for place in range(8)]
    return np.asarray(np.sum(bits, axis=0), np.uint8)


def encode_jpeg(image: UInt8[np.ndarray, "H W 3"] | UInt8[np.ndarray, "H W"], quality: int = 88) -> bytes:
    """JPEG bytes of an RGB or grey picture."""
    return _encode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])


def encode_webp(image: UInt8[np.ndarray, "H W 3"], quality: int = 75) -> bytes:
    """WebP bytes of an RGB picture."""
    return _encode(".webp", image, [cv2.IMWRITE_WEBP_QUALITY, quality])


def _encode(extension: str, image: UInt8[np.ndarray, "..."], options: list[int]) -> bytes:
    swapped = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    encoded, data = cv2.imencode(extension, swapped, options)
    if not encoded:
        raise ValueError(f"OpenCV could not encode a picture of shape {image.shape} as {extension}")
    return bytes(data)
