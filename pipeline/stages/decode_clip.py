"""A clip's frames, decoded and resized to the size at which flow is estimated."""

import time

from pipeline.config import PrepareConfig
from pipeline.contained import contained
from pipeline.errors import GwmError
from pipeline.images import decode_images
from pipeline.records import Row
from pipeline.stages.failure import failed_row
from pipeline.video import decode_frames


def decode_clip(row: Row, config: PrepareConfig) -> Row:
    """Return the clip's row with `frames` uint8 [T, 3, H, W]; rows of other units pass unchanged."""
    if row["status"] != "planned":
        return row
    began = time.monotonic()
    size = {"height_px": row["height_px"], "width_px": row["width_px"]}
    try:
        if row["kind"] == "frames":
            frames = contained(config.decode, decode_images, list(row["frame_urls"]), **size)
        else:
            frames = contained(
                config.decode,
                decode_frames,
                row["url"],
                [int(stamp) for stamp in row["pts"]],
                seek_pts=row["seek_pts"],
                timed=row["timed"],
                num_threads=max(1, int(config.placement.decode_clip.num_cpus)),
                **size,
            )
    except GwmError:
        raise
    except Exception as error:
        return failed_row(row, "decode_clip", error)
    return {**row, "frames": frames, "seconds_decode_clip": time.monotonic() - began}
