"""Checkpoints: whole ones are restored bit for bit, damaged ones passed over, foreign ones refused."""

import hashlib
import pickle
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from gwm_model.config import SegmenterConfig
from gwm_model.segmenter import Segmenter, build_segmenter
from pipeline import storage
from pipeline.config import TrainConfig
from pipeline.training_state import Checkpoints, TrainingState, from_bytes, step_of


class Exploit:
    """Pickled, it creates a file as soon as it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.marker,)


def trained() -> tuple[Segmenter, torch.optim.Optimizer]:
    """A small segmenter and its optimiser after two steps."""
    segmenter = build_segmenter(
        SegmenterConfig(architecture="unet", height_px=32, width_px=32, hidden_channels=8)
    )
    optimizer = torch.optim.AdamW(segmenter.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        segmenter(torch.rand(1, 3, 32, 32)).square().mean().backward()
        optimizer.step()
    return segmenter, optimizer


def test_a_checkpoint_brings_everything_back(tmp_path: Path) -> None:
    (segmenter, optimizer), checkpoints = trained(), Checkpoints(str(tmp_path))
    entry = {"loss": 1 / 3, "step": 1.0}
    state = TrainingState(step=2, bad_batches=1, history=[entry], recent=[entry], fallbacks=["a sentence"])
    checkpoints.write(segmenter, optimizer, state)
    found, damaged = Checkpoints(str(tmp_path)).newest()
    assert found is not None
    assert damaged == []
    other, other_optimizer = trained()
    assert asdict(from_bytes(found.content, other, other_optimizer)) == asdict(state)
    for left, right in zip(other.state_dict().values(), segmenter.state_dict().values(), strict=True):
        assert torch.equal(left, right)
    kept, restored = optimizer.state_dict()["state"], other_optimizer.state_dict()["state"]
    assert kept.keys() == restored.keys()
    for index, values in kept.items():
        assert values.keys() == restored[index].keys()
        assert all(torch.equal(values[key], restored[index][key]) for key in values)


def test_the_newest_two_are_kept_and_other_files_left_alone(tmp_path: Path) -> None:
    (segmenter, optimizer), checkpoints = trained(), Checkpoints(str(tmp_path))
    (tmp_path / "notes.txt").write_text("mine")
    for step in (1, 2, 3):
        checkpoints.write(segmenter, optimizer, TrainingState(step=step))
    names = sorted(path.name.partition("-")[0] for path in tmp_path.iterdir())
    assert names == ["notes.txt", "step_000000002", "step_000000003"]


def test_checkpoints_in_a_bucket(s3) -> None:
    (segmenter, optimizer), checkpoints = trained(), Checkpoints(storage.join(s3.url, "training"))
    for step in (1, 2, 3):
        checkpoints.write(segmenter, optimizer, TrainingState(step=step))
    older, newest = storage.list_files(checkpoints.url)
    storage.write_bytes(newest, storage.read_bytes(newest)[:1000])
    found, damaged = Checkpoints(checkpoints.url).newest()
    assert found is not None
    assert older.endswith(found.name)
    assert [step_of(name) for name in (found.name, *damaged)] == [2, 3]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, flip_a_bit, empty])
def test_a_run_falls_back_to_the_checkpoint_before_and_says_so(
    damage: Callable[[Path], None], train_config: TrainConfig, one_process
) -> None:
    """The result is that of a run that nothing happened to."""
    whole = replace(train_config, output=train_config.output + "-whole")
    expected = one_process.train(whole)[-1]["state"]
    one_process.interrupt(train_config, in_step=8)
    older, newest = sorted(Path(train_config.output, "training").iterdir())
    damage(newest)
    state = one_process.train(train_config)[-1]["state"]
    assert state.fallbacks == [f"the checkpoint of step 6 ({newest.name}) is damaged: fell back to step 3"]
    assert [entry["loss"] for entry in state.history] == [entry["loss"] for entry in expected.history]
    names = ("segmenter.safetensors", "segmenter.json")
    assert all(
        Path(train_config.output, name).read_bytes() == Path(whole.output, name).read_bytes()
        for name in names
    )
    left = sorted(path.name[:14] for path in Path(train_config.output, "training").iterdir())
    assert left == ["step_000000009", "step_000000012"]
    assert not older.exists()


def test_without_a_whole_checkpoint_a_run_starts_anew_and_says_so(
    train_config: TrainConfig, one_process
) -> None:
    one_process.interrupt(train_config, in_step=8)
    for path in Path(train_config.output, "training").iterdir():
        cut(path)
    events = one_process.train(train_config)
    first = next(event for event in events if "values" in event)
    assert first["values"]["step"] == 1
    sentences = events[-1]["state"].fallbacks
    assert [sentence.rpartition(": ")[2] for sentence in sentences] == [
        "no other is whole, so it starts at step 0"
    ] * 2


def test_a_checkpoint_with_code_in_it_is_not_loaded(
    train_config: TrainConfig, one_process, tmp_path: Path
) -> None:
    """Named by its own content, as a forger would name it; with torch's archive around the pickle, and without."""
    marker = tmp_path / "executed"
    one_process.interrupt(train_config, in_step=8)
    folder = Path(train_config.output, "training")
    torch.save({"state": Exploit(marker)}, tmp_path / "exploit.pt")
    exploits = [pickle.dumps(Exploit(marker)), (tmp_path / "exploit.pt").read_bytes()]
    for step, content in enumerate(exploits, 7):
        name = f"step_{step:09d}-{hashlib.sha256(content).hexdigest()}.safetensors"
        (folder / name).write_bytes(content)
    state = one_process.train(train_config)[-1]["state"]
    assert len(state.fallbacks) == 2
    assert all(sentence.endswith("fell back to step 6") for sentence in state.fallbacks)
    assert not marker.exists()
    pickle.loads(exploits[0])
    assert marker.exists()  # the exploit is a real one
