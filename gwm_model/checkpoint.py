"""A segmenter on disk: `segmenter.safetensors` (all weights, the backbone's too) and `segmenter.json`, its values.

Nothing pickled is written or read.
"""

import dataclasses
import json
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from gwm_model.config import CONFIG_FILE, WEIGHTS_FILE, BackboneConfig, SegmenterConfig
from gwm_model.errors import first_line
from gwm_model.segmenter import Segmenter

FORMAT_VERSION = 1


def save_segmenter(segmenter: Segmenter, folder: Path | str) -> None:
    """Writes both files into `folder`, which is created if it is missing."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in segmenter.state_dict().items()}
    save_file(weights, folder / WEIGHTS_FILE)
    description = {"format_version": FORMAT_VERSION, "segmenter": dataclasses.asdict(segmenter.config)}
    (folder / CONFIG_FILE).write_text(json.dumps(description, indent=2, sort_keys=True) + "\n")


def read_segmenter_config(folder: Path | str) -> SegmenterConfig:
    """The configuration of a saved segmenter. ValueError with one sentence if the folder does not hold one."""
    path = Path(folder) / CONFIG_FILE
    if not path.is_file():
        raise ValueError(f"{folder} holds no segmenter: {CONFIG_FILE} is missing.")
    try:
        description = json.loads(path.read_text())
        values = dict({FORMAT_VERSION: description}[description["format_version"]]["segmenter"])
        backbone = dict(values.pop("backbone"))
        backbone["blocks"] = tuple(backbone["blocks"])
        return SegmenterConfig(**values, backbone=BackboneConfig(**backbone))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} does not describe a segmenter of format {FORMAT_VERSION}: {type(error).__name__} {error}."
        ) from error


def fetch_segmenter(name: str, revision: str | None = None) -> Path:
    """The folder in the Hugging Face cache with a repository's two files; what the cache has is not fetched again.

    ValueError with one sentence if there is no such repository, or it cannot be reached and is not in the cache.
    """
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE]))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ValueError(
            f"{name} is no folder here, and no segmenter that the Hugging Face hub gives: {first_line(error)}."
        ) from error


def load_segmenter(path: Path | str, device: torch.device | str = "cpu") -> Segmenter:
    """The segmenter saved in the folder `path`, in evaluation mode. ValueError with one sentence if it does not fit."""
    config = read_segmenter_config(path)
    unloaded = dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, weights="none"))
    try:
        weights = load_file(Path(path) / WEIGHTS_FILE)
        with torch.device("meta"):  # a size that the weights do not have claims no memory
            Segmenter(unloaded).load_state_dict(weights, assign=True)
        segmenter = Segmenter(unloaded)
        segmenter.load_state_dict(weights)
    except (RuntimeError, SafetensorError, OSError) as error:
        raise ValueError(
            f"{Path(path) / WEIGHTS_FILE} does not fit {CONFIG_FILE} beside it: {first_line(error)}."
        ) from error
    segmenter.config = config
    return segmenter.to(device).eval()
