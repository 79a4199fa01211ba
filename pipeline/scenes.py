"""Rendered videos with known answers: textured objects that move over a moving textured background.

Every layer is a texture and an outline under a similarity transform for each frame, so masks, object ids and
optical flow are computed from the transforms and not estimated. Pixel centres lie at whole numbers, x to the
right, y down.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, UInt8

from pipeline.pictures import encode_jpeg, encode_png

TEXTURE_SIZE = 512
REFERENCE_HEIGHT_PX = 120
"""Frame height at which one texture element covers one pixel; other heights show the scene magnified."""
OUTLINE_ANGLES = 720
SUPERSAMPLING = 3
"""Samples of a pixel along each axis; odd, so that the middle one is the pixel's centre."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A rendered video and its truth."""

    frames: UInt8[np.ndarray, "T H W 3"]
    masks: Bool[np.ndarray, "T H W"]
    """All objects together."""
    object_ids: UInt8[np.ndarray, "T H W"]
    """0 is background; object n hides objects with smaller numbers."""
    flow: Float32[np.ndarray, "T-1 2 H W"]
    """Frame t to t + 1 in pixels: [0] = dx right, [1] = dy down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One rigid texture: the background (no outline) or an object."""

    texture: Float32[np.ndarray, "S S 3"]
    poses: Float64[np.ndarray, "T 3 3"]
    """Layer coordinates to pixel coordinates, for each frame."""
    outline_px: Float64[np.ndarray, " A"] | None = None
    """Distance of the outline from the layer's origin, by angle; none covers everything."""


def render_scene(
    seed: int, *, num_frames: int = 24, height_px: int = 120, width_px: int = 216, num_objects: int = 1
) -> Scene:
    """A scene that depends on the arguments only."""
    rng = np.random.default_rng(seed)
    return _render(_draw_layers(rng, num_frames, height_px, width_px, num_objects), height_px, width_px)


def render_crossing(seed: int, *, num_frames: int = 48, height_px: int = 120, width_px: int = 216) -> Scene:
    """Two objects that cross at the same height: object 2 hides the smaller object 1 in the middle of the video."""
    rng = np.random.default_rng(seed)
    background, behind, front = _draw_layers(rng, num_frames, height_px, width_px, 2)
    way = np.linspace(0.18, 0.82, num_frames)[:, None]
    start_px, along_px = np.array([0, height_px / 2]), np.array([width_px, 0])
    layers = [
        background,
        _placed(behind, 0.14 * height_px, start_px + way * along_px),
        _placed(front, 0.24 * height_px, start_px + (1 - way) * along_px),
    ]
    return _render(layers, height_px, width_px)


def _placed(layer: Layer, radius_px: float, centre_px: Float64[np.ndarray, "T 2"]) -> Layer:
    """The object at another size, on another way."""
    poses = layer.poses.copy()
    poses[:, :2, 2] = centre_px
    outline_px = np.asarray(layer.outline_px)
    return replace(layer, poses=poses, outline_px=outline_px * radius_px / np.sqrt(np.mean(outline_px**2)))


def _render(layers: list[Layer], height_px: int, width_px: int) -> Scene:
    num_frames = len(layers[0].poses)
    frames = np.empty((num_frames, height_px, width_px, 3), np.uint8)
    object_ids = np.empty((num_frames, height_px, width_px), np.uint8)
    flow = np.empty((max(num_frames - 1, 0), 2, height_px, width_px), np.float32)
    for t in range(num_frames):
        frames[t], object_ids[t] = _render_frame(layers, t, height_px, width_px)
        if t + 1 < num_frames:
            flow[t] = _exact_flow(layers, object_ids[t], t)
    return Scene(frames=frames, masks=object_ids > 0, object_ids=object_ids, flow=flow)


def write_video(path: str | Path, frames: UInt8[np.ndarray, "T H W 3"], fps: int = 24) -> None:
    """Writes an H.264 mp4 of high quality; height and width must be even."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps), options={"crf": "12"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def write_davis_layout(root: str | Path, scenes: Mapping[str, Scene]) -> None:
    """Writes frames and masks {0, 255} in the folders of DAVIS 2016, for `gwm evaluate dataset=davis2016`."""
    for name, scene in scenes.items():
        frames_folder = Path(root, "JPEGImages", "480p", name)
        masks_folder = Path(root, "Annotations", "480p", name)
        frames_folder.mkdir(parents=True, exist_ok=True)
        masks_folder.mkdir(parents=True, exist_ok=True)
        for index, (frame, mask) in enumerate(zip(scene.frames, scene.masks, strict=True)):
            (frames_folder / f"{index:05d}.jpg").write_bytes(encode_jpeg(frame, quality=95))
            (masks_folder / f"{index:05d}.png").write_bytes(encode_png(mask.astype(np.uint8) * 255))


def _draw_layers(
    rng: np.random.Generator, num_frames: int, height_px: int, width_px: int, num_objects: int
) -> list[Layer]:
    """The background and the objects, from back to front."""
    palette = _draw_palette(rng, hue=rng.uniform())
    background_velocity_px = _draw_direction(rng) * rng.uniform(0.003, 0.008) * height_px
    zoom = 1.0 + rng.uniform(-0.002, 0.002) * np.arange(num_frames)
    centre_px = np.array([width_px, height_px]) / 2 + background_velocity_px * np.arange(num_frames)[:, None]
    poses = _similarities(np.zeros(num_frames), zoom, centre_px)
    objects = [
        _draw_object(rng, palette, background_velocity_px, num_frames, height_px, width_px, num_objects)
        for _ in range(num_objects)
    ]
    return [Layer(texture=_draw_texture(rng, palette), poses=poses), *objects]


def _draw_object(
    rng: np.random.Generator,
    background_palette: Float64[np.ndarray, "C 3"],
    background_velocity_px: Float64[np.ndarray, " 2"],
    num_frames: int,
    height_px: int,
    width_px: int,
    num_objects: int,
) -> Layer:
    """An object that moves by 1.5 % to 3 % of the height for each frame relative to the background."""
    area_px = rng.uniform(0.09, 0.17) * height_px * width_px / num_objects**0.6
    radius_px = float(np.sqrt(area_px / np.pi))
    size_px = np.array([width_px, height_px], dtype=np.float64)
    lowest, highest = 1.1 * radius_px * np.ones(2), size_px - 1.1 * radius_px
    start_px = rng.uniform(lowest, np.maximum(highest, lowest + 1))
    direction = _draw_direction(rng) * np.array([1.0, 0.45])
    relative_px = direction / np.linalg.norm(direction) * rng.uniform(0.016, 0.03) * height_px
    steps = np.arange(num_frames)[:, None]
    centre_px = _reflect(start_px + (background_velocity_px + relative_px) * steps, lowest, highest)
    angle = rng.uniform(0, 2 * np.pi) + rng.uniform(-0.02, 0.02) * steps[:, 0]
    scale = 1.0 + 0.1 * np.sin(rng.uniform(0, 2 * np.pi) + 0.1 * steps[:, 0])
    palette = _draw_palette(rng, hue=rng.uniform())
    palette[rng.integers(len(palette))] = background_palette[rng.integers(len(background_palette))]
    return Layer(
        texture=_draw_texture(rng, palette),
        poses=_similarities(angle, scale, centre_px),
        outline_px=_draw_outline(rng) * radius_px,
    )


def _draw_direction(rng: np.random.Generator) -> Float64[np.ndarray, " 2"]:
    angle = rng.uniform(0, 2 * np.pi)
    return np.array([np.cos(angle), np.sin(angle)])


def _draw_outline(rng: np.random.Generator) -> Float64[np.ndarray, " A"]:
    """A closed curve of about unit radius, by angle: a blob, an ellipse or a polygon with rounded corners."""
    angles = np.arange(OUTLINE_ANGLES) * (2 * np.pi / OUTLINE_ANGLES)
    kind = rng.integers(3)
    if kind == 0:
        waves = np.arange(2, 6)
        amplitudes, phases = rng.uniform(0, 0.35, 4) / waves, rng.uniform(0, 2 * np.pi, 4)
        radius = 1 + (amplitudes * np.cos(angles[:, None] * waves + phases)).sum(1)
    elif kind == 1:
        longer = rng.uniform(1.1, 1.4)
        radius = 1 / np.hypot(np.cos(angles) / longer, np.sin(angles) * longer)
    else:
        corner = 2 * np.pi / rng.integers(3, 7)
        radius = np.cos(corner / 2) / np.cos(angles % corner - corner / 2)
        radius = cv2.blur(np.pad(radius, 30, mode="wrap")[None], (31, 1))[0, 30:-30]
    return np.asarray(radius / np.sqrt(np.mean(radius**2)), np.float64)


def _draw_palette(rng: np.random.Generator, hue: float) -> Float64[np.ndarray, "C 3"]:
    """Four RGB colours in [0, 1] of neighbouring hues, from dark to light."""
    hues = (hue + rng.uniform(-0.1, 0.1, 4)) % 1.0
    hsv = np.stack([hues * 360, rng.uniform(0.2, 0.75, 4), np.linspace(0.2, 0.95, 4)], -1).astype(np.float32)
    return np.asarray(cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0], np.float64)


def _draw_texture(
    rng: np.random.Generator, palette: Float64[np.ndarray, "C 3"]
) -> Float32[np.ndarray, "S S 3"]:
    """RGB in [0, 255] that repeats without a seam: noise, wavy stripes or soft checks, with fine grain."""
    rows, columns = np.mgrid[:TEXTURE_SIZE, :TEXTURE_SIZE] * (2 * np.pi / TEXTURE_SIZE)
    coarse = _noise(rng, exponent=1.6)
    kind = rng.integers(3)
    if kind == 0:
        field = coarse
    elif kind == 1:
        across, down = rng.integers(8, 24, 2) * rng.choice([-1, 1], 2)
        field = 0.5 + 0.5 * np.sin(across * columns + down * rows + 4 * coarse)
    else:
        number = rng.integers(10, 18)
        waves = np.sin(number * columns + 2 * coarse) * np.sin(number * rows - 2 * coarse)
        field = 0.5 + 0.5 * np.tanh(4 * waves)
    field = np.clip(0.75 * field + 0.25 * _noise(rng, exponent=0.7), 0, 1)
    stops = np.linspace(0, 1, len(palette))
    channels = [255 * np.interp(field, stops, channel) for channel in palette.T]
    return np.stack(channels, -1, dtype=np.float32, casting="same_kind")


def _noise(rng: np.random.Generator, exponent: float) -> Float64[np.ndarray, "S S"]:
    """Periodic noise in [0, 1] whose amplitude falls with the frequency to the power of the exponent."""
    frequency = np.hypot(np.fft.fftfreq(TEXTURE_SIZE)[:, None], np.fft.rfftfreq(TEXTURE_SIZE))
    frequency[0, 0] = 1.0
    amplitude = frequency**-exponent * (frequency > 1 / 128) * (frequency < 1 / 4)
    noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((TEXTURE_SIZE, TEXTURE_SIZE))) * amplitude)
    return np.asarray(np.clip(0.5 + noise / (4 * noise.std()), 0, 1), np.float64)


def _similarities(
    angle: Float64[np.ndarray, " T"], scale: Float64[np.ndarray, " T"], centre_px: Float64[np.ndarray, "T 2"]
) -> Float64[np.ndarray, "T 3 3"]:
    """Matrices that turn, scale and then move the origin to the centre."""
    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    zero, one = np.zeros_like(angle), np.ones_like(angle)
    rows = [[cosine, -sine, centre_px[:, 0]], [sine, cosine, centre_px[:, 1]], [zero, zero, one]]
    return np.moveaxis(np.array(rows), -1, 0)


def _reflect(
    position: Float64[np.ndarray, "T 2"],
    lowest: Float64[np.ndarray, " 2"],
    highest: Float64[np.ndarray, " 2"],
) -> Float64[np.ndarray, "T 2"]:
    """Positions folded back at the borders."""
    span = np.maximum(highest - lowest, 1.0)
    phase = (position - lowest) % (2 * span)
    return np.asarray(lowest + np.minimum(phase, 2 * span - phase), np.float64)


def _transform(
    matrix: Float64[np.ndarray, "3 3"], x: Float[np.ndarray, "H W"], y: Float[np.ndarray, "H W"]
) -> tuple[Float64[np.ndarray, "H W"], Float64[np.ndarray, "H W"]]:
    return (
        matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2],
        matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2],
    )


def _render_frame(
    layers: list[Layer], t: int, height_px: int, width_px: int
) -> tuple[UInt8[np.ndarray, "H W 3"], UInt8[np.ndarray, "H W"]]:
    """The picture, and the object at each pixel's centre."""
    offset = (SUPERSAMPLING - 1) / 2
    y, x = np.mgrid[: height_px * SUPERSAMPLING, : width_px * SUPERSAMPLING].astype(np.float64)
    y, x = (y - offset) / SUPERSAMPLING, (x - offset) / SUPERSAMPLING
    image = np.zeros((*y.shape, 3), np.float32)
    ids = np.zeros(y.shape, np.uint8)
    texture_scale = REFERENCE_HEIGHT_PX / height_px
    for number, layer, covered in _covered(layers, t, x, y):
        u, v = _transform(np.linalg.inv(layer.poses[t]), x, y)
        column, row = (np.asarray(c * texture_scale % TEXTURE_SIZE, np.float32) for c in (u, v))
        colour = cv2.remap(layer.texture, column, row, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        image[covered] = colour[covered]
        ids[covered] = number
    picture = cv2.resize(image, (width_px, height_px), interpolation=cv2.INTER_AREA)
    middle = SUPERSAMPLING // 2
    return np.rint(picture).astype(np.uint8), ids[middle::SUPERSAMPLING, middle::SUPERSAMPLING]


def _covered(
    layers: list[Layer], t: int, x: Float64[np.ndarray, "H W"], y: Float64[np.ndarray, "H W"]
) -> Iterator[tuple[int, Layer, Bool[np.ndarray, "H W"]]]:
    """Each layer with its number and the samples inside its outline, from back to front."""
    angles = np.arange(OUTLINE_ANGLES) * (2 * np.pi / OUTLINE_ANGLES)
    for number, layer in enumerate(layers):
        if layer.outline_px is None:
            yield number, layer, np.ones(x.shape, bool)
            continue
        u, v = _transform(np.linalg.inv(layer.poses[t]), x, y)
        radius = np.interp(np.arctan2(v, u), angles, layer.outline_px, period=2 * np.pi)
        yield number, layer, np.hypot(u, v) < radius


def _exact_flow(
    layers: list[Layer], object_ids: UInt8[np.ndarray, "H W"], t: int
) -> Float32[np.ndarray, "2 H W"]:
    """Where each pixel's layer carries it by the next frame, minus where it is."""
    y, x = np.mgrid[: object_ids.shape[0], : object_ids.shape[1]].astype(np.float64)
    flow = np.empty((2, *object_ids.shape), np.float32)
    for number, layer in enumerate(layers):
        inside = object_ids == number
        next_x, next_y = _transform(layer.poses[t + 1] @ np.linalg.inv(layer.poses[t]), x, y)
        flow[0, inside] = (next_x - x)[inside]
        flow[1, inside] = (next_y - y)[inside]
    return flow
