"""One training step, in plain torch: batch -> loss -> gradient -> AdamW. Distribution is applied from outside.

`SegmenterLoss` takes the frozen backbone's features from the caller, who keeps them, so that no frame passes
the backbone twice.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gwm_model.config import ObjectiveConfig, OptimizerConfig
from gwm_model.objective import appearance_cut, training_loss
from gwm_model.segmenter import Segmenter
from gwm_model.self_training import self_training_loss

SELF_TRAINING_FROM = 0.5
"""The share of the training after which masks are good enough to learn from."""
POLY_POWER = 0.9
POLY_START = 1e-6
"""The warm-up of `poly` begins with this share of the rate."""


@dataclass(frozen=True, slots=True)
class TrainBatch:
    """Frames with their flow, as one step needs them."""

    images: Float[Tensor, "B 3 h w"]
    """RGB in [0, 1] at the segmenter's input size."""
    features: list[Tensor]
    """Feature maps of the frozen backbone; empty if it is trained or there is none."""
    flow: Float[Tensor, "B 2 H W"]
    """Flow on the grid of the segmenter's output, in pixels of the stored size; or on the objective's, in its own."""
    progress: float = 0.0
    """The share of the training's steps that is done."""

    def to(self, device: torch.device | str) -> "TrainBatch":
        """The batch in float32 on a device."""
        return TrainBatch(
            self.images.to(device, torch.float32),
            [feature.to(device, torch.float32) for feature in self.features],
            self.flow.to(device, torch.float32),
            self.progress,
        )


class SegmenterLoss(nn.Module):
    """The segmenter with its objective: what DistributedDataParallel wraps."""

    def __init__(self, segmenter: Segmenter, objective: ObjectiveConfig):
        super().__init__()
        self.segmenter = segmenter
        self.objective = objective

    def forward(self, batch: TrainBatch) -> Float[Tensor, ""]:
        """The objective of the batch."""
        objective = self.objective
        features = batch.features or self.segmenter.features(batch.images)
        logits = self.segmenter.logits(features, batch.images)
        masks = logits.softmax(1)
        loss = training_loss(masks, batch.flow, objective)
        if features and objective.appearance_weight:
            loss = loss + objective.appearance_weight * appearance_cut(masks, features[-1])
        if objective.self_training_weight and batch.progress >= SELF_TRAINING_FROM:
            learned = self_training_loss(logits, batch.flow, batch.images)
            loss = loss + objective.self_training_weight * learned
        return loss


def make_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; norms, biases and queries are not decayed."""
    trainable = [
        (name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad
    ]
    decayed = [
        parameter for name, parameter in trainable if parameter.ndim > 1 and not name.endswith("queries")
    ]
    plain = [parameter for name, parameter in trainable if parameter.ndim <= 1 or name.endswith("queries")]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate)


def learning_rate_at(step: int, num_steps: int, config: OptimizerConfig) -> float:
    """The rate of steps 0 to num_steps - 1: linear warm-up, constant, linear decay over the last `decay_fraction`.

    `poly` is detectron2's WarmupPolyLR as the paper's code sets it: warm-up from 1e-6 of the rate, times a falling
    power of the steps left to `poly_steps`.
    """
    if config.schedule == "poly":
        done = min(1.0, step / max(1, config.warmup_steps))
        left = max(0.0, 1.0 - step / config.poly_steps)
        falling: float = left**POLY_POWER
        return config.learning_rate * (POLY_START * (1.0 - done) + done) * falling
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    decay_steps = max(1.0, config.decay_fraction * num_steps)
    decay = min(1.0, (num_steps - step) / decay_steps)
    return config.learning_rate * min(warmup, decay)


def train_step(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: TrainBatch,
    *,
    learning_rate: float,
    max_gradient_norm: float,
    precision: str = "float32",
) -> dict[str, float]:
    """Updates the module once; returns `loss` and `gradient_norm` (before clipping).

    A batch whose loss or gradient is not finite changes nothing; its `gradient_norm` is not finite then, on every
    rank: the gradients of all ranks are averaged.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    device_type = batch.images.device.type
    with torch.autocast(device_type, torch.bfloat16, enabled=precision == "bfloat16"):
        loss = module(batch)
    optimizer.zero_grad(set_to_none=True)
    loss.backward(torch.where(loss.isfinite(), 1.0, torch.nan))
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, max_gradient_norm)
    if torch.isfinite(norm):
        optimizer.step()
    return {"loss": float(loss.detach()), "gradient_norm": float(norm)}
