"""Guess What Moves: regions whose optical flow fits a simple motion, learned from video, found in single images.

Tensors in, tensors out, on one device. The names below are the public interface; they are imported when first
used, so that reading the configuration classes of `gwm_model.config` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gwm_model.checkpoint import load_segmenter, save_segmenter
    from gwm_model.merge import choose_foreground, merge_regions
    from gwm_model.motion import fit_motion
    from gwm_model.objective import motion_loss
    from gwm_model.optical_flow import load_flow_estimator
    from gwm_model.segmenter import Segmenter

__all__ = [
    "Segmenter",
    "choose_foreground",
    "fit_motion",
    "load_flow_estimator",
    "load_segmenter",
    "merge_regions",
    "motion_loss",
    "save_segmenter",
]

_MODULES = {
    "Segmenter": "segmenter",
    "choose_foreground": "merge",
    "fit_motion": "motion",
    "load_flow_estimator": "optical_flow",
    "load_segmenter": "checkpoint",
    "merge_regions": "merge",
    "motion_loss": "objective",
    "save_segmenter": "checkpoint",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
