"""Masks along the image's edges: the fully connected CRF against our guided filter, on the same frames and one core.

The masks are ground truth on a grid of 72 x 128, soft, and blurred by two cells. Ours must bring them nearer to the
ground truth than interpolation does. The CRF does so with a trained network's masks (infra/lab-notebook.md), but eats
into masks as unsure of themselves as these. Says nothing where the extra crf is not installed.
"""

import sys
from importlib.util import find_spec

import cv2
import numpy as np
import torch
from common import DATA, davis_frames, read_frames, report, rounded, side_by_side
from torch.nn import functional

from gwm_model.config import RefineConfig
from gwm_model.crf import crf_upsample
from gwm_model.refine import guided_upsample
from pipeline.metrics import binary_mask, boundary_f, jaccard

HEIGHT_PX, WIDTH_PX = 480, 854
GRID = (72, 128)


def material() -> tuple[torch.Tensor, torch.Tensor]:
    """The middle frame of every sequence, RGB in [0, 1] [B, 3, H, W], and its ground truth [B, 1, H, W]."""
    sequences = sorted(path.name for path in (DATA / "DAVIS2016/JPEGImages/480p").iterdir())
    paths = [frames[len(frames) // 2] for frames in map(davis_frames, sequences)]
    annotations = DATA / "DAVIS2016/Annotations/480p"
    stored = [cv2.imread(str(annotations / path.parent.name / f"{path.stem}.png"), 0) for path in paths]
    truth = np.stack(
        [cv2.resize(mask, (WIDTH_PX, HEIGHT_PX), interpolation=cv2.INTER_NEAREST) for mask in stored]
    )
    images = torch.from_numpy(read_frames(paths, HEIGHT_PX, WIDTH_PX)).permute(0, 3, 1, 2).float() / 255
    return images, torch.from_numpy(np.stack([binary_mask(mask) for mask in truth]))[:, None]


def coarse(truth: torch.Tensor) -> torch.Tensor:
    """Both regions' probabilities on the network's grid."""
    cells = functional.interpolate(truth.float(), GRID, mode="bilinear", antialias=True)
    soft = functional.avg_pool2d(cells, 5, stride=1, padding=2, count_include_pad=False)
    return torch.cat([1 - soft, soft], 1)


def scores(probability: torch.Tensor, truth: torch.Tensor) -> tuple[float, float]:
    """Mean J and F of the object."""
    pairs = list(zip((probability[:, 1] > 0.5).numpy(), truth[:, 0].numpy(), strict=True))
    return float(np.mean([jaccard(*pair) for pair in pairs])), float(
        np.mean([boundary_f(*pair) for pair in pairs])
    )


def main() -> None:
    """Prints one JSON line."""
    if find_spec("pydensecrf") is None:
        print('refine is left out: the CRF needs the extra crf: pip install "gwm[crf]"', file=sys.stderr)
        return
    torch.set_num_threads(1)
    images, truth = material()
    masks, config = coarse(truth), RefineConfig(method="guided_filter")
    compared = side_by_side(
        lambda: crf_upsample(masks, images), lambda: guided_upsample(masks, images, config), rounds=3
    )
    plain = functional.interpolate(masks, images.shape[-2:], mode="bilinear")
    ways = {"interpolated": plain, "crf": compared.expected, "guided_filter": compared.result}
    found = {name: scores(way, truth) for name, way in ways.items()}
    if found["guided_filter"] <= found["interpolated"]:
        raise SystemExit(f"the guided filter is no better than interpolation: {found}")
    report(
        "refine",
        f"{len(images)} DAVIS frames of {HEIGHT_PX} x {WIDTH_PX}, masks of {GRID[0]} x {GRID[1]}",
        "times the CRF's frames/s",
        compared.ratio,
        at_least=10,
        **rounded(
            crf_ms_per_frame=1e3 * compared.reference_s / len(images),
            guided_filter_ms_per_frame=1e3 * compared.ours_s / len(images),
        ),
        **rounded(**{f"j_{name}": j for name, (j, _) in found.items()}),
        **rounded(**{f"f_{name}": f for name, (_, f) in found.items()}),
    )


if __name__ == "__main__":
    main()
