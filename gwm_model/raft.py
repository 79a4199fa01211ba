"""RAFT optical flow (Teed and Deng, ECCV 2020) on torchvision's modules; frames are encoded once.

Images enter in [-1, 1]. raft_large upsamples by convex combination, raft_small bilinearly, both once, after
the last update; until then everything stays at 1/8 of the size.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.optical_flow._utils import make_coords_grid, upsample_flow

from gwm_model.raft_weights import weights_sha256

Pair = tuple[int, int]
T = TypeVar("T")

STRIDE_PX = 8
MIN_SIDE_PX = 128
"""Smallest side of RAFT's input: its coarsest correlation level must keep two cells."""
PYRAMID_BYTES = 4 * 2**30
"""Correlation pyramids of one batch stay within this; at 1080p one pair takes 5.6 GB, and goes alone."""


class Raft:
    """Optical flow of frame pairs of one clip.

    A batch holds at most `pairs_per_batch` pairs, fewer where their correlation would pass PYRAMID_BYTES.
    With bfloat16 the networks run under autocast; correlation, lookup coordinates and flow stay float32.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        iterations: int,
        device: str = "cpu",
        precision: Literal["float32", "bfloat16"] = "float32",
        pairs_per_batch: int = 8,
    ):
        if iterations < 1 or pairs_per_batch < 1:
            raise ValueError(
                f"iterations and pairs_per_batch must be positive, got {iterations} and {pairs_per_batch}"
            )
        # Any: torchvision's submodules are not typed.
        self.network: Any = network.eval().requires_grad_(False).to(device)
        self.iterations = iterations
        self.device = torch.device(device)
        self.precision = precision
        self.pairs_per_batch = pairs_per_batch
        self.weights_sha256: str | None = weights_sha256(network)

    def __call__(
        self, frames: UInt8[Tensor, "T 3 H W"], pairs: Sequence[Pair]
    ) -> Iterator[Float[Tensor, "2 H W"]]:
        """Yields the flow in px from frame pair[0] to frame pair[1], in the order of `pairs`, on `device`."""
        features = self._encode(
            self.network.feature_encoder, frames, sorted({frame for pair in pairs for frame in pair})
        )
        context = self._encode(self.network.context_encoder, frames, sorted({first for first, _ in pairs}))
        height, width = frames.shape[-2:]
        for batch in _batches(pairs, self._batch_size(frames)):
            flows = self._refine(
                torch.stack([features[first] for first, _ in batch]),
                torch.stack([features[second] for _, second in batch]),
                torch.stack([context[first] for first, _ in batch]),
            )
            yield from flows[..., :height, :width]

    def _batch_size(self, frames: UInt8[Tensor, "T 3 H W"]) -> int:
        """Pairs of one batch, at least 1."""
        height, width = (_padded(side) // STRIDE_PX for side in frames.shape[-2:])
        pyramid_bytes = 4 * (height * width) ** 2 * 4 // 3  # float32; the levels add up to 4/3 of the finest
        return max(1, min(self.pairs_per_batch, PYRAMID_BYTES // pyramid_bytes))

    @torch.no_grad()
    def _encode(
        self, encoder: Any, frames: UInt8[Tensor, "T 3 H W"], indices: Sequence[int]
    ) -> dict[int, Float[Tensor, "C h w"]]:
        """Each frame's encoding at 1/8 of the size."""
        encoded: dict[int, Tensor] = {}
        for batch in _batches(indices, self._batch_size(frames)):
            with self._autocast():
                maps = encoder(_network_input(frames[batch].to(self.device)))
            encoded.update(zip(batch, maps, strict=True))
        return encoded

    @torch.no_grad()
    def _refine(
        self,
        first: Float[Tensor, "P C h w"],
        second: Float[Tensor, "P C h w"],
        context: Float[Tensor, "P D h w"],
    ) -> Float[Tensor, "P 2 H W"]:
        """Flow of a batch of pairs: `iterations` updates at 1/8 of the size, then one upsampling."""
        network = self.network
        num_hidden = network.update_block.hidden_state_size
        hidden = torch.tanh(context[:, :num_hidden])
        context = F.relu(context[:, num_hidden:])
        network.corr_block.build_pyramid(first.float(), second.float())
        coordinates: Tensor = make_coords_grid(*first.shape[::2], first.shape[3], device=str(self.device))
        flow = torch.zeros_like(coordinates)
        for _ in range(self.iterations):
            correlation = network.corr_block.index_pyramid(centroids_coords=coordinates + flow)
            with self._autocast():
                hidden, delta = network.update_block(hidden, context, correlation, flow)
            flow = flow + delta.float()
        network.corr_block.corr_pyramid = []
        with self._autocast():
            mask = None if network.mask_predictor is None else network.mask_predictor(hidden)
        full_flow: Tensor = upsample_flow(flow, None if mask is None else mask.float())
        return full_flow

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")


def _batches(elements: Sequence[T], length: int) -> Iterator[list[T]]:
    """Runs of `length` elements, the last one shorter."""
    for begin in range(0, len(elements), length):
        yield list(elements[begin : begin + length])


def _padded(side_px: int) -> int:
    """The side of the network's input: a multiple of the stride, at least MIN_SIDE_PX."""
    return max(MIN_SIDE_PX, -(-side_px // STRIDE_PX) * STRIDE_PX)


def _network_input(frames: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    """Frames in [-1, 1], the last row and column repeated to a size that RAFT accepts."""
    height, width = frames.shape[-2:]
    return F.pad(
        frames.float() / 127.5 - 1, (0, _padded(width) - width, 0, _padded(height) - height), mode="replicate"
    )
