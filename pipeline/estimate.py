"""How long a job takes and what it costs: from the rate of its own earlier run, else from rates measured elsewhere.

Where neither is known there is no estimate: nothing here is guessed.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from gwm_model.config import CONFIG_FILE
from pipeline import storage
from pipeline.config import PrepareConfig, SegmentConfig, TrainConfig
from pipeline.errors import GwmError
from pipeline.job_progress import PROGRESS_FILE
from pipeline.placement_config import StagePlacement
from pipeline.work_plan import Work

PRICE_VARIABLE = "GWM_PRICE_PER_HOUR"

CORES = "cores of an Intel Xeon (infra/performance.md)"
PAIR_PX, PAIR_ITERATIONS = 240 * 432, 12
CORE_S_OF_A_PAIR = {
    "raft_large": (2 / 1.67, f"1.67 pairs/s of raft_large at 240 x 432 with 12 iterations on 2 {CORES}"),
    "raft_small": (2 / 4.65, f"4.65 pairs/s of raft_small at 240 x 432 with 12 iterations on 2 {CORES}"),
    "dis": (2 / 38.4, f"19.2 frames/s of dis with both gaps at 240 x 428 on 2 {CORES}"),
}
CORE_S_OF_AN_IMAGE = (2 / 4.83, f"4.83 images/s of the default network without refinement on 2 {CORES}")
CORE_S_OF_A_STEP = (
    2 * 660 / 800,
    "11 minutes for 800 steps of the default network on 2 CPU cores (conf/train.yaml)",
)
STEP_IMAGES = 8
BYTES_OF_A_FRAME = (146_575_823 / 777, "0.19 MB a frame of 240 x 432 with both gaps (infra/scale.md)")
BYTES_OF_A_MASK = (320_000 / 777, "0.4 kB a mask (infra/scale.md)")

NO_PACE = (
    "nothing: no rate was measured for this network on such a machine. Start the job, stop it after some units, and "
    "ask again: what is done stays done, and its rate is then known"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast a job goes."""

    per_s: float
    """Frames, images or steps a second."""
    known_from: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """What an earlier run of the same job left: its pace, and the bytes of what it wrote."""

    pace: Pace | None = None
    bytes_per_frame: float | None = None


def of_prepare(config: PrepareConfig, work: Work, left: float) -> dict[str, Any]:
    """The estimate for the share of the work that is left."""
    earlier = earlier_run(config.output, work)
    flow, place = config.estimate_flow, config.placement.estimate_flow
    pace = earlier.pace
    if pace is None and flow.files is None and work.frames:
        core_s, setup = CORE_S_OF_A_PAIR[flow.estimator]
        iterations = 1.0 if flow.estimator == "dis" else flow.iterations / PAIR_ITERATIONS
        core_s *= len(flow.gaps) * iterations * work.decoded_px / work.frames / PAIR_PX
        pace = _on_cores(core_s, f"{setup}, times area, gaps and iterations", place, config.placement.address)
    num_bytes, wrote = BYTES_OF_A_FRAME
    num_bytes *= work.stored_px / max(1.0, work.frames) / PAIR_PX * len(flow.gaps) / 2
    return _estimate(pace, left * work.frames, earlier, num_bytes, f"{wrote}, times area and gaps")


def of_segment(config: SegmentConfig, work: Work, left: float) -> dict[str, Any]:
    """The estimate for the share of the work that is left; adaptation and pictures are not part of it."""
    earlier, place = earlier_run(config.output, work), config.placement.segment_images
    pace = earlier.pace
    if pace is None and _is_default(_segmenter_of(config.model)):
        core_s, setup = CORE_S_OF_AN_IMAGE
        core_s *= sum(scale**2 for scale in config.input_scales)
        pace = _on_cores(
            core_s, f"{setup}, times the area of the input's sizes", place, config.placement.address
        )
    return _estimate(pace, left * work.frames, earlier, *BYTES_OF_A_MASK)


def of_train(config: TrainConfig, steps_left: int) -> dict[str, Any]:
    """The estimate for the steps that are left."""
    pace = earlier_run(config.output, None).pace
    if pace is None and _is_default(asdict(config.segmenter)) and config.segmenter.backbone.frozen:
        core_s, setup = CORE_S_OF_A_STEP
        workers = replace(config.placement.train_worker, num_actors=config.num_workers)
        core_s *= config.batch_size / STEP_IMAGES
        pace = _on_cores(core_s, f"{setup}, times the batch", workers, config.placement.address)
    return _estimate(pace, steps_left, Earlier())


def steps_done(output: str) -> int:
    """Steps that an earlier run trained."""
    return int(_read(storage.join(output, PROGRESS_FILE)).get("done", 0))


def earlier_run(output: str, work: Work | None) -> Earlier:
    """What summary.json of an earlier run says, or else progress.json of one that was stopped."""
    summary, progress = (_read(storage.join(output, name)) for name in ("summary.json", PROGRESS_FILE))
    rates, rows = summary.get("rates", {}), summary.get("rows", summary.get("images", 0))
    per_s = rates.get("rows_per_s") or rates.get("images_per_s") or rates.get("steps_per_s")
    if per_s and summary["units"]["done"]:
        pace = Pace(per_s=per_s, known_from="the rate of the run before, in summary.json of the output")
        return Earlier(pace=pace, bytes_per_frame=summary.get("bytes", 0) / rows if rows else None)
    per_s = progress.get("per_s")
    if work is not None and work.units and progress.get("units_done") and progress["seconds"]:
        per_s = progress["units_done"] / progress["seconds"] * work.frames / work.units
    if per_s:
        return Earlier(
            pace=Pace(per_s=per_s, known_from="the rate of the run that was stopped, in progress.json")
        )
    return Earlier()


def _estimate(
    pace: Pace | None, count: float, earlier: Earlier, each_bytes: float = 0.0, wrote: str = ""
) -> dict[str, Any]:
    """Seconds, money and bytes for so many frames or steps, each with what it rests on."""
    said: dict[str, Any] = {}
    if pace is not None:
        said |= _time_and_cost(count / pace.per_s) | {"time_rests_on": pace.known_from}
    else:
        said |= {"seconds": None, "time_rests_on": NO_PACE}
    if earlier.bytes_per_frame is not None:
        each_bytes, wrote = earlier.bytes_per_frame, "the run before"
    if each_bytes:
        said |= {"bytes_written": round(count * each_bytes), "bytes_rest_on": wrote}
    return said


def _time_and_cost(seconds: float) -> dict[str, Any]:
    price = os.environ.get(PRICE_VARIABLE)
    if not price:
        return {"seconds": round(seconds)}
    try:
        return {"seconds": round(seconds), "cost": round(float(price) * seconds / 3600, 4)}
    except ValueError as error:
        raise GwmError(f"{PRICE_VARIABLE} must be a number, not '{price}'.") from error


def _on_cores(core_s: float, setup: str, place: StagePlacement, address: str | None) -> Pace | None:
    """The pace on this machine's cores, or on those of a stated number of workers; a GPU's is not known."""
    if place.num_gpus > 0:
        return None
    asked = None if place.num_actors is None else place.num_actors * place.num_cpus
    elsewhere = address or os.environ.get("RAY_ADDRESS")
    if elsewhere and asked is None:
        return None
    here = float(os.cpu_count() or 1)
    cores = here if asked is None else asked if elsewhere else min(asked, here)
    return Pace(per_s=cores / core_s, known_from=f"{setup}; {cores:g} CPUs here")


def _is_default(segmenter: Mapping[str, Any]) -> bool:
    """Whether a segmenter is as large as the one that was measured."""
    default = TrainConfig().segmenter
    sizes = (segmenter.get("architecture"), segmenter.get("height_px"), segmenter.get("width_px"))
    same = sizes == (default.architecture, default.height_px, default.width_px)
    return same and segmenter.get("backbone", {}).get("name") == default.backbone.name


def _segmenter_of(model: str) -> dict[str, Any]:
    return dict(_read(storage.join(model, CONFIG_FILE)).get("segmenter", {}))


def _read(url: str) -> dict[str, Any]:
    """A JSON file of ours; nothing where there is none, or none that can be read."""
    try:
        return dict(json.loads(storage.read_bytes(url))) if storage.exists(url) else {}
    except (GwmError, ValueError, TypeError):
        return {}
