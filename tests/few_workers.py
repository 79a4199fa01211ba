"""Few workers, for runs whose work is small: each run starts its own, and a start costs more than all their work."""

from pipeline.load_config import flatten
from pipeline.placement_config import (
    ClusterPlacement,
    EvaluatePlacement,
    PreparePlacement,
    SegmentPlacement,
    StagePlacement,
)

ACTOR = StagePlacement(num_cpus=0, num_actors=1)
TASK = StagePlacement(num_cpus=1)

PREPARE = PreparePlacement(plan_clips=TASK, decode_clip=TASK, estimate_flow=ACTOR, write_flow_shard=TASK)
SEGMENT = SegmentPlacement(
    plan_chunks=TASK, load_chunk=TASK, segment_images=ACTOR, refine_masks=TASK, write_mask_shard=TASK
)
EVALUATE = EvaluatePlacement(score_sequence=StagePlacement(num_actors=1))


def _words(placement: ClusterPlacement) -> list[str]:
    return [f"placement.{key}={value}" for key, value in flatten(placement).items() if value is not None]


WORDS = {"prepare": _words(PREPARE), "segment": _words(SEGMENT), "evaluate": _words(EVALUATE)}
"""For the command line."""
