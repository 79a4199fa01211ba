"""Masks of a chunk's images by the fully connected CRF: what takes CPUs, beside the stage that holds the network."""

import time

import numpy as np
import torch

from pipeline.config import SegmentConfig
from pipeline.errors import GwmError
from pipeline.records import Row
from pipeline.stages.failure import failed_row
from pipeline.stages.segment_images import REGION_COLUMNS, chunk_masks


def refine_masks(row: Row, config: SegmentConfig) -> Row:
    """The row with `masks`, one MaskRow an image, instead of its regions; other rows pass unchanged.

    GwmError: the CRF's package is not installed.
    """
    if row["status"] != "planned":
        return row
    began = time.monotonic()
    try:
        regions, objects = (torch.from_numpy(np.array(row[name])) for name in REGION_COLUMNS)
        masks = chunk_masks(row, regions, objects, config)
    except GwmError:
        raise
    except Exception as error:
        return failed_row(row, "refine_masks", error)
    used = (*REGION_COLUMNS, *(() if config.write_png else ("pictures",)))
    kept = {name: value for name, value in row.items() if name not in used}
    return {**kept, "masks": masks, "seconds_refine_masks": time.monotonic() - began}
