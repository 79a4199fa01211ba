"""What a training run needs to go on after a kill: weights, optimiser, step and the losses so far.

Weights are safetensors; the optimiser's state is read back with `weights_only=True`: nothing pickled is
executed. A frozen backbone is not part of it.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from gwm_model.segmenter import Segmenter


@dataclass(slots=True)
class TrainingState:
    """How far a run has come."""

    step: int = 0
    """Steps done."""
    bad_batches: int = 0
    """Batches skipped because their loss or gradient was not finite."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Logged values: step, loss, gradient_norm, learning_rate, seconds."""


def trained_weights(segmenter: Segmenter) -> dict[str, torch.Tensor]:
    """The weights that training changes, on the CPU."""
    frozen = segmenter.backbone is not None and segmenter.backbone.config.frozen
    return {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in segmenter.state_dict().items()
        if not (frozen and name.startswith("backbone."))
    }


def save_state(
    folder: Path, segmenter: Segmenter, optimizer: torch.optim.Optimizer, state: TrainingState
) -> None:
    """Writes the state into an existing folder."""
    save_file(trained_weights(segmenter), folder / "weights.safetensors")
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    values = {"step": state.step, "bad_batches": state.bad_batches, "history": state.history}
    (folder / "state.json").write_text(json.dumps(values))


def load_state(folder: Path, segmenter: Segmenter, optimizer: torch.optim.Optimizer) -> TrainingState:
    """Restores the state in place."""
    segmenter.load_state_dict(load_file(folder / "weights.safetensors"), strict=False)
    optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))
    return TrainingState(**json.loads((folder / "state.json").read_text()))
