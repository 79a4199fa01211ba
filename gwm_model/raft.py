"""RAFT optical flow (Teed and Deng, ECCV 2020) on torchvision's modules; frames are encoded once.

Images enter in [-1, 1]. raft_large upsamples by convex combination, raft_small bilinearly, both once, after
the last update; until then everything stays at 1/8 of the size.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.optical_flow._utils import make_coords_grid, upsample_flow

from gwm_model.optical_flow import Pair
from gwm_model.raft_weights import weights_sha256

T = TypeVar("T")

STRIDE_PX = 8
MIN_SIDE_PX = 128
"""Smallest side of RAFT's input: its coarsest correlation level must keep two cells."""
PYRAMID_BYTES = 4 * 2**30
"""Correlation pyramids of one batch stay within this; at 1080p one pair takes 5.6 GB, and goes alone."""


class Raft:
    """Optical flow of frame pairs of one clip.

    A batch holds at most `pairs_per_batch` pairs, fewer where their correlation would pass PYRAMID_BYTES, and half as
    many after the device ran out of memory.
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
        # Channels last is faster for everything but the feature encoder, whose instance norm is slow in it.
        for part in (self.network.context_encoder, self.network.update_block, self.network.mask_predictor):
            if part is not None:
                part.to(memory_format=torch.channels_last)
        self.recurrent_units = _recurrent_units(self.network)
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

        def refined(batch: list[Pair]) -> Float[Tensor, "P 2 H W"]:
            return self._refine(
                torch.stack([features[first] for first, _ in batch]),
                torch.stack([features[second] for _, second in batch]),
                torch.stack([context[first] for first, _ in batch]),
            )

        for _, flows in self._in_batches(pairs, frames, refined):
            yield from flows[..., :height, :width]

    def _in_batches(
        self, elements: Sequence[T], frames: UInt8[Tensor, "T 3 H W"], compute: Callable[[list[T]], Tensor]
    ) -> Iterator[tuple[list[T], Tensor]]:
        """Batches with what `compute` makes of them; where memory runs out, half as many at once from then on."""
        done = 0
        while done < len(elements):
            batch = list(elements[done : done + self._batch_size(frames)])
            try:
                result = compute(batch)
            except torch.OutOfMemoryError:
                if len(batch) == 1:
                    raise
                result = None
            if result is None:  # outside of the handler, whose traceback holds tensors
                self.pairs_per_batch = len(batch) // 2
                torch.cuda.empty_cache()
                continue
            done += len(batch)
            yield batch, result

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

        def encoded(batch: list[int]) -> Tensor:
            with self._autocast():
                maps: Tensor = encoder(_network_input(frames[batch].to(self.device)))
            return maps

        return {
            frame: map_of_frame
            for batch, maps in self._in_batches(indices, frames, encoded)
            for frame, map_of_frame in zip(batch, maps, strict=True)
        }

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
        hidden = _channels_last(torch.tanh(context[:, :num_hidden]))
        with self._autocast():
            shares = [unit.context_shares(F.relu(context[:, num_hidden:])) for unit in self.recurrent_units]
        network.corr_block.build_pyramid(first.float(), second.float())
        coordinates: Tensor = make_coords_grid(*first.shape[::2], first.shape[3], device=str(self.device))
        flow = torch.zeros_like(coordinates)
        for _ in range(self.iterations):
            correlation = network.corr_block.index_pyramid(centroids_coords=coordinates + flow)
            with self._autocast():
                motion = network.update_block.motion_encoder(
                    _channels_last(flow), _channels_last(correlation)
                )
                for unit, share in zip(self.recurrent_units, shares, strict=True):
                    hidden = unit(hidden, motion, share)
                flow = flow + network.update_block.flow_head(hidden).float()
        network.corr_block.corr_pyramid = []
        with self._autocast():
            mask = None if network.mask_predictor is None else network.mask_predictor(hidden)
        full_flow: Tensor = upsample_flow(flow, None if mask is None else mask.float().contiguous())
        return full_flow

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")


class RecurrentUnit:
    """torchvision's ConvGRU with the context's share of its convolutions taken out of the update loop.

    A convolution is linear in its input channels (hidden state, context, motion), and the context stays the same in
    every update: a third of raft_large's gates is computed once. The two gates share one convolution.
    """

    def __init__(self, unit: Any, num_hidden: int, num_context: int):
        self._gates = SplitConvolution([unit.convz, unit.convr], num_hidden, num_context)
        self._candidate = SplitConvolution([unit.convq], num_hidden, num_context)

    def context_shares(self, context: Float[Tensor, "P D h w"]) -> tuple[Tensor, Tensor]:
        """What the context adds to the gates and to the candidate, biases included."""
        context = _channels_last(context)
        return self._gates.of_context(context), self._candidate.of_context(context)

    def __call__(
        self,
        hidden: Float[Tensor, "P C h w"],
        motion: Float[Tensor, "P M h w"],
        shares: tuple[Tensor, Tensor],
    ) -> Float[Tensor, "P C h w"]:
        """The next hidden state."""
        gates = torch.sigmoid(self._gates(torch.cat([hidden, motion], dim=1)) + shares[0])
        update, reset = gates.chunk(2, dim=1)
        candidate = torch.tanh(self._candidate(torch.cat([reset * hidden, motion], dim=1)) + shares[1])
        return (1 - update) * hidden + update * candidate


class SplitConvolution:
    """Convolutions of the same input, stacked; applied to the context and to the other channels separately."""

    def __init__(self, convolutions: Sequence[Any], num_hidden: int, num_context: int):
        weight = torch.cat([convolution.weight for convolution in convolutions])
        first_motion = num_hidden + num_context
        self._context = _channels_last(weight[:, num_hidden:first_motion])
        self._others = _channels_last(torch.cat([weight[:, :num_hidden], weight[:, first_motion:]], dim=1))
        self._bias = torch.cat([convolution.bias for convolution in convolutions])
        self._padding = convolutions[0].padding

    def of_context(self, context: Float[Tensor, "P D h w"]) -> Float[Tensor, "P E h w"]:
        """The context's share, with the bias."""
        return F.conv2d(context, self._context, self._bias, padding=self._padding)

    def __call__(self, others: Float[Tensor, "P C h w"]) -> Float[Tensor, "P E h w"]:
        """The share of the other channels."""
        return F.conv2d(others, self._others, padding=self._padding)


def _recurrent_units(network: Any) -> list[RecurrentUnit]:
    """The recurrent block's units: raft_large has a horizontal and a vertical one, raft_small one."""
    block = network.update_block.recurrent_block
    num_hidden = network.update_block.hidden_state_size
    num_context = network.context_encoder.output_dim - num_hidden
    units = [unit for unit in (block.convgru1, block.convgru2) if isinstance(unit, nn.Module)]
    return [RecurrentUnit(unit, num_hidden, num_context) for unit in units]


def _channels_last(maps: Tensor) -> Tensor:
    """The same values, the channels of a pixel side by side in memory."""
    return maps.contiguous(memory_format=torch.channels_last)


def _padded(side_px: int) -> int:
    """The side of the network's input: a multiple of the stride, at least MIN_SIDE_PX."""
    return max(MIN_SIDE_PX, -(-side_px // STRIDE_PX) * STRIDE_PX)


def _network_input(frames: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    """Frames in [-1, 1], the last row and column repeated to a size that RAFT accepts."""
    height, width = frames.shape[-2:]
    return F.pad(
        frames.float() / 127.5 - 1, (0, _padded(width) - width, 0, _padded(height) - height), mode="replicate"
    )
