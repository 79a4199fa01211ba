"""The U-Net trained from scratch: the paper's small alternative to a transformer on pretrained features.

Four levels of two 3x3 convolutions with group normalisation, bilinear upsampling, skip connections; the paper
gives no widths, so the first level's is a setting.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = 5
MULTIPLE_PX = 2 ** (LEVELS - 1)
"""Sides that are multiples of this halve evenly from level to level; others do too, but unevenly."""


def convolutions(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3x3 convolutions, each with group normalisation and ReLU."""
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [
            nn.Conv2d(channels, outputs, 3, padding=1, bias=False),
            nn.GroupNorm(8, outputs),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """RGB images -> K mask logits at the input's size."""

    def __init__(self, num_masks: int, hidden_channels: int):
        super().__init__()
        widths = [hidden_channels * min(2**level, 8) for level in range(LEVELS)]
        self.down = nn.ModuleList(
            convolutions(inputs, outputs) for inputs, outputs in zip([3, *widths[:-1]], widths, strict=True)
        )
        self.up = nn.ModuleList(
            convolutions(deep + skip, skip) for deep, skip in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.output = nn.Conv2d(widths[0], num_masks, 1)

    def forward(
        self, images: Float[Tensor, "B 3 H W"]
    ) -> tuple[Float[Tensor, "B K H W"], Float[Tensor, "B C h w"]]:
        """Mask logits, and the deepest features; images are RGB in [0, 1]."""
        x = images * 2.0 - 1.0
        skips = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else F.max_pool2d(x, 2))
            skips.append(x)
        deepest = skips.pop()
        x = deepest
        for block in self.up:
            skip = skips.pop()
            upsampled = F.interpolate(x, size=skip.shape[2:], mode="bilinear", align_corners=False)
            x = block(torch.cat([upsampled, skip], 1))
        return self.output(x), deepest
