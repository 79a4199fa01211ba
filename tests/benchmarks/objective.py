"""The objective against the published code's formula: speed and peak memory, forward and backward, in one process.

The published code solves, for each region and each flow component, a least-squares problem over all pixels by
QR with an explicit inverse of R.
"""

from collections.abc import Callable

import torch
from common import report, rounded, side_by_side
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from gwm_model import motion_loss

FASTER = {"expected": 20, "composite": 8}
CASES = [(8, 4, 128, 224), (1, 4, 480, 854)]


def published_loss(masks: Tensor, flow: Tensor, objective: str) -> Tensor:
    """Mean residual by QR on every pixel; weights are the masks (`composite`) or their square roots (`expected`)."""
    height, width = flow.shape[2:]
    rows, columns = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    terms = [rows, columns, rows**2, columns**2, rows * columns, torch.ones_like(rows)]
    basis = torch.stack(terms, -1).view(1, -1, 6)
    composite, expected = torch.zeros_like(flow.flatten(2).mT), flow.new_zeros(())
    for k in range(masks.shape[1]):
        mask = masks[:, k].flatten(1)[..., None]
        weight = mask if objective == "composite" else mask.sqrt()
        design = weight * basis
        fitted = []
        for component in range(2):
            target = flow[:, component].flatten(1)[..., None]
            q, r = torch.linalg.qr(design)
            theta = torch.linalg.inv(r) @ (q.mT @ (weight * target))
            fitted.append(design @ theta if objective == "composite" else basis @ theta)
            expected = expected + (mask * (target - basis @ theta).square()).sum()
        composite = composite + torch.cat(fitted, -1)
    if objective == "composite":
        return (flow.flatten(2).mT - composite).square().mean()
    return expected / flow.numel()


def forward_backward(
    loss: Callable[..., Tensor], masks: Tensor, flow: Tensor, objective: str
) -> tuple[float, Tensor]:
    """The loss and its gradient for the masks."""
    masks = masks.detach().requires_grad_()
    value = loss(masks, flow, objective=objective)
    value.backward()
    assert masks.grad is not None
    return float(value), masks.grad


def peak_bytes(run: Callable[[], object]) -> int:
    """The most memory that was allocated at one time during `run`, by torch's own record of every allocation."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def measure(shape: tuple[int, int, int, int], objective: str) -> None:
    """Two lines: speed and memory of one objective."""
    batch, regions, height, width = shape
    torch.manual_seed(0)
    logits = torch.nn.functional.interpolate(
        torch.randn(batch, regions, 8, 14) * 2, (height, width), mode="bilinear"
    )
    flow = torch.nn.functional.interpolate(torch.randn(batch, 2, 5, 7) * 5, (height, width), mode="bicubic")
    masks = logits.softmax(1)
    compared = side_by_side(
        lambda: forward_backward(published_loss, masks, flow, objective),
        lambda: forward_backward(motion_loss, masks, flow, objective),
        rounds=15,
        warmup=2,
    )
    (theirs, their_gradient), (ours, our_gradient) = compared.expected, compared.result
    assert abs(ours / theirs - 1) < 1e-4
    assert (our_gradient - their_gradient).norm() / their_gradient.norm() < 1e-3
    peaks = [
        peak_bytes(lambda loss=loss: forward_backward(loss, masks, flow, objective))
        for loss in (published_loss, motion_loss)
    ]
    case = f"{objective}, B = {batch}, K = {regions}, {height} x {width}"
    is_target = (height, width) == (128, 224)
    report(
        "objective",
        case,
        "times the published QR formula's speed, forward and backward",
        compared.ratio,
        at_least=FASTER[objective] if is_target else None,
        **rounded(published_s=compared.reference_s, ours_s=compared.ours_s),
    )
    report("objective", case, "of its peak memory", peaks[1] / peaks[0], at_most=0.25 if is_target else None)


if __name__ == "__main__":
    for case in CASES:
        for name in FASTER:
            measure(case, name)
