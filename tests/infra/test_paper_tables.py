import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import yaml

from pipeline.config import EvaluateConfig, TrainConfig
from pipeline.load_config import flatten, load_config

PROJECT = Path(__file__).parents[2]
PAPER = PROJECT / "conf" / "paper"
PUBLISHED = yaml.safe_load((PROJECT / "infra" / "paper" / "published.yaml").read_text())
RUN_HERE = [row for table in PUBLISHED["tables"] for row in table["rows"] if "train" in row]
SHARED = Path(os.environ.get("GWM_TEST_DATA", PROJECT / "../shared/data")).resolve()


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("paper_tables", PROJECT / "infra" / "paper" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["paper_tables"] = module  # dataclasses look for their module there
    spec.loader.exec_module(module)
    return module


def train_values(name: str) -> dict[str, object]:
    return flatten(load_config(TrainConfig, str(PAPER / f"{name}.yaml"), ["flow=f", "output=o"]))


def test_every_row_has_its_files_and_a_figure_for_each_column() -> None:
    for table in PUBLISHED["tables"]:
        for row in table["rows"]:
            assert len(row["published"]) == len(table["columns"]), row
            assert row.get("source") in PUBLISHED["sources"] or row["published"] == [None] * len(
                row["published"]
            )
    for row in RUN_HERE:
        assert (PAPER / f"{row['train']}.yaml").is_file()
        assert (PAPER / f"{row['evaluate']}.yaml").is_file()


def test_every_file_is_a_row_or_extended_by_one() -> None:
    used = {name for row in RUN_HERE for name in (row["train"], row["evaluate"])}
    assert {path.stem for path in PAPER.glob("*.yaml")} == used | {"prepare", "prepare_fbms"}


def test_rows_of_table_2_differ_from_table_1_by_what_their_name_says() -> None:
    base = train_values("train")
    for row in PUBLISHED["tables"][1]["rows"]:
        motion, regions = re.fullmatch(r"(\w+), K = (\d)", row["method"]).groups()
        named = {"objective.motion": motion, "segmenter.num_masks": int(regions)}
        assert train_values(row["train"]) == base | named


def test_the_values_are_those_of_the_published_code() -> None:
    values = train_values("train")
    assert values["objective.kind"] == "composite"
    assert (values["objective.height_px"], values["objective.width_px"]) == (480, 854)
    assert values["objective.flow_clip_px"] == 20
    assert values["segmenter.backbone.blocks"] == "[5, 7, 9, 11]"
    assert (values["segmenter.height_px"], values["segmenter.width_px"]) == (128, 224)
    assert values["optimizer.weight_decay"] == 0.01
    assert values["optimizer.poly_steps"] == 160_000
    merge = load_config(EvaluateConfig, str(PAPER / "evaluate.yaml"), ["data=d", "output=o"]).merge
    assert (merge.method, merge.backbone.name) == ("scikit_learn", "vit_small_patch8_224.dino")


def data_root(folder: Path) -> Path:
    """DAVIS2016 with three sequences of ten frames, and ECSSD with nine images."""
    images = [
        *(f"DAVIS2016/{kind}/480p/{name}/{number:05d}" for kind in ("JPEGImages", "Annotations")
          for name in ("blackswan", "camel", "dog") for number in range(10)),
        *(f"ECSSD/{kind}/{number:04d}" for kind in ("images", "masks") for number in range(9)),
    ]  # fmt: skip
    for image in images:
        path = folder / f"{image}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.zeros((8, 12, 3), np.uint8))
    return folder


def test_what_is_not_there_is_named_and_what_is_done_is_not_done_again(tables, tmp_path: Path) -> None:
    """With all scores in place no command runs; columns of absent data sets stay empty."""
    study = tables.Study(data=data_root(tmp_path / "data"), output=tmp_path / "out", words=tables.SMOKE)
    scores = {"paper": 0.7, "oracle": 0.8, "label_free": 0.6}
    summary = {
        "frames": 20,
        "missing_sequences": ["cows"],
        "protocols": {name: {"j_mean": j} for name, j in scores.items()},
        "accuracy": 0.9,
        "max_f_beta": 0.75,
    }
    for row in RUN_HERE:
        for data_set in ("DAVIS2016", "ECSSD"):
            folder = study.output / "scores" / f"{row['train']}-{row['evaluate']}" / data_set
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "summary.json").write_text(json.dumps(summary))
    page = "\n".join(tables.page_lines(study, [1, 2, 3], smoke=True))
    assert "SegTrackv2, FBMS, CUB, DUTS, OMRON." in page
    assert "| GWM, MaskFormer | 79.5 | 70.0 | 78.3 | — | 77.4 | — | gwm |" in page
    assert "| quadratic, K = 4 | 79.5 | 70.0 | 81.5 | 80.0 | gwm |" in page
    assert (
        "| 65.6 | — | 88.5 | 90.0 | 56.1 | 60.0 | 74.3 | 75.0 | 89.3 | — | 41.3 | — | 56.3 | — | gwm |"
        in page
    )
    assert "| SAGE | — | — | — | — | — | — | — |" in page
    assert "- DAVIS2016: 20 frames were scored; 1 sequences are not there." in page


def test_a_row_that_fails_says_why_and_the_others_go_on(tables, tmp_path: Path) -> None:
    study = tables.Study(
        data=tmp_path, output=tmp_path / "out", words={"train": [], "prepare": ["no_such_key=1"]}
    )
    (tmp_path / "DAVIS2016" / "JPEGImages" / "480p").mkdir(parents=True)
    row, notes = RUN_HERE[0], []
    assert tables.our_figure(study, row, "DAVIS2016", "paper", notes) == "failed"
    (note,) = notes
    assert "Unknown key 'no_such_key' in prepare" in note


def test_a_smoke_run_takes_a_few_frames_of_a_few_sequences(tables, tmp_path: Path) -> None:
    tables.smoke_copy(data_root(tmp_path / "data"), tmp_path / "copy")
    copied = sorted(path.relative_to(tmp_path / "copy") for path in (tmp_path / "copy").rglob("*.png"))
    assert len(copied) == 2 * 2 * 8 + 2 * 8
    assert {path.parts[3] for path in copied if path.parts[0] == "DAVIS2016"} == {"blackswan", "camel"}


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "DAVIS2016").is_dir(), reason="needs DAVIS2016 and ECSSD in GWM_TEST_DATA")
@pytest.mark.timeout(3600)
def test_a_smoke_run_on_real_data_fills_every_cell(tmp_path: Path) -> None:
    """About forty commands, each of which starts a Ray."""
    call = [PROJECT / "infra" / "paper" / "tables.py", "--data", SHARED, "--output", tmp_path, "--smoke"]
    done = subprocess.run([sys.executable, *call], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "tables.md").read_text()
    assert "failed" not in page
    (joint,) = [line for line in page.splitlines() if line.startswith("| GWM, joint |")]
    assert re.search(r"\| 56.1 \| \d+\.\d \|", joint)
