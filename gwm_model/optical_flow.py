"""Optical flow between the frames of a clip, for several frame gaps at once."""

from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

import cv2
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

Pair = tuple[int, int]
"""Numbers of two frames of a clip, from the first to the second."""
DIS_MIN_SIDE_PX = 16
"""Smaller frames are padded by repeating the last row and column; OpenCV refuses them."""


class PairFlow(Protocol):
    """A method that finds the flow of frame pairs."""

    weights_sha256: str | None
    """Hash of the network's weights; none for a method without weights."""

    def __call__(
        self, frames: UInt8[Tensor, "T 3 H W"], pairs: Sequence[Pair]
    ) -> Iterator[Float[Tensor, "2 H W"]]:
        """Yields the flow in px from frame pair[0] to frame pair[1], in the order of `pairs`."""
        ...


class FlowEstimator:
    """Flow of a clip's frames to their neighbours at given gaps."""

    def __init__(self, pair_flow: PairFlow):
        self._pair_flow = pair_flow

    @property
    def weights_sha256(self) -> str | None:
        """Hash of the weights in use, equal for every file that holds the same values; none for `dis`."""
        return self._pair_flow.weights_sha256

    def __call__(
        self,
        frames: UInt8[Tensor, "T 3 H W"],
        gaps: Sequence[int] = (1, -1),
        *,
        start: int = 0,
        stop: int | None = None,
    ) -> dict[int, Float[Tensor, "N 2 H W"]]:
        """For each gap the flow of frames [start, stop) to the frames `gap` later, on the device of `frames`.

        In px of the frames; [0] = dx to the right, [1] = dy down; NaN where frame t + gap is not in the clip.
        Frames outside [start, stop) only serve as targets. Raises ValueError for a gap of 0 or a wrong range.
        """
        stop = len(frames) if stop is None else stop
        if not 0 <= start <= stop <= len(frames):
            raise ValueError(f"frames {start} to {stop} are not within a clip of {len(frames)} frames")
        if 0 in gaps:
            raise ValueError("a gap of 0 frames has no flow")
        size = (stop - start, 2, *frames.shape[-2:])
        flows = {gap: torch.full(size, torch.nan, device=frames.device) for gap in gaps}
        wanted = [(gap, t) for gap in flows for t in range(start, stop) if 0 <= t + gap < len(frames)]
        pairs = [(t, t + gap) for gap, t in wanted]
        for (gap, t), flow in zip(wanted, self._pair_flow(frames, pairs), strict=True):
            flows[gap][t - start] = flow
        return flows


class DisFlow:
    """Dense inverse search (Kroeger et al., ECCV 2016) as in OpenCV, preset medium, on grey frames."""

    weights_sha256: str | None = None

    def __call__(
        self, frames: UInt8[Tensor, "T 3 H W"], pairs: Sequence[Pair]
    ) -> Iterator[Float[Tensor, "2 H W"]]:
        """Yields the flow in px from frame pair[0] to frame pair[1], in the order of `pairs`."""
        method = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        height, width = frames.shape[-2:]
        rows, columns = max(0, DIS_MIN_SIDE_PX - height), max(0, DIS_MIN_SIDE_PX - width)
        rgb = frames.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        grey = [
            cv2.copyMakeBorder(
                cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), 0, rows, 0, columns, cv2.BORDER_REPLICATE
            )
            for frame in rgb
        ]
        for first, second in pairs:
            flow = method.calc(grey[first], grey[second], None)
            yield torch.from_numpy(flow).permute(2, 0, 1)[:, :height, :width]


def load_flow_estimator(
    name: Literal["raft_large", "raft_small", "dis"],
    weights: str = "pretrained",
    iterations: int = 12,
    device: str = "cpu",
    precision: Literal["float32", "bfloat16"] = "float32",
    *,
    pairs_per_batch: int | None = None,
) -> FlowEstimator:
    """The named flow estimator; `dis` runs on the CPU and ignores every other argument.

    `weights`: `pretrained`, a torchvision weights name, or a path or an http(s) URL to a torchvision or an
    original (princeton-vl) checkpoint. `iterations`: RAFT's updates. `pairs_per_batch`: bounds memory; as a rule 8, on
    a GPU 64, which only many pairs keep busy.
    Raises WeightsError, a ValueError, for weights that do not fit.
    """
    if name == "dis":
        return FlowEstimator(DisFlow())
    if name not in ("raft_large", "raft_small"):
        raise ValueError(f"flow estimator {name!r} is unknown; choose raft_large, raft_small or dis")
    # torchvision takes seconds to import, and DIS needs none of it.
    from gwm_model.raft import Raft
    from gwm_model.raft_weights import load_raft_network

    network = load_raft_network(name, weights)
    if pairs_per_batch is None:
        pairs_per_batch = 8 if torch.device(device).type == "cpu" else 64
    return FlowEstimator(
        Raft(
            network,
            iterations=iterations,
            device=device,
            precision=precision,
            pairs_per_batch=pairs_per_batch,
        )
    )
