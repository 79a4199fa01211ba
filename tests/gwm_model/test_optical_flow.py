"""Flow estimators: agreement with torchvision and published flow, sign and axes, clips, sizes, weights."""

import os
from pathlib import Path
from urllib.error import URLError

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision.models.optical_flow import Raft_Small_Weights, raft_large, raft_small

from gwm_model import raft
from gwm_model.optical_flow import load_flow_estimator
from gwm_model.raft_weights import WeightsError, load_raft_network

DATA = Path(os.environ.get("GWM_TEST_DATA", Path(__file__).parents[2] / "../shared/data"))
SMALL_WEIGHTS = DATA / "weights/raft-small.pth"
LARGE_WEIGHTS = DATA / "weights/raft-sintel-fp16.pth"
needs_weights = pytest.mark.skipif(
    not (SMALL_WEIGHTS.is_file() and LARGE_WEIGHTS.is_file()),
    reason=f"RAFT weights not found in {DATA / 'weights'}",
)


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Torchvision checkpoints of random networks, by estimator name."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    for name, build in (("raft_small", raft_small), ("raft_large", raft_large)):
        torch.save(build(weights=None).state_dict(), folder / f"{name}.pth")
    return {name: str(folder / f"{name}.pth") for name in ("raft_small", "raft_large")}


def textured_clip(num_frames: int, height: int, width: int, *, dx: int = 0, dy: int = 0) -> torch.Tensor:
    """A smooth random texture that moves by (dx, dy) px each frame: uint8 [T,3,H,W]."""
    generator = np.random.default_rng(0)
    margin = num_frames * max(abs(dx), abs(dy))
    noise = generator.uniform(0, 255, (height + 2 * margin, width + 2 * margin, 3)).astype(np.float32)
    texture = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX).astype(
        np.uint8
    )
    frames = []
    for t in range(num_frames):
        top, left = margin - t * dy, margin - t * dx
        frames.append(texture[top : top + height, left : left + width])
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).contiguous()


def read_frames(folder: Path, *numbers: int) -> torch.Tensor:
    frames = [cv2.cvtColor(cv2.imread(str(folder / f"{n:05d}.jpg")), cv2.COLOR_BGR2RGB) for n in numbers]
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)


def read_flo(path: Path) -> torch.Tensor:
    """A Middlebury .flo file: magic number, width, height, then (dx, dy) for each pixel."""
    width, height = np.fromfile(path, np.int32, 2, offset=4)
    return torch.from_numpy(np.fromfile(path, np.float32, offset=12).reshape(height, width, 2)).permute(
        2, 0, 1
    )


def torchvision_flow(
    network: torch.nn.Module, first: torch.Tensor, second: torch.Tensor, iterations: int
) -> torch.Tensor:
    """Torchvision's own forward pass for one pair whose sides are multiples of 8."""
    with torch.no_grad():
        pair = [frame[None].float() / 127.5 - 1 for frame in (first, second)]
        return network.eval()(*pair, num_flow_updates=iterations)[-1][0]


@needs_weights
def test_published_flow_is_reproduced_within_a_third_of_a_pixel() -> None:
    folder = DATA / "DAVIS2016/JPEGImages/480p/blackswan"
    reference = DATA / "flow_reference/blackswan_00003.flo"
    if not (folder.is_dir() and reference.is_file()):
        pytest.skip(f"DAVIS frames or the reference flow not found in {DATA}")
    estimator = load_flow_estimator("raft_large", str(LARGE_WEIGHTS), iterations=20)
    flow = estimator(read_frames(folder, 3, 4), gaps=(1,), stop=1)[1][0]
    end_point_error_px = torch.linalg.vector_norm(flow - read_flo(reference), dim=0).mean()
    print(f"mean end-point error {end_point_error_px:.4f} px")
    assert end_point_error_px <= 0.35


@needs_weights
@pytest.mark.parametrize(("name", "weights"), [("raft_small", SMALL_WEIGHTS), ("raft_large", LARGE_WEIGHTS)])
def test_all_pairs_equal_torchvision_pair_by_pair(name: str, weights: Path) -> None:
    frames = textured_clip(4, 128, 136, dx=2, dy=1)
    flows = load_flow_estimator(name, str(weights), iterations=6, pairs_per_batch=3)(frames, gaps=(1, -1, 2))
    network = load_raft_network(name, str(weights))
    for gap, flow in flows.items():
        for t in range(4):
            if 0 <= t + gap < 4:
                expected = torchvision_flow(network, frames[t], frames[t + gap], 6)
                torch.testing.assert_close(flow[t], expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["dis", "raft_small", "raft_large"])
@pytest.mark.parametrize(("dx", "dy"), [(3, 0), (0, 3)])
def test_convention_right_is_plus_x_and_down_is_plus_y(name: str, dx: int, dy: int) -> None:
    if name != "dis" and not LARGE_WEIGHTS.is_file():
        pytest.skip(f"RAFT weights not found in {DATA / 'weights'}")
    weights = {"raft_small": str(SMALL_WEIGHTS), "raft_large": str(LARGE_WEIGHTS), "dis": "pretrained"}[name]
    flows = load_flow_estimator(name, weights, iterations=8)(
        textured_clip(2, 128, 160, dx=dx, dy=dy), gaps=(1, -1)
    )
    inner = (slice(None), slice(24, -24), slice(24, -24))
    motion = torch.tensor([dx, dy], dtype=torch.float32)
    torch.testing.assert_close(flows[1][0][inner].mean(dim=(1, 2)), motion, atol=0.3, rtol=0)
    torch.testing.assert_close(flows[-1][1][inner].mean(dim=(1, 2)), -motion, atol=0.3, rtol=0)


def test_convention_a_gap_of_two_sees_twice_the_motion() -> None:
    flows = load_flow_estimator("dis")(textured_clip(3, 96, 128, dx=2), gaps=(1, 2))
    assert flows[2][0, 0, 24:-24, 24:-24].mean() == pytest.approx(4, abs=0.3)
    assert flows[1][0, 0, 24:-24, 24:-24].mean() == pytest.approx(2, abs=0.3)


@pytest.mark.parametrize("name", ["dis", "raft_small"])
def test_flow_is_nan_exactly_where_the_target_frame_is_outside_the_clip(
    name: str, random_weights: dict[str, str]
) -> None:
    estimator = load_flow_estimator(name, random_weights.get(name, "pretrained"), iterations=1)
    flows = estimator(textured_clip(4, 40, 48, dx=1), gaps=(1, -2))
    missing = {gap: flow.isnan().flatten(1).all(dim=1).tolist() for gap, flow in flows.items()}
    present = {gap: flow.isfinite().flatten(1).all(dim=1).tolist() for gap, flow in flows.items()}
    assert missing == {1: [False, False, False, True], -2: [True, True, False, False]}
    assert present == {gap: [not value for value in values] for gap, values in missing.items()}


@pytest.mark.parametrize("name", ["dis", "raft_small"])
def test_owned_frames_get_the_flow_of_the_whole_clip(name: str, random_weights: dict[str, str]) -> None:
    estimator = load_flow_estimator(name, random_weights.get(name, "pretrained"), iterations=2)
    clip = textured_clip(6, 64, 72, dx=1)
    whole, owned = estimator(clip, gaps=(1, -1)), estimator(clip, gaps=(1, -1), start=2, stop=5)
    for gap in (1, -1):
        assert owned[gap].shape == (3, 2, 64, 72)
        torch.testing.assert_close(owned[gap], whole[gap][2:5], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["dis", "raft_small", "raft_large"])
@pytest.mark.parametrize(("height", "width"), [(16, 20), (130, 71), (11, 200), (1, 1)])
def test_any_frame_size_keeps_its_size(
    name: str, height: int, width: int, random_weights: dict[str, str]
) -> None:
    estimator = load_flow_estimator(name, random_weights.get(name, "pretrained"), iterations=1)
    frames = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8)
    flow = estimator(frames, gaps=(1,))[1]
    assert flow.shape == (2, 2, height, width)
    assert flow.dtype == torch.float32
    assert flow[0].isfinite().all()


def test_one_frame_has_no_flow(random_weights: dict[str, str]) -> None:
    for name in ("dis", "raft_small"):
        estimator = load_flow_estimator(name, random_weights.get(name, "pretrained"))
        flows = estimator(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), gaps=(1, -1))
        assert [flow.shape for flow in flows.values()] == [(1, 2, 32, 32)] * 2
        assert all(flow.isnan().all() for flow in flows.values())


def test_dis_flow_does_not_depend_on_the_number_of_threads() -> None:
    frames = textured_clip(2, 240, 320, dx=5, dy=2)
    threads = cv2.getNumThreads()
    flows = []
    try:
        for num_threads in (1, 4):
            cv2.setNumThreads(num_threads)
            flows.append(load_flow_estimator("dis")(frames, gaps=(1,))[1][0])
            assert cv2.getNumThreads() == num_threads
    finally:
        cv2.setNumThreads(threads)
    assert torch.equal(flows[0], flows[1])


def test_bfloat16_stays_close_to_float32() -> None:
    if not SMALL_WEIGHTS.is_file():
        pytest.skip(f"RAFT weights not found in {DATA / 'weights'}")
    frames = textured_clip(2, 128, 160, dx=3)
    exact, fast = (
        load_flow_estimator("raft_small", str(SMALL_WEIGHTS), iterations=8, precision=precision)(
            frames, gaps=(1,)
        )[1][0]
        for precision in ("float32", "bfloat16")
    )
    assert fast.dtype == torch.float32
    assert 0 < (exact - fast).abs().mean() < 0.15


def test_large_frames_make_smaller_batches() -> None:
    pair_flow = raft.Raft(raft_small(weights=None), iterations=1, pairs_per_batch=8)
    batch_sizes = [
        pair_flow._batch_size(torch.empty(0, 3, height, width, dtype=torch.uint8))
        for height, width in ((240, 432), (720, 1280), (1080, 1920))
    ]
    assert batch_sizes == [8, 3, 1]


def test_a_device_without_memory_gets_half_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    pair_flow = raft.Raft(raft_small(weights=None), iterations=2, pairs_per_batch=8)
    frames, pairs = textured_clip(6, 128, 128, dx=2), [(t, t + 1) for t in range(5)]
    expected = list(pair_flow(frames, pairs))
    refine, tried = pair_flow._refine, []

    def refine_two(first: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        tried.append(len(first))
        if len(first) > 2:
            raise torch.OutOfMemoryError
        return refine(first, *others)

    monkeypatch.setattr(pair_flow, "_refine", refine_two)
    torch.testing.assert_close(list(pair_flow(frames, pairs)), expected, rtol=0, atol=1e-4)
    assert tried == [5, 2, 2, 1]

    def refine_none(*_: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(pair_flow, "_refine", refine_none)
    with pytest.raises(torch.OutOfMemoryError):
        list(pair_flow(frames, pairs))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gaps": (0,)}, "gap of 0"),
        ({"start": 2, "stop": 1}, "frames 2 to 1"),
        ({"stop": 3}, "clip of 2 frames"),
        ({"start": -1}, "frames -1"),
    ],
)
def test_impossible_requests_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_flow_estimator("dis")(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), **arguments)


def test_unknown_estimator_is_refused() -> None:
    with pytest.raises(ValueError, match="choose raft_large, raft_small or dis"):
        load_flow_estimator("pwcnet")  # type: ignore[arg-type]


# Weights


@needs_weights
def test_princeton_file_equals_its_torchvision_and_safetensors_copies(tmp_path: Path) -> None:
    network = load_raft_network("raft_small", str(SMALL_WEIGHTS))
    torch.save({"model": network.state_dict()}, tmp_path / "torchvision.pth")
    save_file(network.state_dict(), tmp_path / "torchvision.safetensors")
    original = load_flow_estimator("raft_small", str(SMALL_WEIGHTS))
    for copy in ("torchvision.pth", "torchvision.safetensors"):
        assert (
            load_flow_estimator("raft_small", str(tmp_path / copy)).weights_sha256 == original.weights_sha256
        )


@needs_weights
def test_the_torchvision_names_of_a_princeton_file_carry_its_values() -> None:
    stored = torch.load(LARGE_WEIGHTS, map_location="cpu", weights_only=True)
    state = load_raft_network("raft_large", str(LARGE_WEIGHTS)).state_dict()
    for ours, theirs in {
        "feature_encoder.convnormrelu.0.weight": "fnet.conv1.weight",
        "context_encoder.layer2.0.downsample.1.running_var": "cnet.layer2.0.norm3.running_var",
        "context_encoder.layer3.1.convnormrelu2.1.bias": "cnet.layer3.1.norm2.bias",
        "update_block.motion_encoder.convcorr2.0.weight": "update_block.encoder.convc2.weight",
        "update_block.recurrent_block.convgru2.convq.bias": "update_block.gru.convq2.bias",
        "mask_predictor.conv.weight": "update_block.mask.2.weight",
    }.items():
        assert torch.equal(state[ours], stored[f"module.{theirs}"].float())


def test_weights_by_name_are_torchvisions(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    state = raft_small(weights=None).state_dict()
    asked = []

    def get_state_dict(
        weights: Raft_Small_Weights, *args: object, **kwargs: object
    ) -> dict[str, torch.Tensor]:
        asked.append(weights)
        return state

    monkeypatch.setattr(Raft_Small_Weights, "get_state_dict", get_state_dict)
    for weights in ("pretrained", "C_T_V1", "Raft_Small_Weights.C_T_V2"):
        load_flow_estimator("raft_small", weights)
    assert asked == [Raft_Small_Weights.DEFAULT, Raft_Small_Weights.C_T_V1, Raft_Small_Weights.C_T_V2]


def test_weights_by_url_are_fetched_once(
    tmp_path: Path, random_weights: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(url: str, destination: str, *args: object, **kwargs: object) -> None:
        asked.append(url)
        state = torch.load(random_weights["raft_small"], weights_only=True)
        if url.endswith(".safetensors"):
            save_file(state, destination)
        else:
            torch.save(state, destination)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    urls = ["https://example.org/small.pth", "https://example.org/small.safetensors"]
    hashes = {load_flow_estimator("raft_small", url).weights_sha256 for url in [*urls, *urls]}
    assert asked == urls
    assert hashes == {load_flow_estimator("raft_small", random_weights["raft_small"]).weights_sha256}


def test_a_web_page_in_place_of_weights_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(url: str, destination: str, *args: object, **kwargs: object) -> None:
        Path(destination).write_text("<html>Too many requests</html>")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(WeightsError, match="is a web page"):
        load_flow_estimator("raft_small", "https://example.org/small.pth")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_weights_that_cannot_be_downloaded_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(url: str, *args: object, **kwargs: object) -> None:
        raise URLError("connection refused")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with pytest.raises(WeightsError, match="cannot be downloaded: connection refused"):
        load_flow_estimator("raft_small", "https://example.org/small.pth")


def broken_file(folder: Path, kind: str, random_weights: dict[str, str]) -> str:
    """The path of something that is not a usable raft_large checkpoint."""
    complete = Path(random_weights["raft_large"])
    state = torch.load(complete, weights_only=True)
    texts = {
        "web page": b"<!doctype html><title>Sign in</title>",
        "lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        "empty": b"",
        "cut off": complete.read_bytes()[:100_000],
    }
    objects = {
        "raft_small": torch.load(random_weights["raft_small"], weights_only=True),
        "pickled network": raft_small(weights=None),
        "other network": {"conv.weight": torch.zeros(3)},
        "list": [torch.zeros(3)],
        "incomplete": {key: state[key] for key in list(state)[:-1]},
    }
    path = folder / f"{kind}.pth"
    if kind in texts:
        path.write_bytes(texts[kind])
    elif kind in objects:
        torch.save(objects[kind], path)
    elif kind == "safetensors":
        path = path.with_suffix(".safetensors")
        path.write_bytes(b"\x00\x01\x02")
    return str(folder if kind == "folder" else path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("raft_small", "looks like raft_small"),
        ("missing", "neither a file nor a torchvision weights name"),
        ("folder", "is a folder"),
        ("web page", "is a web page"),
        ("lfs pointer", "Git LFS pointer"),
        ("empty", "not a readable torch checkpoint"),
        ("cut off", "not a readable torch checkpoint"),
        ("pickled network", "pickled objects other than tensors"),
        ("other network", "does not look like a RAFT checkpoint"),
        ("list", "no plain mapping"),
        ("incomplete", "changed or incomplete RAFT checkpoint.*1 tensors missing"),
        ("safetensors", "not a readable safetensors file"),
    ],
)
def test_weights_that_do_not_fit_say_what_they_are(
    kind: str, message: str, tmp_path: Path, random_weights: dict[str, str]
) -> None:
    with pytest.raises(WeightsError, match=message) as caught:
        load_flow_estimator("raft_large", broken_file(tmp_path, kind, random_weights))
    assert "\n" not in str(caught.value)
