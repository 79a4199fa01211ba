"""The MaskFormer head (Cheng et al., 2021; Guess What Moves, Fig. 2): a pixel decoder and K queries.

As in the published code: a top-down pixel decoder over the backbone's maps, two upsamplings by 2, a query
decoder without encoder layers, mask logits as products of query embeddings and pixel embeddings, and no
classification. The optional image skip feeds colour at mask resolution past the coarse patch features, for
sharper boundaries.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

NUM_HEADS = 8
NORM_GROUPS = 8
UPSAMPLINGS = 2
IMAGE_CHANNELS = 16


def convolution(inputs: int, outputs: int, size: int) -> nn.Sequential:
    """A convolution with group normalisation and ReLU, keeping the resolution."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False),
        nn.GroupNorm(NORM_GROUPS, outputs),
        nn.ReLU(inplace=True),
    )


class PixelDecoder(nn.Module):
    """Backbone maps, shallow to deep, and the image -> pixel embeddings at 4 times the shallowest map's resolution."""

    def __init__(self, channels: list[int], hidden: int, image_skip: bool):
        super().__init__()
        self.deepest = convolution(channels[-1], hidden, 3)
        self.lateral = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, hidden, 1, bias=False), nn.GroupNorm(NORM_GROUPS, hidden))
            for width in channels[-2::-1]
        )
        self.smooth = nn.ModuleList(convolution(hidden, hidden, 3) for _ in channels[1:])
        self.tower = nn.ModuleList(convolution(hidden, hidden, 3) for _ in range(UPSAMPLINGS))
        self.image_skip = nn.ModuleList(
            nn.Sequential(convolution(3, IMAGE_CHANNELS, 3), convolution(IMAGE_CHANNELS, hidden, 3))
            if image_skip
            else nn.Identity()
            for _ in range(UPSAMPLINGS)
        )
        self.uses_image = image_skip
        self.output = nn.Conv2d(hidden, hidden, 1)

    def forward(self, features: list[Tensor], images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        """Pixel embeddings."""
        x = self.deepest(features[-1])
        for lateral, smooth, feature in zip(self.lateral, self.smooth, features[-2::-1], strict=True):
            x = smooth(lateral(feature) + F.interpolate(x, size=feature.shape[2:], mode="nearest"))
        for tower, skip in zip(self.tower, self.image_skip, strict=True):
            x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
            if self.uses_image:
                x = x + skip(
                    F.interpolate(
                        images, size=x.shape[2:], mode="bilinear", align_corners=False, antialias=True
                    )
                )
            x = tower(x)
        embeddings: Tensor = self.output(x)
        return embeddings


class QueryLayer(nn.Module):
    """One layer of the query decoder: queries attend to each other, then to the image, then pass a small network."""

    def __init__(self, hidden: int):
        super().__init__()
        self.self_attention = nn.MultiheadAttention(hidden, NUM_HEADS, dropout=0.1, batch_first=True)
        self.cross_attention = nn.MultiheadAttention(hidden, NUM_HEADS, dropout=0.1, batch_first=True)
        self.network = nn.Sequential(nn.Linear(hidden, 4 * hidden), nn.ReLU(), nn.Linear(4 * hidden, hidden))
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(3))

    def forward(self, x: Tensor, queries: Tensor, memory: Tensor, position: Tensor) -> Tensor:
        """X [B, K, C] after the layer; `queries` and `position` are added wherever attention compares."""
        attended = self.self_attention(x + queries, x + queries, x, need_weights=False)[0]
        x = self.norms[0](x + attended)
        attended = self.cross_attention(x + queries, memory + position, memory, need_weights=False)[0]
        x = self.norms[1](x + attended)
        result: Tensor = self.norms[2](x + self.network(x))
        return result


class QueryDecoder(nn.Module):
    """Deepest backbone map -> K mask embeddings [B, K, C]."""

    def __init__(self, channels: int, hidden: int, num_masks: int, num_layers: int):
        super().__init__()
        self.project = nn.Conv2d(channels, hidden, 1)
        self.queries = nn.Parameter(torch.randn(num_masks, hidden))
        self.layers = nn.ModuleList(QueryLayer(hidden) for _ in range(num_layers))
        self.norm = nn.LayerNorm(hidden)
        self.mask_embedding = nn.Sequential(
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
        )

    def forward(self, feature: Float[Tensor, "B C h w"]) -> Float[Tensor, "B K D"]:
        """Mask embeddings."""
        memory = self.project(feature)
        position = sine_position(*memory.shape[1:], device=memory.device).flatten(1).T[None]
        memory = memory.flatten(2).mT
        queries = self.queries[None].expand(memory.shape[0], -1, -1)
        x = torch.zeros_like(queries) if self.layers else queries
        for layer in self.layers:
            x = layer(x, queries, memory, position)
        embeddings: Tensor = self.mask_embedding(self.norm(x))
        return embeddings


def sine_position(channels: int, height: int, width: int, *, device: torch.device) -> Float[Tensor, "C h w"]:
    """Sine position encoding, half of the channels for the row and half for the column, normalised to one period."""
    frequencies = 10000.0 ** (-torch.arange(0, channels // 4, device=device) / (channels // 4))
    encoded = []
    for length in (height, width):
        phase = (torch.arange(length, device=device) + 0.5)[:, None] / length * 2 * math.pi * frequencies
        encoded.append(torch.cat([phase.sin(), phase.cos()], 1).T)
    rows, columns = encoded
    return torch.cat([rows[:, :, None].expand(-1, -1, width), columns[:, None, :].expand(-1, height, -1)])


class MaskFormerHead(nn.Module):
    """Backbone maps and the image -> K mask logits."""

    def __init__(
        self, channels: list[int], *, hidden: int, num_masks: int, num_layers: int, image_skip: bool
    ):
        super().__init__()
        self.pixel_decoder = PixelDecoder(channels, hidden, image_skip)
        self.query_decoder = QueryDecoder(channels[-1], hidden, num_masks, num_layers)

    def forward(self, features: list[Tensor], images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K h w"]:
        """Mask logits at 4 times the resolution of the shallowest map; images are RGB in [0, 1]."""
        pixels = self.pixel_decoder(features, images)
        queries = self.query_decoder(features[-1])
        return torch.einsum("bkc,bchw->bkhw", queries, pixels) / math.sqrt(pixels.shape[1])
