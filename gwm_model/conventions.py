"""The axis, sign and unit rules of the whole project, and the pixel grid that follows from them.

B images, K regions, C channels, H rows, W columns, P = H * W pixels, M terms of a motion model.

Images are RGB, `[..., 3, H, W]`. Flow is `[..., 2, H, W]`: component 0 is dx, positive to the right; component 1 is dy,
positive downwards; both in pixels of the array that holds them, from a frame to the frame `gap` later.
Coordinates are pixel centres, x along the columns and y along the rows, centred on the image and scaled so that
its edges lie at -1 and +1.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def pixel_grid(height: int, width: int, *, device: torch.device | str = "cpu") -> Float[Tensor, "2 H W"]:
    """Coordinates of the pixel centres in (-1, 1), float64: [0] = x to the right, [1] = y downwards."""
    x = (torch.arange(width, dtype=torch.float64, device=device) + 0.5) * (2.0 / width) - 1.0
    y = (torch.arange(height, dtype=torch.float64, device=device) + 0.5) * (2.0 / height) - 1.0
    return torch.stack(torch.meshgrid(x, y, indexing="xy"))
