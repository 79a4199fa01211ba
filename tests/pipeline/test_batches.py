from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from threading import Event

import cv2
import numpy as np
import pytest
import torch

from gwm_model.config import ObjectiveConfig
from gwm_model.segmenter import build_segmenter
from gwm_model.training import TrainBatch
from pipeline.batches import BatchLoader, Share, flow_for_loss, made_ahead
from pipeline.config import SamplingConfig, TrainConfig
from pipeline.flow_dataset import open_flow_dataset
from pipeline.sample_cache import Sample, SampleCache, cache_folder
from pipeline.train import cache_name


@pytest.fixture
def make_loader(train_config: TrainConfig):
    flow, segmenter = open_flow_dataset(train_config.flow), build_segmenter(train_config.segmenter)

    def make(**changes: object) -> BatchLoader:
        config = replace(train_config, **changes)
        folder = cache_folder(config.cache.directory, cache_name(config, flow))
        return BatchLoader(flow, segmenter, SampleCache(folder, flow.num_frames, 10**7), config)

    return make


def shares(loader: BatchLoader, has_flow: list[bool], draws: int = 3000) -> np.ndarray:
    """How often each gap is drawn for a frame that has some of them."""
    flow = np.broadcast_to(np.arange(len(has_flow), dtype=np.float16)[:, None, None, None], (4, 2, 1, 1))
    sample = Sample(np.zeros((3, 1, 1), np.uint8), [], flow, np.array(has_flow))
    drawn = [int(loader.one_gap(sample, step, 0)[0, 0, 0]) for step in range(draws)]
    return np.bincount(drawn, minlength=len(has_flow)) / draws


def test_gaps_are_drawn_equally_often_or_as_the_published_code_draws_them(make_loader) -> None:
    uniform, first = make_loader(), make_loader(sampling=SamplingConfig(gaps="first_of_pair"))
    everywhere, at_the_end, once = [True] * 4, [False, False, True, True], [False, True, False, False]
    assert shares(uniform, everywhere) == pytest.approx([0.25] * 4, abs=0.04)
    assert shares(first, everywhere) == pytest.approx([1 / 2, 1 / 3, 1 / 6, 0], abs=0.04)
    assert shares(first, at_the_end).tolist() == [0, 0, 1, 0]
    assert shares(first, once).tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize(
    ("source", "target"), [((480, 854), (128, 224)), ((240, 427), (480, 854)), ((97, 131), (72, 128))]
)
def test_nearest_flow_is_opencvs_nearest(source: tuple[int, int], target: tuple[int, int]) -> None:
    flow = torch.randn(2, 2, *source, generator=torch.Generator().manual_seed(0))
    found = flow_for_loss(flow, target, ObjectiveConfig(flow_resize="nearest")).numpy()
    for gap, component in np.ndindex(2, 2):
        expected = cv2.resize(flow[gap, component].numpy(), target[::-1], interpolation=cv2.INTER_NEAREST)
        assert np.array_equal(found[gap, component], expected)


@pytest.mark.parametrize("resize", ["smooth", "nearest"])
def test_flow_on_the_objectives_own_grid_is_in_its_pixels(resize: str) -> None:
    flow = torch.tensor([3.0, -5.0]).view(1, 2, 1, 1).expand(1, 2, 40, 60)
    kept = flow_for_loss(flow, (10, 12), ObjectiveConfig(flow_resize=resize))
    scaled = flow_for_loss(flow, (10, 12), ObjectiveConfig(height_px=80, width_px=180, flow_resize=resize))
    assert kept.shape == (1, 2, 10, 12)
    torch.testing.assert_close(kept, flow[:, :, :10, :12])
    assert scaled.shape == (1, 2, 80, 180)
    torch.testing.assert_close(scaled[0, :, 5, 5], torch.tensor([9.0, -10.0]))


def test_batches_carry_flow_on_the_objectives_grid_and_are_kept_apart(make_loader, train_config) -> None:
    coarse = make_loader()
    finer = make_loader(objective=ObjectiveConfig(height_px=60, width_px=100))
    assert finer.cache.directory != coarse.cache.directory
    ids = next(coarse.frame_ids(train_config.batch_size, 0))
    assert coarse.batch(ids, 0, Share()).flow.shape == (4, 2, 48, 80)
    assert finer.batch(ids, 0, Share()).flow.shape == (4, 2, 60, 100)


def test_batches_know_how_far_training_is(make_loader) -> None:
    """Also those of a run that goes on from a checkpoint: what the objective asks for depends on it."""
    loader = make_loader(num_steps=40)
    ids = next(loader.frame_ids(4, 0))
    assert [loader.batch(ids, step, Share()).progress for step in (0, 20, 39)] == [0.0, 0.5, 39 / 40]


def test_sampling_by_video_reaches_the_batches(make_loader) -> None:
    by_video = make_loader(sampling=SamplingConfig(frames="by_video"))
    assert next(by_video.frame_ids(4, 3)) == next(by_video.flow.batches(0, 4, 3, by_video=True))
    assert next(by_video.frame_ids(4, 3)) != next(make_loader().frame_ids(4, 3))


def test_the_next_batch_is_made_while_one_is_in_use() -> None:
    started = [Event() for _ in range(5)]

    def batches() -> Iterator[TrainBatch]:
        for number, event in enumerate(started):
            event.set()
            yield TrainBatch(torch.full((1,), float(number)), [], torch.zeros(1))

    seen = []
    for number, batch in enumerate(islice(made_ahead(batches()), 4)):
        assert started[number + 1].wait(30)  # though nobody has asked for it
        seen.append(batch.images.item())
    assert seen == [0.0, 1.0, 2.0, 3.0]
