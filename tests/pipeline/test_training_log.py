from pathlib import Path

import pytest

from pipeline.errors import GwmError
from pipeline.progress import Progress
from pipeline.tracking import Tracker
from pipeline.training_log import TrainingLog
from pipeline.training_state import TrainingState


class Recorder(Tracker):
    """A tracker that keeps what it is given."""

    def __init__(self) -> None:
        super().__init__(None)
        self.steps: list[int | None] = []
        self.tags: list[object] = []
        self.pictures: list[object] = []

    def log_metrics(self, metrics, step=None) -> None:
        self.steps.append(step)

    def log_picture(self, name, encoded, step) -> None:
        self.pictures.append((name, encoded, step))

    def set_tags(self, tags) -> None:
        self.tags.append(tags)


def entry(step: int) -> dict[str, float]:
    return {"loss": 1.0 / step, "step": float(step)}


def test_each_step_and_each_sentence_is_recorded_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Workers that start again bring the history and repeat the steps after their checkpoint."""
    tracker, sentence = Recorder(), "the checkpoint of step 9 is damaged: fell back to step 2"
    with Progress(total=5, unit="steps") as progress:
        log = TrainingLog(str(tmp_path), tracker, progress)
        log.take({"state": TrainingState(), "begins": True})
        for step in (1, 2, 3):
            log.take({"values": entry(step)})
        for _ in range(2):
            state = TrainingState(step=2, history=[entry(1), entry(2)], fallbacks=[sentence])
            log.take({"state": state, "begins": True})
        for step in (3, 4):
            log.take({"values": entry(step)})
        log.take({"picture": b"jpeg", "step": 4})
        log.take({"state": TrainingState(step=5, history=[entry(step) for step in range(1, 6)])})
    assert tracker.steps == [1, 2, 3, 4, 5]
    said = capsys.readouterr().err
    assert said.count(f"gwm: {sentence}.\n") == 1
    assert said.count("goes on from step") == said.count("gwm: training goes on from step 2.\n") == 2
    assert tracker.tags == [{"gwm.fallback": sentence}]
    assert (tmp_path / "pictures" / "step_000004.jpg").read_bytes() == b"jpeg"
    assert tracker.pictures == [("regions", b"jpeg", 4)]
    log.check_finished()
    log.take({"state": TrainingState(step=3, stopped="Too many.")})
    with pytest.raises(GwmError, match="Too many"):
        log.check_finished()
