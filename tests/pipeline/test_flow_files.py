import struct
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.config import PrepareConfig
from pipeline.dataset import Dataset
from pipeline.errors import GwmError, UnitError
from pipeline.flow_dataset import FrameReader, open_flow_dataset
from pipeline.flow_files import decode_flo, decode_kitti, encode_flo, encode_kitti, read_flow_file
from pipeline.load_config import load_config
from pipeline.records import FLOW_SCHEMA_VERSION, decode_flow


def on_the_grid(seed: int = 0, height_px: int = 6, width_px: int = 9) -> np.ndarray:
    """Any flow that a shard can hold, its extremes too."""
    stored = np.random.default_rng(seed).integers(-511 * 64, 511 * 64 + 1, (2, height_px, width_px))
    stored[0, 0, :3] = 511 * 64, -511 * 64, 0
    return decode_flow(stored.astype(np.int16))


@pytest.mark.parametrize(("encode", "decode"), [(encode_flo, decode_flo), (encode_kitti, decode_kitti)])
def test_flow_on_the_grid_returns_exactly(encode, decode):
    flow = on_the_grid()
    assert np.array_equal(decode(encode(flow)), flow)
    flow[:, 2, 3] = np.nan
    assert np.array_equal(decode(encode(flow)), flow, equal_nan=True)


def test_flo_is_middleburys():
    encoded = encode_flo(np.array([[[1.5, 2.0]], [[-1.0, 0.25]]], np.float32))
    assert encoded == b"PIEH" + struct.pack("<ii4f", 2, 1, 1.5, -1.0, 2.0, 0.25)


def test_kitti_is_kittis():
    flow = on_the_grid()
    flow[:, 1, 1] = np.nan
    image = cv2.imdecode(np.frombuffer(encode_kitti(flow), np.uint8), cv2.IMREAD_UNCHANGED)
    red, green, blue = image[..., 2], image[..., 1], image[..., 0]
    known = np.isfinite(flow[0])
    assert image.dtype == np.uint16
    assert np.array_equal(blue, known)
    assert np.array_equal(red[known], (flow[0] * 64 + 2**15)[known])
    assert np.array_equal(green[known], (flow[1] * 64 + 2**15)[known])


def test_a_published_flo_file_is_read(test_data):
    flow = read_flow_file(str(test_data / "flow_reference" / "blackswan_00003.flo"))
    assert flow.shape == (2, 480, 854)
    assert np.isfinite(flow).all()
    assert encode_flo(flow) == (test_data / "flow_reference" / "blackswan_00003.flo").read_bytes()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.flo", b"PIEH"),
        ("a.flo", b"PIEH" + struct.pack("<ii", 2**30, 2**30)),
        ("a.flo", b"HEIP" + struct.pack("<ii2f", 1, 1, 0, 0)),
        ("a.png", b""),
        ("a.png", b"no image"),
        ("a.png", cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes()),
    ],
)
def test_what_is_no_flow_file_is_said(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnitError, match=f"{name} is not a flow file that can be read"):
        read_flow_file(str(tmp_path / name))


def write_flows(
    root: Path, video: str, num_frames: int, gaps: tuple[int, ...], suffix: str, names: str
) -> dict:
    """Flow of every frame that has a target, in the folders of the published code."""
    flows = {}
    for gap in gaps:
        folder = root / f"Flows_gap{gap}" / video
        folder.mkdir(parents=True)
        for frame in range(num_frames):
            if 0 <= frame + gap < num_frames:
                flows[frame, gap] = on_the_grid(100 * frame + gap + 50, 48, 64)
                encode = encode_flo if suffix == ".flo" else encode_kitti
                (folder / f"{names.format(frame)}{suffix}").write_bytes(encode(flows[frame, gap]))
    return flows


@pytest.mark.parametrize("suffix", [".flo", ".png"])
def test_training_reads_imported_flow_exactly(stages, make_frame_folder, tmp_path, suffix):
    make_frame_folder("bear", num_frames=11)
    flows = write_flows(tmp_path, "bear", 11, (1, -2), suffix, "{:05d}")
    files = str(tmp_path / "Flows_gap{gap}")
    config = stages.config(estimate_flow={"files": files, "gaps": (1, -2)})
    dataset = Dataset.open(config.output, kind="flow", config=config, schema_version=FLOW_SCHEMA_VERSION)
    rows = stages.run(config)
    assert {row["status"] for row in rows} == {"done"}
    dataset.write_manifest()
    opened = open_flow_dataset(config.output)
    assert (opened.gaps, opened.num_frames) == ((1, -2), 11)
    reader, seen = FrameReader(opened), 0
    numbers = [
        number
        for shard in opened.shards
        for number in pq.read_table(dataset.shard_url(shard.unit))["frame_index"].to_pylist()
    ]
    for frame_id, frame in enumerate(numbers):
        read = reader.read(frame_id)
        for position, gap in enumerate(opened.gaps):
            assert read.has_flow[position] == ((frame, gap) in flows)
            if (frame, gap) in flows:
                assert np.array_equal(read.flow[position], flows[frame, gap])
                seen += 1
    assert seen == len(flows) == 19
    metadata = pq.read_schema(next(dataset.shards())).metadata
    assert metadata[b"estimator"] == b"files"


def test_flow_of_a_video_file_is_named_by_number_and_resized_to_the_stored_size(stages, make_video, tmp_path):
    make_video("deep/v.mp4", num_frames=5)
    folder = tmp_path / "flows" / "deep" / "v"
    folder.mkdir(parents=True)
    for frame in range(4):
        constant = np.broadcast_to(np.float32([8, -4])[:, None, None], (2, 24, 32))
        (folder / f"{frame:05d}.flo").write_bytes(encode_flo(constant))
    config = stages.config(estimate_flow={"files": str(tmp_path / "flows"), "gaps": (1,)})
    (row,) = stages.run(config)
    assert row["status"] == "done"
    flow = stages.table(config)["flow_p1"].combine_chunks().to_numpy_ndarray()
    assert flow.shape == (5, 2, 48, 64)
    assert (decode_flow(flow[:4, 0]) == 16).all()
    assert (decode_flow(flow[:4, 1]) == -8).all()


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda folder: (folder / "00002.flo").unlink(), r"there is no .*bear/00002.flo or .png"),
        (lambda folder: (folder / "00002.flo").write_bytes(b"x"), r"00002.flo is not a flow file"),
        (
            lambda folder: (folder / "00002.flo").write_bytes(encode_flo(on_the_grid())),
            r"bear has flow files of different sizes",
        ),
        (
            lambda folder: (folder / "00002.flo").write_bytes(
                encode_flo(np.full((2, 48, 64), np.nan, np.float32))
            ),
            r"00002.flo has pixels without flow",
        ),
        (lambda folder: folder.rename(folder.with_name("other")), r"there is no .*bear"),
    ],
)
def test_flow_that_is_not_all_there_fails_its_clip(stages, make_frame_folder, tmp_path, harm, said):
    make_frame_folder("bear", num_frames=5)
    write_flows(tmp_path, "bear", 5, (1,), ".flo", "{:05d}")
    harm(tmp_path / "Flows_gap1" / "bear")
    config = stages.config(estimate_flow={"files": str(tmp_path / "Flows_gap1"), "gaps": (1,)})
    (row,) = stages.run(config)
    assert row["status"] == "quarantined"
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(row["reason"])


def test_a_missing_folder_and_values_that_do_not_go_together_are_one_sentence(stages, make_video, tmp_path):
    make_video(num_frames=3)
    config = stages.config(estimate_flow={"files": str(tmp_path / "Flows_gap{gap}"), "gaps": (1,)})
    with pytest.raises(GwmError, match=r"estimate_flow.files: there is no folder .*Flows_gap1"):
        stages.run(config)
    words = ["videos=v", "output=o"]
    with pytest.raises(GwmError, match=r"files must have \{gap\} in its name"):
        load_config(PrepareConfig, None, [*words, "estimate_flow.files=flows"])
    with pytest.raises(GwmError, match=r"decode.stride and decode.fps do not go with it"):
        load_config(PrepareConfig, None, [*words, "estimate_flow.files=f{gap}", "decode.stride=2"])
