"""A clip's frames, decoded and resized to the size at which flow is estimated."""

import time

from pipeline.config import PrepareConfig
from pipeline.errors import GwmError
from pipeline.records import Row
from pipeline.stages.failure import failed_row
from pipeline.video import decode_frames, decode_images


def decode_clip(row: Row, config: PrepareConfig) -> Row:
    """Return the clip's row with `frames` uint8 [T, 3, H, W]; rows of other units pass unchanged."""
    if row["status"] != "planned":
        return row
    began = time.monotonic()
    size_and_time = {
        "height_px": row["height_px"],
        "width_px": row["width_px"],
        "timeout_s": config.decode.timeout_s,
    }
    try:
        if row["kind"] == "frames":
            frames = decode_images(row["frame_urls"], **size_and_time)
        else:
            frames = decode_frames(
                row["url"],
                row["pts"],
                seek_pts=row["seek_pts"],
                timed=row["timed"],
                num_threads=max(1, int(config.placement.decode_clip.num_cpus)),
                **size_and_time,
            )
    except GwmError:
        raise
    except Exception as error:
        return failed_row(row, "decode_clip", error)
    return {**row, "frames": frames, "seconds_decode_clip": time.monotonic() - began}
