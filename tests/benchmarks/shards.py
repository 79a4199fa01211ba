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
import pyarrow.parquet as pq
import torch
from common import DATA, davis_frames, read_frames, report
from flow_data import Clip, write_flow_dataset
from torch.utils.data import DataLoader

from gwm_model.optical_flow import load_flow_estimator
from pipeline.flow_dataset import FrameReader, open_flow_dataset
from pipeline.records import decode_flow, encode_flow
from pipeline.sample_cache import Sample, SampleCache

SEQUENCES, FRAMES, GAPS = ("blackswan", "dog", "parkour"), 8, (1, -1)
HEIGHT_PX, WIDTH_PX = 240, 432
MASK_SIZE = (128, 224)
EPOCHS, WORKERS = 20, 2
FLO_MAGIC = np.float32(202021.25)


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


def real_flow() -> list[Clip]:
    """Clips of DAVIS frames with RAFT's flow."""
    estimator = load_flow_estimator("raft_large", str(DATA / "weights/raft-sintel-fp16.pth"))
    clips = []
    for sequence in SEQUENCES:
        frames = read_frames(davis_frames(sequence, FRAMES + 2), HEIGHT_PX, WIDTH_PX)
        channels_first = torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()
        flows = estimator(channels_first, GAPS, start=1, stop=FRAMES + 1)
        clips.append((frames[1:-1], {gap: flow.numpy() for gap, flow in flows.items()}))
    return clips


def write_published(folder: Path, clips: list[Clip]) -> int:
    """Writes the published layout; returns the bytes of its .flo files."""
    header = FLO_MAGIC.tobytes() + np.array([WIDTH_PX, HEIGHT_PX], np.int32).tobytes()
    for clip, (frames, flows) in enumerate(clips):
        for index, frame in enumerate(frames):
            number = clip * FRAMES + index
            cv2.imwrite(str(folder / f"{number}.jpg"), frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
            for gap, flow in flows.items():
                pixels = flow[index].transpose(1, 2, 0).tobytes()
                (folder / f"{number}_{gap}.flo").write_bytes(header + pixels)
    return sum(path.stat().st_size for path in folder.glob("*.flo"))


def flow_bytes(folder: Path) -> int:
    """Compressed bytes of the flow columns of all shards."""
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
    clips = real_flow()
    count = len(clips) * FRAMES
    with tempfile.TemporaryDirectory() as temporary:
        published, ours = Path(temporary) / "published", Path(temporary) / "ours"
        published.mkdir()
        flo_bytes = write_published(published, clips)
        write_flow_dataset(ours, clips)
        case = f"DAVIS, RAFT, {HEIGHT_PX} x {WIDTH_PX}"
        report(
            "shards",
            case,
            "flow, bytes of the same in .flo files",
            flow_bytes(ours) / flo_bytes,
            at_most=0.15,
        )
        reader = FrameReader(open_flow_dataset(str(ours)))
        error_px = max(
            np.abs(decode_flow(encode_flow(flow)) - flow).max()
            for _, flows in clips
            for flow in flows.values()
        )
        report("shards", case, "largest error, px", float(error_px), at_most=1 / 128)

        def sample(number: int) -> Sample:
            frame = reader.read(number)
            image = resized(torch.from_numpy(frame.image.transpose(2, 0, 1).copy()).float())
            flow = torch.nn.functional.interpolate(
                torch.from_numpy(frame.flow), MASK_SIZE, mode="bilinear", antialias=True
            )
            return Sample(image.byte().numpy(), [], flow.half().numpy(), frame.has_flow)

        torch.set_num_threads(1)
        cache = SampleCache(Path(temporary) / "cache", count, 2**30)
        numbers = [number % count for number in range(count * EPOCHS)]
        rates: dict[str, list[float]] = {"published": [], "shards": [], "kept": []}
        for _ in range(3):
            loader = DataLoader(Published(published, count), batch_size=8, num_workers=WORKERS)
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
