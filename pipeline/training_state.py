"""Checkpoints: all that a training run needs to go on after a kill, in one file each.

output/training/step_000000500-<sha256>.safetensors     weights, optimiser, and in the header how far the run has come

A file is written in one piece and named by its own content, so a file that has its name is whole: cut short,
changed in a bit or never a checkpoint at all, it is passed over for the one before. The format holds numbers
only; nothing pickled is written or read. A frozen backbone is not part of it.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from gwm_model.segmenter import Segmenter
from pipeline import storage

CHECKPOINTS_KEPT = 2
NAME = re.compile(r"step_(\d{9})-([0-9a-f]{64})\.safetensors")


@dataclass(slots=True)
class TrainingState:
    """How far a run has come."""

    step: int = 0
    """Steps done."""
    bad_batches: int = 0
    """Batches skipped because their loss or gradient was not finite."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Logged values: loss, gradient_norm, learning_rate, step_s, bad_batches, step."""
    recent: list[dict[str, float]] = field(default_factory=list)
    """Values of the steps since the last entry of the history."""
    fallbacks: list[str] = field(default_factory=list)
    """A sentence for each damaged checkpoint that was passed over."""
    stopped: str = ""
    """Why the run ended before its last step."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint's file, read and found whole."""

    name: str
    content: bytes


class Checkpoints:
    """The checkpoints in a folder or below a bucket's prefix; the newest two that this run trusts are kept."""

    def __init__(self, url: str):
        self.url = url
        self.trusted: list[str] = []

    def newest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest whole checkpoint, and the names of the damaged ones that are newer."""
        damaged: list[str] = []
        for name in sorted(self._names(), reverse=True):
            checkpoint = self.read(name)
            if checkpoint is not None:
                self.trusted = [name]
                return checkpoint, damaged
            damaged.append(name)
        return None, damaged

    def read(self, name: str) -> Checkpoint | None:
        """The checkpoint of this name; None where it is damaged."""
        content = storage.read_bytes(storage.join(self.url, name))
        return Checkpoint(name, content) if _is_whole(name, content) else None

    def write(self, segmenter: Segmenter, optimizer: torch.optim.Optimizer, state: TrainingState) -> None:
        """Adds a checkpoint, and removes all but the newest two."""
        content = to_bytes(segmenter, optimizer, state)
        name = f"step_{state.step:09d}-{hashlib.sha256(content).hexdigest()}.safetensors"
        storage.write_bytes(storage.join(self.url, name), content)
        self.trusted = [*(kept for kept in self.trusted if kept != name), name][-CHECKPOINTS_KEPT:]
        for other in set(self._names()) - set(self.trusted):
            storage.delete(storage.join(self.url, other))

    def _names(self) -> Iterator[str]:
        names = (url.rsplit("/", 1)[-1] for url in storage.list_files(self.url))
        return (name for name in names if NAME.fullmatch(name))


def step_of(name: str) -> int:
    """The step of a checkpoint's name."""
    return int(name.removeprefix("step_").partition("-")[0])


def to_bytes(segmenter: Segmenter, optimizer: torch.optim.Optimizer, state: TrainingState) -> bytes:
    """The content of a checkpoint: `weights.NAME`, `optimizer.PARAMETER.KEY`, and the state in the header."""
    tensors = {f"weights.{name}": tensor for name, tensor in trained_weights(segmenter).items()}
    for parameter, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{parameter}.{key}": tensor for key, tensor in values.items()}
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content: bytes = save(contiguous, metadata={"state": json.dumps(asdict(state))})
    return content


def from_bytes(content: bytes, segmenter: Segmenter, optimizer: torch.optim.Optimizer) -> TrainingState:
    """Restores weights and optimiser in place from a checkpoint's content; returns the state."""
    weights: dict[str, Tensor] = {}
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in load(content).items():
        kind, _, rest = name.partition(".")
        if kind == "weights":
            weights[rest] = tensor
        else:
            parameter, _, key = rest.partition(".")
            moments.setdefault(int(parameter), {})[key] = tensor
    segmenter.load_state_dict(weights, strict=False)
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return TrainingState(**json.loads(_header(content)["__metadata__"]["state"]))


def trained_weights(segmenter: Segmenter) -> dict[str, Tensor]:
    """The weights that training changes."""
    frozen = segmenter.backbone is not None and segmenter.backbone.config.frozen
    weights = segmenter.state_dict().items()
    return {name: tensor for name, tensor in weights if not (frozen and name.startswith("backbone."))}


def _is_whole(name: str, content: bytes) -> bool:
    """Whether a file has the content that its name promises, and is a checkpoint."""
    match = NAME.fullmatch(name)
    if match is None or hashlib.sha256(content).hexdigest() != match[2]:
        return False
    try:
        load(content)
        return "state" in _header(content)["__metadata__"]
    except (SafetensorError, ValueError, KeyError):
        return False


def _header(content: bytes) -> dict[str, dict[str, str]]:
    """The JSON header of a safetensors file: eight bytes give its length."""
    header: dict[str, dict[str, str]] = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return header
