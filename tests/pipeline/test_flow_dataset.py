from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from pipeline.dataset import Dataset
from pipeline.errors import GwmError
from pipeline.flow_dataset import FlowDataset, FrameReader, open_flow_dataset
from pipeline.manifest import ShardEntry
from pipeline.records import FLOW_SCHEMA_VERSION, decode_flow, decode_image


def prepared(stages, config) -> str:
    dataset = Dataset.open(config.output, kind="flow", config=config, schema_version=FLOW_SCHEMA_VERSION)
    stages.run(config)
    dataset.write_manifest()
    return config.output


def index_of(rows: list[int]) -> FlowDataset:
    shards = tuple(
        ShardEntry(unit=str(number), source="v", num_rows=count, num_bytes=1, sha256="")
        for number, count in enumerate(rows)
    )
    return FlowDataset(shards, (1, -1), Dataset(url="nowhere"))


def test_an_epoch_draws_each_frame_once() -> None:
    flow = index_of([3, 5, 1, 9])
    assert sorted(flow.epoch(seed=0, epoch=0)) == list(range(18))


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    flow = index_of([7, 30, 12])
    assert list(flow.epoch(1, 4)) == list(flow.epoch(1, 4))
    assert list(flow.epoch(1, 4)) != list(flow.epoch(1, 5))
    assert list(flow.epoch(1, 4)) != list(flow.epoch(2, 4))


def test_batches_from_a_later_step_are_the_later_batches() -> None:
    flow = index_of([3, 5, 9])
    everything = list(islice(flow.batches(0, 4, 0), 12))
    assert list(islice(flow.batches(0, 4, 7), 5)) == everything[7:]


def test_a_batch_larger_than_the_dataset_draws_frames_again() -> None:
    assert sorted(next(index_of([2, 1]).batches(0, 6, 0))) == [0, 0, 1, 1, 2, 2]


def test_frames_are_the_rows_of_the_shards(stages, make_video) -> None:
    make_video(num_frames=20)
    flow = open_flow_dataset(prepared(stages, stages.config()))
    reader, table = FrameReader(flow), stages.table(stages.config())
    first_rows = {shard.unit: first for shard, first in zip(flow.shards, flow.first_ids(), strict=True)}
    assert flow.num_frames == 20
    seen = []
    for shard in flow.shards:
        for row in range(shard.num_rows):
            frame = reader.read(int(first_rows[shard.unit]) + row)
            number = next(
                index
                for index, encoded in enumerate(table["image"].to_pylist())
                if np.array_equal(decode_image(encoded), frame.image)
            )
            seen.append(number)
            stored = table["flow_p1"].combine_chunks().to_numpy_ndarray()[number]
            assert np.array_equal(frame.flow[flow.gaps.index(1)], decode_flow(stored))
            assert frame.has_flow.tolist() == [number < 19, number > 0]
    assert sorted(seen) == list(range(20))


def test_a_folder_that_is_no_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GwmError, match="not a flow dataset"):
        open_flow_dataset(str(tmp_path))


def test_a_dataset_without_shards_is_refused(stages, make_video) -> None:
    make_video(num_frames=1)  # one frame has no flow: its video is in quarantine
    with pytest.raises(GwmError, match="is empty"):
        open_flow_dataset(prepared(stages, stages.config()))


def test_by_video_each_video_is_drawn_equally_often_and_its_frames_too() -> None:
    flow = index_of([2, 30, 4, 6])
    sources = ("a", "b", "a", "c")  # two shards of one video
    shards = (replace(shard, source=name) for shard, name in zip(flow.shards, sources, strict=True))
    flow = replace(flow, shards=tuple(shards))
    batches = islice(flow.batches(0, 100, 0, by_video=True), 90)
    drawn = np.bincount(np.concatenate(list(batches)), minlength=42)
    video = np.repeat(["a", "b", "a", "c"], [2, 30, 4, 6])
    for name, frames in (("a", 6), ("b", 30), ("c", 6)):
        expected = 9000 / 3 / frames
        assert np.abs(drawn[video == name] - expected).max() < 5 * np.sqrt(expected)


def test_by_video_batches_from_a_later_step_are_the_later_batches() -> None:
    flow = index_of([3, 5, 9])
    everything = list(islice(flow.batches(0, 4, 0, by_video=True), 12))
    assert list(islice(flow.batches(0, 4, 7, by_video=True), 5)) == everything[7:]
