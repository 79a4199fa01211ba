import json
import urllib.error
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

from pipeline import demo as page
from pipeline import demo_networks
from pipeline.config import EvaluateConfig, PrepareConfig, SegmentConfig, TrainConfig
from pipeline.demo import conf_file, demo
from pipeline.demo_networks import DemoNetworks, find_networks
from pipeline.errors import GwmError
from pipeline.load_config import load_config
from pipeline.scenes import render_scene, write_video
from tests import few_workers

FROM_SCRATCH = DemoNetworks(
    estimator="dis",
    estimator_weights="pretrained",
    estimator_reason="the test says so",
    backbone_weights=None,
    backbone_reason="the test says so",
)


@pytest.fixture
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is cached and nothing answers."""
    monkeypatch.delenv("GWM_RAFT_WEIGHTS", raising=False)
    monkeypatch.delenv("GWM_BACKBONE_WEIGHTS", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", tmp_path.joinpath("hub").as_posix)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)

    def unreachable(url: str, timeout: float) -> None:
        raise urllib.error.URLError(f"no route to {url} within {timeout} s")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    return tmp_path / "hub" / "checkpoints"


def test_without_weights_and_network_everything_is_learned_from_scratch(empty_caches: Path) -> None:
    networks = find_networks()
    assert (networks.estimator, networks.backbone_weights) == ("dis", None)
    assert "needs no weights" in networks.estimator_reason
    assert list(empty_caches.iterdir()) == []


def test_cached_weights_are_used(empty_caches: Path) -> None:
    empty_caches.mkdir(parents=True)
    name = Path(demo_networks._raft_url("raft_small")).name
    (empty_caches / name).write_bytes(b"weights")
    (empty_caches / f"{demo_networks.BACKBONE}.safetensors").write_bytes(b"weights")
    networks = find_networks()
    assert (networks.estimator, networks.estimator_weights) == ("raft_small", str(empty_caches / name))
    assert networks.backbone_weights == str(empty_caches / f"{demo_networks.BACKBONE}.safetensors")


@pytest.mark.parametrize(
    ("file", "name"), [("raft-small.pth", "raft_small"), ("raft-sintel-fp16.pth", "raft_large")]
)
def test_given_raft_weights_say_which_network_they_fit(
    empty_caches: Path, test_data: Path, monkeypatch: pytest.MonkeyPatch, file: str, name: str
) -> None:
    monkeypatch.setenv("GWM_RAFT_WEIGHTS", str(test_data / "weights" / file))
    assert find_networks().estimator == name


@pytest.mark.parametrize("variable", ["GWM_RAFT_WEIGHTS", "GWM_BACKBONE_WEIGHTS"])
def test_given_weights_that_are_missing_are_named(
    empty_caches: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "/nowhere/weights.pth")
    with pytest.raises(GwmError, match=rf"{variable}.*/nowhere/weights\.pth"):
        find_networks()


def test_download_keeps_only_the_file_that_was_meant(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "cache" / "weights"
    source.write_bytes(b"abc")
    assert not demo_networks._downloaded(source.as_uri(), target, sha256_start="0000")
    assert list(target.parent.iterdir()) == []
    assert demo_networks._downloaded(source.as_uri(), target, sha256_start="ba7816bf")
    assert target.read_bytes() == b"abc"


def test_download_that_takes_too_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "source").write_bytes(b"abc")
    monkeypatch.setattr(demo_networks, "DOWNLOAD_TIMEOUT_S", -1.0)
    assert not demo_networks._downloaded((tmp_path / "source").as_uri(), tmp_path / "weights")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
    ("name", "cls", "words"),
    [
        ("prepare.yaml", PrepareConfig, ["videos=a", "output=b"]),
        ("prepare_raft.yaml", PrepareConfig, ["videos=a", "output=b"]),
        ("train.yaml", TrainConfig, ["flow=a", "output=b"]),
        ("train_backbone.yaml", TrainConfig, ["flow=a", "output=b"]),
        ("segment.yaml", SegmentConfig, ["images=a", "model=b", "output=c"]),
        ("evaluate.yaml", EvaluateConfig, ["data=a", "masks=b", "output=c"]),
    ],
)
def test_every_file_of_conf_demo_fits_its_command(name: str, cls: type, words: list[str]) -> None:
    assert isinstance(load_config(cls, conf_file(name), words), cls)


def test_installed_values_are_found_without_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Installed:
        def match(self, pattern: str) -> bool:
            return pattern == "conf/demo/train.yaml"

        def locate(self) -> Path:
            return tmp_path / "share" / "train.yaml"

    monkeypatch.setattr(page, "__file__", str(tmp_path / "site-packages" / "pipeline" / "demo.py"))
    monkeypatch.setattr(page, "files", lambda _name: [Installed()])
    assert conf_file("train.yaml") == str(tmp_path / "share" / "train.yaml")
    with pytest.raises(GwmError, match="install gwm again"):
        conf_file("other.yaml")


def test_output_in_a_bucket_is_refused() -> None:
    with pytest.raises(GwmError, match="local folder"):
        demo("s3://bucket/demo")


@pytest.fixture
def small_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_local: None) -> Path:
    """Two small scenes, a few steps and few workers."""
    values = tmp_path / "conf"
    values.mkdir()
    for path in Path(conf_file("train.yaml")).parent.iterdir():
        (values / path.name).write_text(path.read_text())
    (values / "train.yaml").write_text(
        "segmenter: {architecture: unet, hidden_channels: 8, height_px: 32, width_px: 48}\n"
        "num_steps: 12\nbatch_size: 4\nlog_every_steps: 4\n"
    )
    for name, placement in (("prepare", few_workers.PREPARE), ("segment", few_workers.SEGMENT)):
        with (values / f"{name}.yaml").open("a") as file:
            yaml.safe_dump({"placement": asdict(placement)}, file)
    small = partial(render_scene, num_frames=10, height_px=60, width_px=108)
    monkeypatch.setattr(page, "render_scene", small)
    monkeypatch.setattr(page, "conf_file", lambda name: str(values / name))
    monkeypatch.setattr(page, "find_networks", lambda: FROM_SCRATCH)
    monkeypatch.setattr(page, "NUM_SCENES", 2)
    monkeypatch.setattr(page, "training_cpus", lambda: 1)
    return tmp_path


@pytest.mark.ray
def test_demo_on_scenes_ends_in_a_report_and_a_rerun_does_nothing_again(small_demo: Path) -> None:
    summary = demo(str(small_demo / "demo"))
    assert 0 <= summary["j_mean"] <= 1
    assert set(summary["sequences"]) == {"scene-0", "scene-1"}
    assert summary["units"]["quarantined"] == 0
    report = (small_demo / "demo" / "report.html").read_text()
    assert report.count("<figure") == 20  # every frame of two scenes
    assert report.count('src="data:image/webp') == 20 * 5 - 2  # no flow from the last frame of a scene
    assert all(words in report for words in ("the test says so", "scene-1", "J recall", "Training loss"))
    assert json.loads((small_demo / "demo" / "summary.json").read_text()) == summary

    videos = {path: path.stat().st_mtime_ns for path in (small_demo / "demo" / "videos").iterdir()}
    again = demo(str(small_demo / "demo"))
    assert {path: path.stat().st_mtime_ns for path in videos} == videos
    assert again["j_mean"] == summary["j_mean"]
    assert again["units"]["skipped"] == 2 + 1 + 2


@pytest.mark.ray
def test_demo_on_own_videos_has_no_score(small_demo: Path) -> None:
    (small_demo / "own").mkdir()
    write_video(small_demo / "own" / "holiday & co.mp4", render_scene(9, num_frames=6).frames)
    summary = demo(str(small_demo / "demo"), videos=str(small_demo / "own"))
    assert "j_mean" not in summary
    report = (small_demo / "demo" / "report.html").read_text()
    assert "holiday &amp; co.mp4, frame 1" in report
    assert "ground truth" not in report
    assert "J by sequence" not in report
