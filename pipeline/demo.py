"""gwm demo: the four commands on rendered scenes, or on the user's videos, and a report to look at."""

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from importlib.metadata import files
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.config import EvaluateConfig, PrepareConfig, SegmentConfig, TrainConfig
from pipeline.demo_networks import DemoNetworks, find_networks
from pipeline.demo_report import make_report
from pipeline.errors import GwmError
from pipeline.evaluate import evaluate
from pipeline.load_config import load_config
from pipeline.placement import start_ray, training_cpus
from pipeline.placement_config import ClusterPlacement
from pipeline.prepare import prepare
from pipeline.progress import say
from pipeline.report.page import NAME, write_report
from pipeline.report.samples import strip_picture
from pipeline.scenes import Scene, render_scene, write_davis_layout, write_video
from pipeline.segment import segment
from pipeline.summary import version, write_json
from pipeline.train import train

NUM_SCENES = 8

Summaries = Mapping[str, Mapping[str, Any]]
"""The summary of each command that ran."""
Below = Callable[[str], str]
"""The path of a name below the demo's output."""


def demo(output: str, videos: str | None = None) -> dict[str, Any]:
    """Runs everything below `output` and writes report.html and report.jpg there; returns a summary. A rerun continues.

    The rendered scenes' truth is known, and the summary has their J as `j_mean`; `videos` have none.
    """
    if not storage.is_local(output):
        raise GwmError(f"The demo writes to a local folder, not to {output}.")
    began = time.monotonic()
    below = partial(storage.join, storage.absolute(output))
    networks = chosen_networks(below("demo.json"))
    say(f"Optical flow: {networks.estimator}, because {networks.estimator_reason}.")
    say(f"Segmenter: {segmenter_name(networks)}, because {networks.backbone_reason}.")
    if videos is None:
        write_scenes(below("videos"), below("truth"))
    summaries = run_commands(networks, videos, below)
    ran = facts(networks, videos, time.monotonic() - began)
    report = make_report(source_of(videos, below), summaries, below, ran)
    write_report(below(NAME), report)
    picture = strip_picture(report.samples)
    if picture is not None:
        storage.write_bytes(below("report.jpg"), picture)
    summary = demo_summary(networks, summaries, below, time.monotonic() - began)
    say(f"Report: {below('report.html')}")
    return summary


def run_commands(networks: DemoNetworks, videos: str | None, below: Below) -> dict[str, dict[str, Any]]:
    """prepare, train, segment and, where there is a truth, evaluate; each skips what an earlier run did."""
    source = source_of(videos, below)
    flow, model, masks = below("flow"), below("model"), below("masks")
    start_ray(ClusterPlacement())
    say("1. gwm prepare: videos -> frames with optical flow")
    summaries = {"prepare": prepare(prepare_config(networks, [f"videos={source}", f"output={flow}"]))}
    say("2. gwm train: flow -> segmenter")
    summaries["train"] = train(train_config(networks, [f"flow={flow}", f"output={model}"]))
    say("3. gwm segment: videos -> masks")
    words = [f"images={source}", f"model={model}", f"output={masks}"]
    summaries["segment"] = segment(load_config(SegmentConfig, conf_file("segment.yaml"), words))
    if videos is None:
        say("4. gwm evaluate: masks and truth -> J")
        words = [f"data={below('truth')}", f"masks={masks}", f"output={below('scores')}"]
        summaries["evaluate"] = evaluate(load_config(EvaluateConfig, conf_file("evaluate.yaml"), words))
    return summaries


def source_of(videos: str | None, below: Below) -> str:
    """The videos: the user's, or the rendered ones."""
    return storage.absolute(videos) if videos else below("videos")


def prepare_config(networks: DemoNetworks, words: list[str]) -> PrepareConfig:
    """The values of prepare, with the flow estimator that was found."""
    if networks.estimator == "dis":
        return load_config(PrepareConfig, conf_file("prepare.yaml"), words)
    found = {"estimator": networks.estimator, "weights": networks.estimator_weights}
    words = words + [f"estimate_flow.{key}={value}" for key, value in found.items()]
    return load_config(PrepareConfig, conf_file("prepare_raft.yaml"), words)


def train_config(networks: DemoNetworks, words: list[str]) -> TrainConfig:
    """The values of train, with the backbone that was found, if any, and all CPUs up to a few."""
    words = [*words, f"placement.train_worker.num_cpus={training_cpus()}"]
    if networks.backbone_weights is None:
        return load_config(TrainConfig, conf_file("train.yaml"), words)
    words = [*words, f"segmenter.backbone.weights={networks.backbone_weights}"]
    return load_config(TrainConfig, conf_file("train_backbone.yaml"), words)


def conf_file(name: str) -> str:
    """A file of conf/demo: of the checkout, or where an installed wheel put its copy."""
    checkout = Path(__file__).parents[1] / "conf" / "demo" / name
    if checkout.is_file():
        return str(checkout)
    installed = [file for file in files("gwm") or () if file.match(f"conf/demo/{name}")]
    if not installed:
        raise GwmError(f"conf/demo/{name} is missing: install gwm again.")
    return str(Path(str(installed[0].locate())).resolve())


def chosen_networks(url: str) -> DemoNetworks:
    """The networks of an earlier run into the same output, so that it continues; otherwise those found now."""
    if storage.exists(url):
        return DemoNetworks(**json.loads(storage.read_bytes(url)))
    networks = find_networks()
    write_json(url, asdict(networks))
    return networks


def segmenter_name(networks: DemoNetworks) -> str:
    """The segmenter in words."""
    return (
        "U-Net from scratch"
        if networks.backbone_weights is None
        else "mask decoder on frozen DINOv2 ViT-S/14"
    )


def write_scenes(videos: str, truth: str) -> None:
    """Renders the scenes that are not there yet: an mp4 each, and their truth as DAVIS 2016 stores it."""
    Path(videos).mkdir(parents=True, exist_ok=True)
    for seed in range(NUM_SCENES):
        path = Path(videos, f"scene-{seed}.mp4")
        if path.exists():
            continue
        scene: Scene = render_scene(seed)
        write_davis_layout(truth, {path.stem: scene})
        temporary = path.with_name(f".gwm-{path.name}")
        write_video(temporary, scene.frames)
        temporary.replace(path)


def facts(networks: DemoNetworks, videos: str | None, seconds: float) -> dict[str, str]:
    """What ran, for the head of the report."""
    versions = [f"{name} {installed_version(name)}" for name in ("torch", "ray")]
    return {
        "videos": videos
        or f"{NUM_SCENES} rendered scenes: textured objects over a moving textured background",
        "optical flow": f"{networks.estimator}: {networks.estimator_reason}",
        "segmenter": f"{segmenter_name(networks)}: {networks.backbone_reason}",
        "versions": ", ".join([f"gwm {version()}", *versions]),
        "machine": f"{os.cpu_count()} CPUs, local Ray, local files, MLflow in sqlite",
        "time": f"{seconds:.0f} s in all",
    }


def demo_summary(
    networks: DemoNetworks, summaries: Summaries, below: Below, seconds: float
) -> dict[str, Any]:
    """Writes and returns summary.json: the units of all commands together, the networks, J."""
    outcomes = ("done", "skipped", "quarantined")
    scored = summaries.get("evaluate", {})
    summary = {
        "command": "demo",
        "version": version(),
        "report": below("report.html"),
        "units": {name: sum(s["units"].get(name, 0) for s in summaries.values()) for name in outcomes},
        "estimator": networks.estimator,
        "segmenter": segmenter_name(networks),
        "seconds": {name: s["seconds"].get("total", 0.0) for name, s in summaries.items()}
        | {"total": seconds},
        **{key: scored[key] for key in ("protocol", "j_mean", "sequences") if key in scored},
    }
    write_json(below("summary.json"), summary)
    return summary
