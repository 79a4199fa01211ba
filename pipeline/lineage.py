"""Which datasets and models a run shares with others: MLflow's pages lead from one to the next by them."""

from pipeline import storage
from pipeline.config import EvaluateConfig
from pipeline.dataset import Dataset
from pipeline.model_card import ModelCard
from pipeline.tracking import Tracker


def link_scored(tracker: Tracker, config: EvaluateConfig, card: ModelCard | None) -> None:
    """Names what evaluate scores: a model, or a dataset of masks and the model that made them."""
    if card is not None:
        tracker.use_model(card.sha256)
    elif config.masks is not None and storage.exists(storage.join(config.masks, "dataset.json")):
        masks = Dataset.read(config.masks, kind="masks")
        tracker.log_dataset(masks.url, masks.manifest(), context="evaluation")
        tracker.use_model(str(masks.description()["config"].get("model_sha256")))
