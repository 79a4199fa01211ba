"""Secrets are planted wherever a user can put them; then every byte that was written or said is searched."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from pipeline import storage
from pipeline.cli import main
from pipeline.config import PrepareConfig
from pipeline.dataset import Dataset
from pipeline.errors import GwmError
from pipeline.load_config import fingerprint, load_config
from pipeline.patient_s3 import PatientS3
from pipeline.report.page import Report, Sample, Undone, render
from pipeline.scenes import render_scene, write_davis_layout
from pipeline.storage_errors import without_secrets
from tests import few_workers

CANARIES = [f"canary-{number}-6f1d" for number in range(9)]
USER, PASSWORD, TOKEN, KEY, SECRET_KEY, SESSION_TOKEN, MLFLOW_PASSWORD, MLFLOW_TOKEN, HF_TOKEN = CANARIES

WEIGHTS = f"https://{USER}:{PASSWORD}@127.0.0.1:9/net.pth?token={TOKEN}&x=1"
TRACKING = f"http://{USER}:{PASSWORD}@127.0.0.1:9"
ENVIRONMENT = {
    "AWS_SESSION_TOKEN": SESSION_TOKEN,
    "MLFLOW_TRACKING_PASSWORD": MLFLOW_PASSWORD,
    "MLFLOW_TRACKING_TOKEN": MLFLOW_TOKEN,
    "HF_TOKEN": HF_TOKEN,
}


@pytest.fixture
def leaks(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], set[tuple[str, str]]]]:
    """Each canary found in what was said and in the files below the test's folder, with the place."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    said: list[str] = []

    def find() -> set[tuple[str, str]]:
        said.extend(capfd.readouterr())
        places = {"the terminal": "".join(said).encode()}
        places |= {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        places |= {str(path): str(path).encode() for path in tmp_path.rglob("*")}
        # the server's key is a secret too
        secrets = [*CANARIES, os.environ.get("AWS_SECRET_ACCESS_KEY", CANARIES[0])]
        return {
            (place, secret)
            for place, content in places.items()
            for secret in secrets
            if secret.encode() in content
        }

    PatientS3.clear_instance_cache()
    yield find
    PatientS3.clear_instance_cache()  # its clients hold the planted session token


@pytest.mark.usefixtures("ray_local", "tracked")
def test_commands_write_and_say_no_secret(
    leaks: Callable[[], set[tuple[str, str]]],
    tmp_path: Path,
    make_video: Callable[..., Path],
    tiny_model: str,
) -> None:
    make_video("good.mp4", num_frames=6)
    (tmp_path / "videos" / "broken.mp4").write_bytes(b"not a video")
    videos, flow, masks = (str(tmp_path / name) for name in ("videos", "flow", "masks"))
    words = [f"output={flow}", "estimate_flow.estimator=dis", f"estimate_flow.weights={WEIGHTS}"]
    assert main(["prepare", f"videos={videos}", *words, *few_workers.WORDS["prepare"]]) == 2
    assert Dataset.read(flow, kind="flow").description()["config"][
        "estimate_flow.weights"
    ] == without_secrets(WEIGHTS)
    assert (tmp_path / "flow" / "mlflow.db").stat().st_size
    network = ["architecture=unet", "num_masks=2", "height_px=32", "width_px=48", "hidden_channels=8"]
    words = [f"segmenter.{word}" for word in (*network, f"backbone.weights={WEIGHTS}")]
    words += ["num_steps=1", "batch_size=2", "picture_every_steps=1"]
    words += ["placement.address=auto"]  # on Ray Train, whose logs are searched too
    assert main(["train", f"flow={flow}", f"output={tmp_path}/model", *words]) == 0
    words = [f"model={tiny_model}", f"output={masks}", f"tracking.uri={TRACKING}"]
    words += few_workers.WORDS["segment"]
    assert main(["segment", f"images={videos}/good.mp4", *words]) == 0
    write_davis_layout(tmp_path / "davis", {"scene": render_scene(1, num_frames=6)})
    words = [
        "dataset=davis2016",
        f"data={tmp_path}/davis",
        f"model={tiny_model}",
        f"output={tmp_path}/scores",
    ]
    words += [f"merge.backbone.weights={WEIGHTS}", f"tracking.uri={TRACKING}"]
    words += few_workers.WORDS["evaluate"]
    assert main(["evaluate", *words]) == 0
    assert leaks() == set()
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    logs = {path: path.read_bytes() for path in (session / "logs").rglob("*") if path.is_file()}
    assert logs
    found = {
        (str(path), secret) for path, text in logs.items() for secret in CANARIES if secret.encode() in text
    }
    assert found == set()


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_errors_say_no_secret(
    debug: list[str], leaks: Callable[[], set[tuple[str, str]]], tmp_path: Path, s3: Any
) -> None:
    out = f"output={tmp_path}/out"
    bucket = f"s3://{KEY}:{SECRET_KEY}@no-such-bucket-here"
    for words in (
        ["prepare", f"videos={bucket}/videos", out],
        ["prepare", f"videos={tmp_path}", f"output={bucket}/flow"],
        ["prepare", f"videos={s3.url}/x?token={TOKEN}", out],
        ["prepare", f"videos={s3.url}", out, f"estimate_flow.weight={WEIGHTS}"],
        ["prepare", f"videos={s3.url}", out, f"estimate_flow.iterations={WEIGHTS}"],
        ["train", f"flow={bucket}/flow", out],
        ["train", f"flow=https://127.0.0.1:9/flow?token={TOKEN}", out],
        ["segment", f"images={tmp_path}", f"model={WEIGHTS}", out],
        ["evaluate", "dataset=davis2016", f"data={bucket}/davis", f"masks={bucket}/masks", out],
        ["verify", f"{bucket}/flow"],
    ):
        assert main([*words, *(debug)]) == 1, words
    assert leaks() == set()


def test_shown_configurations_hold_no_secret(
    leaks: Callable[[], set[tuple[str, str]]], tmp_path: Path
) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(b"x")
    words = [f"videos={tmp_path}/videos", f"output={tmp_path}/out", f"tracking.uri={TRACKING}"]
    words.append(f"estimate_flow.weights={WEIGHTS}")
    assert main(["prepare", "--print-config", *words]) == 0
    assert main(["prepare", "--dry-run", *words]) == 0
    assert leaks() == set()


def test_a_fingerprint_knows_the_whole_value_and_a_refusal_does_not_tell(tmp_path: Path) -> None:
    first, second = (
        load_config(
            PrepareConfig,
            None,
            ["videos=in", "output=out", f"estimate_flow.weights=https://h/w?token={token}"],
        )
        for token in ("first-token", "second-token")
    )
    assert fingerprint(first) != fingerprint(second)
    Dataset.open(str(tmp_path), kind="flow", config=first, schema_version=1)
    Dataset.open(str(tmp_path), kind="flow", config=first, schema_version=1)
    with pytest.raises(GwmError, match="the query of a URL") as refused:
        Dataset.open(str(tmp_path), kind="flow", config=second, schema_version=1)
    assert "token" not in str(refused.value)


def test_quarantine_and_report_show_urls_without_secrets(tmp_path: Path) -> None:
    dataset = Dataset(url=str(tmp_path))
    dataset.quarantine("a", source="a.mp4", stage="decode_clip", error=OSError(f"cannot reach {WEIGHTS}"))
    text = storage.read_bytes(dataset.quarantine_url("a")).decode()
    assert "cannot reach https://127.0.0.1:9/net.pth" in text
    report = Report(
        title="t",
        lead=f"made with {WEIGHTS}",
        facts={"weights": WEIGHTS},
        samples=[Sample(name=WEIGHTS, note=WEIGHTS, pictures={"image": None})] * 30,
        undone=[Undone(source=WEIGHTS, stage="load_chunk", reason=f"cannot reach {WEIGHTS}")],
        num_undone=1,
        links=[f"overlays/{WEIGHTS}"],
    )
    page = render(report)
    assert "https://127.0.0.1:9/net.pth" in page
    assert not [canary for canary in CANARIES if canary in text + page]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:p@ss@host/a?b=c&d=e.", "https://host/a"),
        ("s3://key:secret@bucket/a: gone", "s3://bucket/a: gone"),
        ('{"a": "https://h/x?t", "b": 1}', '{"a": "https://h/x", "b": 1}'),
        ("s3://bucket/clip-?.mp4", "s3://bucket/clip-?.mp4"),
        ("/data/clip?.mp4?x=1", "/data/clip?.mp4?x=1"),
        ("mail@example.org", "mail@example.org"),
    ],
)
def test_what_counts_as_a_secret(text: str, shown: str) -> None:
    assert without_secrets(text) == shown
