"""What a user sees on a cluster, from submit to resume; with GWM_TRANSCRIPT set, written into that file."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.scenes import render_scene, write_video

NUM_VIDEOS = 3
HEAD = """# A job on a cluster, from submit to resume

Made by `infra/scripts/cluster`, on one machine: a Ray head without CPUs, a second node with two, token authentication,
and SeaweedFS as the bucket. Names of buckets, ports and the clock are left out. The machine was shared: no time
here is a measurement.
"""
SHOWN_AS = (
    (r"\x1b\[\d+m", ""),
    (r"127\.0\.0\.1:\d+", "127.0.0.1:8265"),
    (r"s3://test-\w+", "s3://bucket"),
    (r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(,\d+|\+00:00)?", "(time)"),
)


class Transcript:
    """Commands as they were typed, with what they answered."""

    def __init__(self, cluster: Any, root: str) -> None:
        self.cluster, self.root = cluster, root
        self.text = HEAD

    def says(self, sentence: str) -> None:
        self.text += f"\n{sentence}\n"

    def gwm(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self._run(f"gwm {' '.join(words)}", sys.executable, "-m", "pipeline", *words)

    def ray(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self._run(f"ray {' '.join(words)}", str(Path(sys.executable).parent / "ray"), *words)

    def _run(self, typed: str, *command: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            env=self.cluster.environment | {"RAY_API_SERVER_ADDRESS": self.cluster.address},
        )
        shown = f"$ {typed}\n{done.stdout}[exit code {done.returncode}]\n"
        for pattern, replacement in SHOWN_AS:
            shown = re.sub(pattern, replacement, shown)
        self.text += f"\n```\n{shown}```\n"
        return done


def wait_until(holds: Callable[[], bool]) -> None:
    while not holds():  # pytest's own time limit ends it
        time.sleep(0.5)


@pytest.mark.slow
def test_submit_follow_status_resume(
    ray_cluster: Any, make_bucket: Callable[[], Any], tmp_path: Path
) -> None:
    root = make_bucket().url
    for seed in range(NUM_VIDEOS):
        scene = render_scene(seed, num_frames=12, height_px=64, width_px=112)
        write_video(tmp_path / f"{seed}.mp4", scene.frames)
    whole = [(tmp_path / f"{seed}.mp4").read_bytes() for seed in range(NUM_VIDEOS)]
    for seed, data in enumerate(whole):
        storage.write_bytes(f"{root}/videos/{seed}.mp4", data if seed else data[:200])

    shown = Transcript(ray_cluster, root)
    prepare = ("prepare", f"videos={root}/videos", f"output={root}/flow", "estimate_flow.estimator=dis")
    prepare = (*prepare, "decode.clip_frames=6", "placement.estimate_flow.num_actors=1")
    shown.says("`RAY_API_SERVER_ADDRESS`, `RAY_AUTH_MODE=token` and `RAY_AUTH_TOKEN` are set.")
    assert shown.gwm("submit", *prepare).returncode == 0
    shown.says("The same command again finds the job, and `--follow` shows its log. One video is broken.")
    assert shown.gwm("submit", *prepare, "--follow").returncode == 2
    assert shown.gwm("status").returncode == 0
    assert shown.gwm("status", f"{root}/flow").returncode == 0
    shown.says(
        "The broken video is replaced. The same command is the next attempt, and does what is missing."
    )
    storage.write_bytes(f"{root}/videos/0.mp4", whole[0])
    assert shown.gwm("submit", *prepare, "retry_quarantined=true", "--follow").returncode == 0
    assert shown.gwm("status", f"{root}/flow").returncode == 0
    shown.says("The flow is trained on, by a job too, which is stopped after its first checkpoint.")
    unet = ("segmenter.architecture=unet", "segmenter.height_px=48", "segmenter.width_px=80")
    train = ("train", f"flow={root}/flow", f"output={root}/model", *unet, "batch_size=2")
    train = (*train, "num_steps=100", "checkpoint_every_steps=20")
    submitted = shown.gwm("submit", *train)
    assert submitted.returncode == 0
    wait_until(lambda: any("/step_" in url for url in storage.list_files(f"{root}/model/training")))
    assert shown.gwm("status", f"{root}/model").returncode == 0
    assert shown.ray("job", "stop", submitted.stdout.splitlines()[-1]).returncode == 0
    assert shown.gwm("status").returncode == 0
    shown.says("The same command goes on from the last checkpoint.")
    resumed = shown.gwm("submit", *train, "--follow")
    assert resumed.returncode == 0
    assert re.search(r"training goes on from step [1-9]\d*\.", resumed.stdout)
    assert shown.gwm("status", f"{root}/flow", f"{root}/model").returncode == 0
    assert shown.gwm("status").returncode == 0
    assert ray_cluster.environment["RAY_AUTH_TOKEN"] not in shown.text
    if "GWM_TRANSCRIPT" in os.environ:
        Path(os.environ["GWM_TRANSCRIPT"]).write_text(shown.text)
