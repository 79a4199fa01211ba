"""A trained segmenter as MLflow loads and serves it: encoded images in, masks out, by the stages of `gwm segment`.

This is the model's loader module: MLflow imports it from the copy of the two packages that lies in the model, and calls
`_load_pyfunc`. It needs neither MLflow nor Ray, and nothing of a model is unpickled.
"""

import base64
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.config import SegmentConfig
from pipeline.errors import GwmError
from pipeline.inference import check_refinement, read_model_card
from pipeline.load_config import Scalar, flatten, load_config
from pipeline.masks import MaskRow, decode_mask
from pipeline.pictures import encode_png
from pipeline.records import Row
from pipeline.stages.load_chunk import load_chunk
from pipeline.stages.refine_masks import refine_masks
from pipeline.stages.segment_images import SegmentImages

IMAGE = "image"
"""The input's only column: encoded images, as bytes."""
SERVED = ("merge", "refine", "input_scales", "decode")
"""Those of segment's values that hold for single images."""
REQUIREMENTS = (
    "av",
    "fsspec",
    "huggingface_hub",
    "jaxtyping",
    "numpy",
    "omegaconf",
    "opencv-python-headless",
    "pyarrow",
    "pycocotools",
    "pyyaml",
    "safetensors",
    "scipy",
    "timm",
    "torch",
    "torchvision",
)
"""What this module imports, directly or not, beside the two packages."""


def served_values() -> dict[str, Scalar]:
    """The values of a served model under dotted keys: those of conf/segment.yaml."""
    return {key: value for key, value in flatten(SegmentConfig()).items() if key.split(".")[0] in SERVED}


class ServedModel:
    """A segmenter behind MLflow's `predict`."""

    def __init__(self, config: SegmentConfig) -> None:
        check_refinement(config.refine)
        self._config = config
        self._card = read_model_card(config.model, config.input_scales)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._segment_images = SegmentImages(config, device, torch.get_num_threads())

    def predict(self, table: Mapping[str, Any], params: object = None) -> list[Row]:  # noqa: ARG002  MLflow gives it
        """One answer for each encoded image of the column `image`, in their order (see `answer`).

        GwmError: the network failed on all of them.
        """
        with tempfile.TemporaryDirectory(prefix="gwm-") as folder:
            files = [Path(folder, f"image {number}") for number in range(len(table[IMAGE]))]
            for file, encoded in zip(files, table[IMAGE], strict=True):
                file.write_bytes(encoded)
            masks = self._masks([str(file) for file in files])
        return [answer(mask, folder) for mask in masks]

    def _masks(self, urls: list[str]) -> list[MaskRow]:
        names = [Path(url).name for url in urls]
        chunk: Row = {"unit": "", "source": "images", "status": "planned", "kind": "images", "names": names}
        row = load_chunk({**chunk, "urls": urls, "frame_index": [-1] * len(urls)}, self._config, self._card)
        row = self._segment_images(row)
        if self._config.refines_apart:
            row = refine_masks(row, self._config)
        if row["status"] == "failed":
            raise GwmError(row["failure"])
        found: list[MaskRow] = row["masks"]
        return found


def answer(mask: MaskRow, folder: str) -> Row:
    """The columns of the mask record that JSON can hold, and the mask as a PNG in base64; or all none but `error`."""
    has_mask = mask.mask_rle is not None
    return {
        "height_px": mask.height_px,
        "width_px": mask.width_px,
        "mask_png": _png(mask) if has_mask else None,
        "mask_rle": mask.mask_rle.decode() if mask.mask_rle is not None else None,
        "area_fraction": mask.area_fraction,
        "foreground_score": mask.foreground_score,
        "error": mask.error and mask.error.replace(f"{folder}/", ""),
    }


def _png(mask: MaskRow) -> str:
    pixels = decode_mask(mask.mask_rle or b"", mask.height_px or 0, mask.width_px or 0)
    return base64.b64encode(encode_png(pixels.astype(np.uint8) * 255)).decode()


def _load_pyfunc(data_path: str, model_config: Mapping[str, Scalar] | None = None) -> ServedModel:
    """The model whose files are in `data_path`; MLflow gives the values that were logged, or given at its start."""
    values = served_values() | dict(model_config or {})
    words = [f"{key}={'null' if value is None else value}" for key, value in values.items()]
    places = [f"model={data_path}", "images=-", "output=-"]  # images arrive and masks leave by `predict`
    return ServedModel(load_config(SegmentConfig, None, [*words, *places]))
