"""Optical flow of a clip at four gaps: torchvision's RAFT pair by pair against gwm_model, in one process.

Run it with `python tests/benchmarks/flow.py`; it prints one JSON line for each network. Both sides get the
same frames and weights, and the benchmark fails where their flows differ. A round times each side once;
the ratio is the median over the rounds.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch

from gwm_model.optical_flow import load_flow_estimator
from gwm_model.raft_weights import RaftName, load_raft_network

DATA = Path(os.environ.get("GWM_TEST_DATA", Path(__file__).parents[2] / "../shared/data"))
WEIGHTS: dict[RaftName, Path] = {
    "raft_small": DATA / "weights/raft-small.pth",
    "raft_large": DATA / "weights/raft-sintel-fp16.pth",
}
GAPS = (1, -1, 2, -2)
HEIGHT_PX, WIDTH_PX = 240, 432
TOLERANCE_PX = 1e-2

Flows = dict[int, torch.Tensor]


def read_clip(num_frames: int) -> torch.Tensor:
    """The first frames of a DAVIS sequence: uint8 [T,3,H,W]."""
    paths = sorted((DATA / "DAVIS2016/JPEGImages/480p/blackswan").glob("*.jpg"))[:num_frames]
    frames = [
        cv2.resize(cv2.imread(str(path)), (WIDTH_PX, HEIGHT_PX), interpolation=cv2.INTER_AREA)[..., ::-1]
        for path in paths
    ]
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).contiguous()


class PairByPair:
    """Torchvision's RAFT as its documentation uses it: one forward pass for each pair and direction."""

    def __init__(self, name: RaftName, iterations: int, device: str):
        self.network = load_raft_network(name, str(WEIGHTS[name])).eval().to(device)
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


def timed(method: Callable[[torch.Tensor], Flows], frames: torch.Tensor) -> tuple[float, Flows]:
    """Seconds and result; the result is on the CPU, so the device has finished."""
    began = time.perf_counter()
    flows = method(frames)
    return time.perf_counter() - began, flows


def compare(name: RaftName, frames: torch.Tensor, arguments: argparse.Namespace) -> dict[str, object]:
    """One benchmark line."""
    reference = PairByPair(name, arguments.iterations, arguments.device)
    estimator = load_flow_estimator(
        name, str(WEIGHTS[name]), arguments.iterations, arguments.device, arguments.precision
    )
    ours = partial(estimator, gaps=GAPS)
    rounds = []
    difference_px = 0.0
    for _ in range(arguments.rounds):
        seconds_reference, expected = timed(reference, frames)
        seconds_ours, flows = timed(ours, frames)
        rounds.append((seconds_reference, seconds_ours))
        difference_px = max(difference_px, mean_difference_px(flows, expected))
    tolerance_px = TOLERANCE_PX if arguments.precision == "float32" else 0.1
    if difference_px > tolerance_px:
        raise SystemExit(f"{name}: flows differ by {difference_px:.4f} px on average")
    return {
        "benchmark": "flow",
        "network": name,
        "device": arguments.device,
        "precision": arguments.precision,
        "frames": len(frames),
        "gaps": GAPS,
        "size_px": [HEIGHT_PX, WIDTH_PX],
        "iterations": arguments.iterations,
        "mean_difference_px": round(difference_px, 6),
        "torchvision_s": round(statistics.median(reference for reference, _ in rounds), 3),
        "gwm_s": round(statistics.median(ours for _, ours in rounds), 3),
        "ratio": round(statistics.median(reference / ours for reference, ours in rounds), 3),
    }


def mean_difference_px(flows: Flows, expected: Flows) -> float:
    """The largest mean distance of two sets of flows over the gaps; NaN only where both are NaN."""
    distances = []
    for gap in GAPS:
        if not torch.equal(flows[gap].isnan(), expected[gap].isnan()):
            raise SystemExit(f"gap {gap}: the flows cover different frames")
        distances.append(torch.linalg.vector_norm(flows[gap] - expected[gap], dim=1).nanmean().item())
    return max(distances)


def main() -> None:
    """Prints one JSON line for each network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=list(WEIGHTS), choices=list(WEIGHTS))
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--iterations", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    arguments = parser.parse_args()
    frames = read_clip(arguments.frames)
    for name in arguments.networks:
        print(json.dumps(compare(name, frames, arguments)), flush=True)


if __name__ == "__main__":
    main()
