import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from gwm_model.config import RefineConfig
from pipeline.config import EvaluateConfig
from pipeline.errors import GwmError
from pipeline.evaluate import evaluate
from pipeline.load_config import load_config
from pipeline.scenes import render_scene, write_davis_layout
from tests import few_workers


@pytest.mark.parametrize("method", ["matnet", "cut"])
def test_official_scores_of_published_masks(ray_local, test_data, tmp_path, capsys, method):
    """Every per-frame J and F that the DAVIS leaderboard lists (3 decimals, all frames but the ends)."""
    published = test_data / "davis_published"
    config = EvaluateConfig(
        dataset="davis2016",
        data=str(test_data / "DAVIS2016"),
        masks=str(published / f"{method}.zip"),
        output=str(tmp_path / "scores"),
        protocol="official",
    )
    summary = evaluate(config)
    assert "8 of the 20 sequences of davis2016 are not in" in capsys.readouterr().err
    table = pq.read_table(tmp_path / "scores" / "scores.parquet").to_pandas()
    official = json.loads((published / f"{method}_scores.json").read_text())
    assert set(table["sequence"]) == set(official)
    assert len(table) == 753
    for name, frames in table.groupby("sequence"):
        listed = np.array(official[name]["J"], float)
        assert frames["frame_index"].tolist() == list(range(1, len(listed) + 1))
        assert np.abs(frames["j"].to_numpy() - listed).max() <= 0.001
        assert np.abs(frames["f"].to_numpy() - np.array(official[name]["F"], float)).max() <= 0.003
        assert summary["sequences"][name] == pytest.approx(listed.mean(), abs=0.001)
    means = [np.array(scores["J"], float).mean() for scores in official.values()]
    assert summary["j_mean"] == pytest.approx(np.mean(means), abs=0.001)
    assert summary == json.loads((tmp_path / "scores" / "summary.json").read_text())


def test_a_model_gets_a_table_of_all_protocols(ray_local, tmp_path, tiny_model, capsys):
    write_davis_layout(tmp_path / "data", {f"s{n}": render_scene(n, num_frames=8) for n in (1, 2)})
    config = EvaluateConfig(
        dataset="davis2016",
        data=str(tmp_path / "data"),
        model=tiny_model,
        placement=few_workers.EVALUATE,
        output=str(tmp_path / "scores"),
        protocol="paper",
    )
    summary = evaluate(config)
    table = pq.read_table(tmp_path / "scores" / "scores.parquet")
    assert table["frame_index"].to_pylist() == [1, 2, 3, 4, 5, 6] * 2
    assert summary["protocol"] == "paper"
    assert summary["frames"] == 10
    assert set(summary["sequences"]) == {"s1", "s2"}
    protocols = summary["protocols"]
    assert protocols["oracle"]["j_mean"] >= protocols["paper"]["j_mean"] == summary["j_mean"]
    assert protocols["label_free"]["num_frames"] == {"s1": 6, "s2": 6}
    shown = capsys.readouterr().err
    assert all(word in shown for word in ("s1", "s2", "mean", "paper", "label_free", "oracle"))
    report = (tmp_path / "scores/report.html").read_text()
    assert report.count("<figure") == 10
    assert report.count('src="data:image/webp') == 10 * 4  # image, regions, mask, ground truth
    assert all(f"<title>{protocol}</title>" in report for protocol in protocols)


def test_a_frame_that_cannot_be_scored_is_one_sentence(ray_local, tmp_path, tiny_model):
    write_davis_layout(tmp_path / "data", {"s1": render_scene(1, num_frames=8)})
    (tmp_path / "data/JPEGImages/480p/s1/00003.jpg").write_bytes(b"broken")
    config = EvaluateConfig(
        dataset="davis2016",
        data=str(tmp_path / "data"),
        model=tiny_model,
        placement=few_workers.EVALUATE,
        output=str(tmp_path / "scores"),
    )
    with pytest.raises(GwmError, match=r"s1 cannot be scored: .*00003.jpg is not an image"):
        evaluate(config)
    assert not (tmp_path / "scores" / "summary.json").exists()


def test_missing_masks_are_named_before_anything_is_written(tmp_path):
    write_davis_layout(tmp_path / "data", {"s1": render_scene(1, num_frames=8)})
    (tmp_path / "masks/s1").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "masks/s1/00001.png"), np.zeros((4, 4), np.uint8))
    config = EvaluateConfig(
        dataset="davis2016",
        data=str(tmp_path / "data"),
        masks=str(tmp_path / "masks"),
        output=str(tmp_path / "scores"),
    )
    with pytest.raises(GwmError, match="holds no mask of s1/00002"):
        evaluate(config)
    assert not (tmp_path / "scores").exists()


def test_without_the_extra_of_the_crf_nothing_is_written(tmp_path, tiny_model, monkeypatch):
    write_davis_layout(tmp_path / "data", {"s1": render_scene(1, num_frames=4)})
    monkeypatch.setitem(sys.modules, "pydensecrf", None)  # as Python has a module that is not there
    config = EvaluateConfig(
        dataset="davis2016",
        data=str(tmp_path / "data"),
        model=tiny_model,
        placement=few_workers.EVALUATE,
        output=str(tmp_path / "scores"),
        refine=RefineConfig(method="crf"),
    )
    with pytest.raises(GwmError, match="needs the extra crf"):
        evaluate(config)
    assert not (tmp_path / "scores").exists()


def test_single_images_get_the_statistics_of_their_benchmarks(ray_local, tmp_path, tiny_model, capsys):
    """More images than a row has, so that the maximum of F_beta is one over several rows."""
    generator = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for number in range(66):
        picture = cv2.GaussianBlur(generator.integers(0, 255, (40, 50, 3), np.uint8), (9, 9), 4)
        cv2.imwrite(str(tmp_path / f"images/i{number}.png"), picture)
        cv2.imwrite(str(tmp_path / f"masks/i{number}.png"), 255 * (picture[..., 0] > 128).astype(np.uint8))
    config = EvaluateConfig(
        dataset="images",
        data=str(tmp_path),
        model=tiny_model,
        placement=few_workers.EVALUATE,
        output=str(tmp_path / "scores"),
    )
    summary = evaluate(config)
    table = pq.read_table(tmp_path / "scores" / "scores.parquet")
    assert table.num_rows == summary["frames"] == 66
    curves = np.array(table["f_beta_curve"].to_pylist())
    assert summary["max_f_beta"] == pytest.approx(curves.mean(0).max())
    assert summary["max_f_beta"] >= summary["f_beta"] - 1e-3
    for name in ("accuracy", "f_beta"):
        assert summary[name] == pytest.approx(np.mean(table[name]))
    shown = capsys.readouterr().err
    assert all(word in shown for word in ("accuracy", "F_beta", "max F_beta"))


def test_the_configuration_file_is_complete():
    words = ["data=d", "masks=m", "output=o"]
    config = load_config(EvaluateConfig, str(Path(__file__).parents[2] / "conf/evaluate.yaml"), words)
    assert config == EvaluateConfig(dataset="davis2016", data="d", masks="m", output="o")
