"""Optical flow of a clip at four gaps: torchvision's RAFT pair by pair against gwm_model, in one process.

Both sides get the same frames and weights. In float32 the flows must agree to a thousandth of a pixel; bfloat16 is
compared with torchvision's float32. Beside each ratio: what the device's matrix product reaches in that precision, and
the share of it that the flow's arithmetic takes.
"""

import argparse
import time
from functools import partial

import torch
from common import DATA, davis_frames, read_frames, report, rounded, side_by_side
from torch.utils.flop_counter import FlopCounterMode

from gwm_model.optical_flow import load_flow_estimator
from gwm_model.raft_weights import RaftName, load_raft_network

WEIGHTS: dict[RaftName, str] = {
    "raft_small": str(DATA / "weights/raft-small.pth"),
    "raft_large": str(DATA / "weights/raft-sintel-fp16.pth"),
}
GAPS = (1, -1, 2, -2)
HEIGHT_PX, WIDTH_PX = 240, 432
FASTER = {"cpu": {"float32": 1.4, "bfloat16": 2.2}, "cuda": {"float32": 4.0, "bfloat16": 4.0}}
MAX_DIFFERENCE_PX = 1e-3
MEAN_DIFFERENCE_PX = {"float32": 1e-3, "bfloat16": 0.1}

Flows = dict[int, torch.Tensor]


class PairByPair:
    """Torchvision's RAFT as its documentation uses it: one forward pass for each pair and direction."""

    def __init__(self, name: RaftName, iterations: int, device: str):
        self.network = load_raft_network(name, WEIGHTS[name]).eval().to(device)
        self.iterations = iterations
        self.device = device

    @torch.no_grad()
    def __call__(self, frames: torch.Tensor) -> Flows:
        """For each gap the flow in px, NaN where the target frame is outside the clip."""
        images = frames.to(self.device).float() / 127.5 - 1
        flows = {gap: torch.full((len(frames), 2, *frames.shape[-2:]), torch.nan) for gap in GAPS}
        for gap in GAPS:
            for t in range(max(0, -gap), len(frames) - max(0, gap)):
                updates = self.network(images[t : t + 1], images[t + gap : t + gap + 1], self.iterations)
                flows[gap][t] = updates[-1][0]
        return flows


def distances_px(flows: Flows, expected: Flows) -> torch.Tensor:
    """Distances of two sets of flows at all pixels; both must cover the same frames."""
    found = []
    for gap in GAPS:
        if not torch.equal(flows[gap].isnan(), expected[gap].isnan()):
            raise SystemExit(f"gap {gap}: the flows cover different frames")
        distance = torch.linalg.vector_norm(flows[gap] - expected[gap], dim=1)
        found.append(distance[~distance.isnan()])
    return torch.cat(found)


def matrix_flop_per_s(device: str, dtype: torch.dtype) -> float:
    """The rate of a large matrix product, the best of ten."""
    size = 1024 if device == "cpu" else 8192
    left, right = torch.randn(2, size, size, device=device).to(dtype)
    best_s = torch.inf
    for _ in range(10):
        began = time.perf_counter()
        float((left @ right)[0, 0])  # waits for a GPU
        best_s = min(best_s, time.perf_counter() - began)
    return 2 * size**3 / best_s


def compare(name: RaftName, precision: str, frames: torch.Tensor, arguments: argparse.Namespace) -> None:
    """One benchmark line."""
    reference = PairByPair(name, arguments.iterations, arguments.device)
    estimator = load_flow_estimator(
        name,
        WEIGHTS[name],
        arguments.iterations,
        arguments.device,
        precision,
        pairs_per_batch=arguments.pairs_per_batch,
    )
    compared = side_by_side(
        partial(reference, frames), partial(estimator, frames, gaps=GAPS), rounds=arguments.rounds
    )
    distances = distances_px(compared.result, compared.expected)
    if distances.mean() > MEAN_DIFFERENCE_PX[precision] or (
        precision == "float32" and distances.max() > MAX_DIFFERENCE_PX
    ):
        raise SystemExit(f"{name}, {precision}: flows differ by up to {distances.max():.4f} px")
    pairs = sum(len(frames) - abs(gap) for gap in GAPS)
    with FlopCounterMode(display=False) as counted:
        estimator(frames, gaps=GAPS)
    peak = matrix_flop_per_s(arguments.device, getattr(torch, precision))
    share = counted.get_total_flops() / compared.ours_s / peak
    report(
        "flow",
        f"{name}, {precision}, {arguments.device}, {len(frames)} frames, {arguments.iterations} iterations",
        "times the pairs/s of torchvision in float32, pair by pair",
        compared.ratio,
        at_least=FASTER[arguments.device][precision],
        mean_difference_px=float(f"{distances.mean():.2g}"),
        max_difference_px=float(f"{distances.max():.2g}"),
        **rounded(torchvision_pairs_per_s=pairs / compared.reference_s, pairs_per_s=pairs / compared.ours_s),
        **rounded(matrix_product_tflop_per_s=peak / 1e12, share_of_it=share),
    )


def main() -> None:
    """Prints one JSON line for each network and precision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=list(WEIGHTS), choices=list(WEIGHTS))
    parser.add_argument("--precisions", nargs="+", default=list(MEAN_DIFFERENCE_PX))
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--iterations", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pairs-per-batch", type=int)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    torch.backends.cudnn.allow_tf32 = False  # convolutions in float32 on a GPU too
    clip = read_frames(davis_frames("blackswan", arguments.frames), HEIGHT_PX, WIDTH_PX)
    frames = torch.from_numpy(clip).permute(0, 3, 1, 2).contiguous()
    for name in arguments.networks:
        for precision in arguments.precisions:
            compare(name, precision, frames, arguments)


if __name__ == "__main__":
    main()
