"""Image files as uint8 RGB [H, W, 3], upright: turned as their EXIF data asks.

Grey, CMYK, 16 bits and palettes become RGB; of transparency the colours remain, of an animation the first picture.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import cv2
import numpy as np
import numpy.typing as npt

from pipeline import storage
from pipeline.errors import GwmError, UnitError
from pipeline.pictures import picture_size
from pipeline.records import encode_image

Image = npt.NDArray[np.uint8]

JPEG_MARK = b"\xff\xd8\xff"


def read_image(url: str) -> Image:
    """The image [H, W, 3]; UnitError if there is none that can be read."""
    return np.ascontiguousarray(_decoded(url, _bytes_of(url), cv2.IMREAD_COLOR)[..., ::-1])


def read_image_at(url: str, height_px: int, width_px: int) -> tuple[Image, tuple[int, int]]:
    """The image [3, height_px, width_px], and its own height and width; UnitError if it cannot be read."""
    image = read_image(url)
    resized = resize_image(image, height_px, width_px).transpose(2, 0, 1)
    return np.ascontiguousarray(resized), (image.shape[0], image.shape[1])


def read_image_with_picture(url: str, height_px: int, width_px: int) -> tuple[Image, tuple[int, int], bytes]:
    """As `read_image_at`, and the picture that stands for the image, JPEG: from one reading of the file."""
    image = read_image(url)
    size = image.shape[0], image.shape[1]
    resized = resize_image(image, height_px, width_px).transpose(2, 0, 1)
    return np.ascontiguousarray(resized), size, encode_image(resize_image(image, *picture_size(*size)))


def read_jpeg(url: str) -> tuple[bytes, tuple[int, int]]:
    """The image as an upright JPEG, and its height and width; UnitError if it cannot be read.

    The file's own bytes where they are that already, otherwise encoded anew (quality 95, full chroma).
    """
    encoded = _bytes_of(url)
    image = _decoded(url, encoded, cv2.IMREAD_COLOR)
    size = image.shape[0], image.shape[1]
    if encoded.startswith(JPEG_MARK):
        stored = _decoded(url, encoded, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        if np.array_equal(stored, image):
            return encoded, size
    return encode_image(np.ascontiguousarray(image[..., ::-1])), size


def decode_images(urls: Sequence[str], *, height_px: int, width_px: int) -> npt.NDArray[np.uint8]:
    """The images of a folder of frames, resized: [T, 3, height_px, width_px]."""
    frames = np.empty((len(urls), 3, height_px, width_px), dtype=np.uint8)
    for position, url in enumerate(urls):
        frames[position], _ = read_image_at(url, height_px, width_px)
    return frames


def image_size(url: str) -> tuple[int, int]:
    """Height and width; UnitError if the image cannot be read."""
    height_px, width_px = _decoded(url, _bytes_of(url), cv2.IMREAD_GRAYSCALE).shape
    return height_px, width_px


def decode_grey(name: str, encoded: bytes) -> Image:
    """The grey values [H, W] of an encoded image; UnitError names one that cannot be read."""
    return _decoded(name, encoded, cv2.IMREAD_GRAYSCALE)


def read_grey(url: str) -> Image:
    """The grey values [H, W] of an image file."""
    return decode_grey(url, _bytes_of(url))


def resize_image(image: Image, height_px: int, width_px: int) -> Image:
    """Return image [H, W, C] at another size: an area average when it shrinks, bicubic when it grows."""
    if image.shape[:2] == (height_px, width_px):
        return image
    shrinks = height_px <= image.shape[0] and width_px <= image.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    resized = cv2.resize(image, (width_px, height_px), interpolation=method)
    return np.asarray(resized, dtype=np.uint8)


@contextmanager
def present(url: str) -> Iterator[None]:
    """A file that a list names, or that was removed since, fails its unit and not the job."""
    try:
        yield
    except GwmError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise UnitError(f"there is no {url}") from error
        raise


def _bytes_of(url: str) -> bytes:
    with present(url):
        return storage.read_bytes(url)


def _decoded(name: str, encoded: bytes, flags: int) -> Image:
    data = np.frombuffer(encoded, np.uint8)
    try:
        image = cv2.imdecode(data, flags) if data.size else None
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError(error.err) from error
        if "MAX_IMAGE" in error.err:
            raise UnitError(f"{name} has more pixels than decode.max_bytes allows") from error
        raise UnitError(f"{name} is not an image that can be read ({error.err})") from error
    if image is None:
        raise UnitError(f"{name} is not an image that can be read")
    return np.asarray(image, np.uint8)
