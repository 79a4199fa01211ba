"""Flow shards against the published layout, a JPEG and a .flo file a frame: bytes, error, and samples read a second.

The flow is RAFT's on DAVIS frames. Both sides hold the same frames and flow at the same size and deliver the same
sample: the image and one flow on the grid of the masks.
"""

import statistics
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from common import DATA, davis_frames, read_frames, report
from torch.utils.data import DataLoader

from gwm_model.optical_flow import load_flow_estimator
from pipeline.config import EstimateFlowConfig, PrepareConfig
from pipeline.dataset import Dataset
from pipeline.flow_dataset import FrameReader, open_flow_dataset
from pipeline.records import FLOW_SCHEMA_VERSION, decode_flow, encode_flow, flow_parquet_options
from pipeline.sample_cache import Sample, SampleCache
from pipeline.stages.write_flow_shard import flow_shard

SEQUENCES, FRAMES, GAPS = ("blackswan", "dog", "parkour"), 8, (1, -1)
HEIGHT_PX, WIDTH_PX = 240, 432
MASK_SIZE = (128, 224)
EPOCHS, WORKERS = 20, 2
FLO_MAGIC = np.float32(202021.25)

Flow = npt.NDArray[np.float32]


class Published(torch.utils.data.Dataset[Any]):
    """JPEG and .flo files, decoded and resized sample by sample."""

    def __init__(self, folder: Path, count: int):
        self.folder, self.count = folder, count

    def __len__(self) -> int:
        """Each frame once an epoch."""
        return self.count * EPOCHS

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Image [3, h, w] and flow [2, h, w]."""
        number, gap = index % self.count, GAPS[index // self.count % len(GAPS)]
        image = cv2.imread(str(self.folder / f"{number}.jpg"))[..., ::-1]
        values = np.fromfile(self.folder / f"{number}_{gap}.flo", np.float32, offset=12)
        flow = torch.from_numpy(values.reshape(HEIGHT_PX, WIDTH_PX, 2).transpose(2, 0, 1).copy())
        return resized(torch.from_numpy(image.transpose(2, 0, 1).copy()).float()), resized(flow)


def resized(maps: torch.Tensor) -> torch.Tensor:
    """Channels on the grid of the masks."""
    return torch.nn.functional.interpolate(maps[None], MASK_SIZE, mode="bilinear", antialias=True)[0]


def real_flow() -> tuple[npt.NDArray[np.uint8], dict[int, Flow], npt.NDArray[np.bool_]]:
    """Frames [N, H, W, 3], flow [N, 2, H, W] by gap, and whether each frame has both."""
    estimator = load_flow_estimator("raft_large", str(DATA / "weights/raft-sintel-fp16.pth"))
    frames, flows = [], []
    for sequence in SEQUENCES:
        clip = read_frames(davis_frames(sequence, FRAMES + 2), HEIGHT_PX, WIDTH_PX)
        found = estimator(
            torch.from_numpy(clip).permute(0, 3, 1, 2).contiguous(), GAPS, start=1, stop=FRAMES + 1
        )
        frames.append(clip[1:-1])
        flows.append({gap: flow.numpy() for gap, flow in found.items()})
    whole = {gap: np.concatenate([flow[gap] for flow in flows]) for gap in GAPS}
    return np.concatenate(frames), whole, np.ones(len(SEQUENCES) * FRAMES, np.bool_)


def write_published(folder: Path, frames: npt.NDArray[np.uint8], flows: dict[int, Flow]) -> int:
    """Writes the published layout; returns the bytes of its .flo files."""
    for number, frame in enumerate(frames):
        cv2.imwrite(str(folder / f"{number}.jpg"), frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
        for gap, flow in flows.items():
            with (folder / f"{number}_{gap}.flo").open("wb") as file:
                file.write(FLO_MAGIC.tobytes() + np.array([WIDTH_PX, HEIGHT_PX], np.int32).tobytes())
                file.write(flow[number].transpose(1, 2, 0).tobytes())
    return sum(path.stat().st_size for path in folder.glob("*.flo"))


def write_shards(folder: Path, frames: npt.NDArray[np.uint8], flows: dict[int, Flow]) -> int:
    """Writes our layout; returns the bytes of the flow columns."""
    config = PrepareConfig(videos="unused", output=str(folder), estimate_flow=EstimateFlowConfig(gaps=GAPS))
    dataset = Dataset.open(str(folder), kind="flow", config=config, schema_version=FLOW_SCHEMA_VERSION)
    entries = []
    for clip in range(len(SEQUENCES)):
        of_clip = slice(clip * FRAMES, (clip + 1) * FRAMES)
        row: dict[str, Any] = {
            "source": SEQUENCES[clip],
            "frames": frames[of_clip].transpose(0, 3, 1, 2),
            "frame_index": list(range(FRAMES)),
            "pts_s": [float(number) for number in range(FRAMES)],
            "weights_sha256": "",
            "stored_height_px": HEIGHT_PX,
            "stored_width_px": WIDTH_PX,
            "source_height_px": 480,
            "source_width_px": 854,
        }
        for gap in GAPS:
            name = f"{'p' if gap > 0 else 'm'}{abs(gap)}"
            row |= {
                f"flow_{name}": encode_flow(flows[gap][of_clip]),
                f"has_flow_{name}": np.ones(FRAMES, bool),
            }
        entries.append(dataset.write_shard(f"{clip}", flow_shard(row, config), **flow_parquet_options(GAPS)))
    dataset.write_manifest(entries)
    return flow_bytes(folder)


def flow_bytes(folder: Path) -> int:
    """Compressed bytes of the flow columns of all shards."""
    import pyarrow.parquet as pq

    total = 0
    for path in folder.glob("shards/*.parquet"):
        described = pq.ParquetFile(path).metadata
        for group in range(described.num_row_groups):
            columns = [described.row_group(group).column(number) for number in range(described.num_columns)]
            total += sum(
                each.total_compressed_size for each in columns if each.path_in_schema.startswith("flow_")
            )
    return total


def rate(samples: Iterable[object]) -> float:
    """Samples a second, without the first epoch's start."""
    began, count = time.perf_counter(), 0
    for _ in samples:
        count += 1
    return count / (time.perf_counter() - began)


def main() -> None:
    """Prints one JSON line for each target."""
    frames, flows, _ = real_flow()
    with tempfile.TemporaryDirectory() as temporary:
        published, ours = Path(temporary) / "published", Path(temporary) / "ours"
        published.mkdir()
        flo_bytes = write_published(published, frames, flows)
        our_bytes = write_shards(ours, frames, flows)
        case = f"DAVIS, RAFT, {HEIGHT_PX} x {WIDTH_PX}"
        report("shards", case, "flow, bytes of the same in .flo files", our_bytes / flo_bytes, at_most=0.15)
        reader = FrameReader(open_flow_dataset(str(ours)))
        stored = np.concatenate([decode_flow(encode_flow(flow)) for flow in flows.values()])
        error_px = np.abs(stored - np.concatenate(list(flows.values()))).max()
        report("shards", case, "largest error, px", float(error_px), at_most=1 / 128)

        def sample(number: int) -> Sample:
            frame = reader.read(number)
            image = resized(torch.from_numpy(frame.image.transpose(2, 0, 1).copy()).float())
            flow = torch.nn.functional.interpolate(
                torch.from_numpy(frame.flow), MASK_SIZE, mode="bilinear", antialias=True
            )
            return Sample(image.byte().numpy(), [], flow.half().numpy(), frame.has_flow)

        torch.set_num_threads(1)
        cache = SampleCache(Path(temporary) / "cache", len(frames), 2**30)
        numbers = [number % len(frames) for number in range(len(frames) * EPOCHS)]
        rates: dict[str, list[float]] = {"published": [], "shards": [], "kept": []}
        for _ in range(3):
            loader = DataLoader(Published(published, len(frames)), batch_size=8, num_workers=WORKERS)
            rates["published"].append(8 * rate(loader))
            with ThreadPoolExecutor(WORKERS) as pool:
                rates["shards"].append(rate(pool.map(sample, numbers)))
            rates["kept"].append(rate(np.array(cache.get(number, sample).flow) for number in numbers))
        theirs, first, later = (statistics.median(rates[name]) for name in rates)
        report("shards", f"{case}, first epoch", "times the samples/s of JPEG + .flo", first / theirs)
        report(
            "shards",
            f"{case}, later epochs",
            "times the samples/s of JPEG + .flo, 2 DataLoader workers",
            later / theirs,
            at_least=5,
            samples_per_s={"published": round(theirs), "shards": round(first), "kept": round(later)},
        )


if __name__ == "__main__":
    main()
