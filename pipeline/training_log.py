"""What the driver makes of the workers' news: progress, MLflow, pictures, sentences."""

from pipeline import storage
from pipeline.errors import GwmError
from pipeline.events import Event
from pipeline.progress import Progress, say
from pipeline.tracking import Tracker
from pipeline.training_state import TrainingState


class TrainingLog:
    """Follows one run through restarts of its workers: each step and each sentence is recorded once."""

    def __init__(self, output: str, tracker: Tracker, progress: Progress):
        self.output = output
        self.tracker = tracker
        self.progress = progress
        self.state = TrainingState()
        self.logged_step = 0
        self.said: set[str] = set()

    def take(self, event: Event) -> None:
        """Records one event."""
        if "state" in event:
            self._follow(event["state"])
            if event.get("begins") and self.state.step:
                say(f"gwm: training goes on from step {self.state.step}.")
        elif "values" in event:
            self._log(event["values"])
        else:
            name = f"pictures/step_{event['step']:06d}.jpg"
            storage.write_bytes(storage.join(self.output, name), event["picture"])
            self.tracker.log_picture("regions", event["picture"], step=event["step"])

    def check_finished(self) -> None:
        """GwmError where the workers ended the run before its last step."""
        if self.state.stopped:
            raise GwmError(self.state.stopped)

    def _follow(self, state: TrainingState) -> None:
        """A state arrives when workers start and when they end; its history holds what a killed driver lost."""
        self.state = state
        for values in state.history:
            self._log(values)
        for sentence in state.fallbacks:
            if sentence not in self.said:
                say(f"gwm: {sentence}.")
                self.tracker.set_tags({"gwm.fallback": sentence})
                self.said.add(sentence)

    def _log(self, values: dict[str, float]) -> None:
        """Workers that start again from a checkpoint repeat the steps after it."""
        step = int(values["step"])
        if step > self.logged_step:
            self.logged_step = step
            self.tracker.log_metrics(values, step=step)
            self.progress.reach(step, loss=values.get("loss"))
