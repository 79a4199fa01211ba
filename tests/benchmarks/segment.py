"""gwm segment as a pipeline, against a bare batched loop, and against the published way of one frame after the other.

The published evaluation runs the segmenter on single frames, a second network (ViT-S/8 with patches every 4 px) for
the features that merge its regions, taken to the masks' resolution, and scikit-learn's spectral clustering. It is given
the same segmenter here.
"""

import tempfile
import time
import warnings
from pathlib import Path

import cv2
import numpy as np
import ray
import torch
from common import DATA, davis_frames, report, report_pipeline, rounded, steady_rates
from merge import published as published_merging

from gwm_model import save_segmenter
from gwm_model.backbone import load_backbone
from gwm_model.config import BackboneConfig, MergeConfig, SegmenterConfig
from gwm_model.merge import choose_foreground, foreground_probability
from gwm_model.segmenter import build_segmenter
from pipeline.config import SegmentConfig
from pipeline.dataset import Dataset
from pipeline.inference import RegionModel, read_model_card, upsample
from pipeline.masks import MASK_SCHEMA_VERSION, encode_mask
from pipeline.model_card import ModelCard, PinnedConfig, pin
from pipeline.placement import start_ray
from pipeline.segment import mask_shards
from pipeline.stages.load_chunk import load_chunk
from pipeline.stages.plan_chunks import inputs_of, plan_chunks
from pipeline.stages.segment_images import SegmentImages
from pipeline.stages.write_mask_shard import write_mask_shard

IMAGES, PUBLISHED_IMAGES, REGIONS = 320, 12, 4
SIZES = [(480, 854), (854, 480), (360, 480)]


def write_images(folder: Path) -> None:
    """DAVIS frames at several sizes, named so that none is taken for a video's frame."""
    paths = davis_frames("blackswan", 50)
    for number in range(IMAGES):
        height, width = SIZES[number % len(SIZES)]
        image = cv2.resize(cv2.imread(str(paths[number % len(paths)])), (width, height))
        cv2.imwrite(str(folder / f"{number:05d}-image.jpg"), image)


def write_model(folder: Path) -> None:
    """An untrained segmenter of the default size: speed does not depend on what it learnt."""
    torch.manual_seed(0)
    backbone = BackboneConfig(weights=str(DATA / "weights/dinov2_vits14_fp16.safetensors"))
    config = SegmenterConfig(num_masks=REGIONS, hidden_channels=64, backbone=backbone)
    save_segmenter(build_segmenter(config), folder)


def bare(config: PinnedConfig, card: ModelCard, dataset: Dataset) -> float:
    """Images a second of the stages called one after the other, with all cores for the network."""
    network = SegmentImages(config, "cpu", torch.get_num_threads())
    inputs = inputs_of(config.images, config.chunk_images)
    chunks = [chunk for row in inputs for chunk in plan_chunks(row, config, dataset, "bare")]
    load_chunk(chunks[0], config, card)
    began, images = time.perf_counter(), 0
    for chunk in chunks:
        images += write_mask_shard(network(load_chunk(chunk, config, card)), config, dataset)["num_rows"]
    return images / (time.perf_counter() - began)


@torch.inference_mode()
def published(model: str, paths: list[Path]) -> float:
    """Images a second of the published evaluation's way."""
    regions_of = RegionModel(model, MergeConfig(), batch_size=1, device="cpu")
    card = read_model_card(model)
    vit = load_backbone(
        BackboneConfig(
            name="vit_small_patch8_224.dino",
            weights="none",
            blocks=(11,),
            features="keys",
            patch_stride_px=4,
        )
    )
    began = time.perf_counter()
    for path in paths:
        image = cv2.imread(str(path))[..., ::-1]
        height, width = image.shape[:2]
        small = cv2.resize(image, (card.width_px, card.height_px), interpolation=cv2.INTER_AREA)
        masks, _ = regions_of.regions(torch.from_numpy(small.transpose(2, 0, 1).copy())[None])
        for_merging = cv2.resize(image, (224, 128), interpolation=cv2.INTER_AREA)
        pixels = torch.from_numpy(for_merging.transpose(2, 0, 1).copy())[None].float() / 255
        labels = published_merging(masks, vit(pixels)[-1])
        object_is = choose_foreground(masks, labels)
        probability = foreground_probability(masks, labels, object_is)
        encode_mask((upsample(probability, height, width)[0] > 0.5).numpy())
    return len(paths) / (time.perf_counter() - began)


def main() -> None:
    """Prints one JSON line for each target."""
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as temporary:
        folder, model = Path(temporary) / "images", Path(temporary) / "model"
        folder.mkdir()
        write_images(folder)
        write_model(model)
        card = read_model_card(str(model))
        configs, datasets = {}, {}
        for name in ("bare", "ray"):
            output = str(Path(temporary) / name)
            config = SegmentConfig(images=str(folder), model=str(model), output=output, chunk_images=32)
            configs[name] = pin(config, card)
            datasets[name] = Dataset.open(
                output, kind="masks", config=configs[name], schema_version=MASK_SCHEMA_VERSION
            )
        one_by_one = published(str(model), sorted(folder.glob("*.jpg"))[:PUBLISHED_IMAGES])
        alone = bare(configs["bare"], card, datasets["bare"])
        start_ray(configs["ray"].placement, configs["ray"].placement.segment_images)
        units = mask_shards(configs["ray"], card, datasets["ray"])
        rate, busy = steady_rates(units.iter_rows(), "seconds_segment_images")
        cores = int(ray.cluster_resources()["CPU"])
        masks = {
            name: sorted(path.stat().st_size for path in (Path(temporary) / name).glob("shards/*"))
            for name in ("bare", "ray")
        }
        assert len(masks["bare"]) == len(masks["ray"]) == -(-IMAGES // 32)
        case = f"{IMAGES} images of {len(SIZES)} sizes, ViT-S/14, K = {REGIONS}"
        busy_share = busy / cores
        report_pipeline("segment", case, "images", rate=rate, bare=alone, busy_share=busy_share, cores=cores)
        report(
            "segment",
            f"K = {REGIONS}",
            "times the images/s of the published way",
            float(np.round(rate / one_by_one, 2)),
            at_least=5,
            **rounded(published_images_per_s=one_by_one),
        )


if __name__ == "__main__":
    main()
