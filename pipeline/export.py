"""gwm export: masks, flow or a segmenter in formats of other tools.

An export is written anew each time, file by file, each in one piece: equal inputs give equal bytes, and a run that was
killed is run again. What a format does not hold, an image without a mask, is counted in `errors`.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from pipeline import storage
from pipeline.config import ExportConfig
from pipeline.errors import GwmError
from pipeline.formats.coco import write_coco
from pipeline.formats.flow_folders import write_flo, write_kitti
from pipeline.formats.mask_folders import write_davis, write_png, write_youtube_vos
from pipeline.formats.network_files import write_onnx, write_torch_export
from pipeline.formats.tar_shards import write_webdataset
from pipeline.registered_model import with_model_at_hand
from pipeline.summary import show_summary

Writer = Callable[[ExportConfig], Counter[str]]

OF_MASKS: Mapping[str, Writer] = {
    "coco": write_coco,
    "png": write_png,
    "webdataset": write_webdataset,
    "davis": write_davis,
    "youtube_vos": write_youtube_vos,
}
OF_FLOW: Mapping[str, Writer] = {"flo": write_flo, "kitti": write_kitti}
OF_MODEL: Mapping[str, Writer] = {"torch_export": write_torch_export, "onnx": write_onnx}
MADE_OF = {"masks": OF_MASKS, "flow": OF_FLOW, "model": OF_MODEL}
WITH_IMAGES = ("webdataset", "davis", "youtube_vos")


def export(config: ExportConfig) -> dict[str, Any]:
    """Writes the format; returns the summary. GwmError for an unknown one, and where its input is missing."""
    began = time.monotonic()
    write = _writer(config)
    with with_model_at_hand(config) as at_hand:
        counts = write(at_hand)
    summary = {
        "command": "export",
        "format": config.format,
        "output": storage.absolute(config.output),
        **counts,
        "seconds": {"total": round(time.monotonic() - began, 3)},
    }
    show_summary(summary, None)
    return summary


def _writer(config: ExportConfig) -> Writer:
    """The function that writes the format, once it is known that it has all it needs and nothing else."""
    source = next((name for name, writers in MADE_OF.items() if config.format in writers), None)
    if source is None:
        known = ", ".join(name for writers in MADE_OF.values() for name in writers)
        raise GwmError(f"format={config.format} is not known: it is one of {known}.")
    for name in MADE_OF:
        if (getattr(config, name) is None) == (name == source):
            raise GwmError(
                f"format={config.format} is made of {source}: give {source}= and none of the others."
            )
    if config.images is None and config.format in WITH_IMAGES:
        raise GwmError(f"format={config.format} holds the images too: give images= as to gwm segment.")
    return MADE_OF[source][config.format]
