"""Archives, lists, YAML, JSON, Parquet and weights that are not what they say: refused in one sentence."""

import json
import random
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from torchvision.models.optical_flow import raft_small

from gwm_model.backbone import load_weights
from gwm_model.config import BackboneConfig
from pipeline.config import DecodeLimits, EstimateFlowConfig, PrepareConfig, SegmentConfig
from pipeline.dataset import Dataset, unit_id
from pipeline.errors import GwmError
from pipeline.flow_dataset import open_flow_dataset
from pipeline.inference import read_model_card
from pipeline.inputs import find_images, find_videos
from pipeline.layouts import AnnotatedSequence
from pipeline.load_config import load_config
from pipeline.masks import MaskRow, encode_mask, mask_table
from pipeline.predictions import find_predictions, read_predictions
from pipeline.stages.estimate_flow import load_estimator
from pipeline.verify import verify

SEED = 20240608
LIMITS = DecodeLimits(timeout_s=20.0, max_bytes=2**28)


def outcomes(what: str, cases: dict[str, bytes], take: Callable[[str, bytes], object]) -> dict[str, str]:
    """Done or refused with one printable line, for each case; any other error fails the test."""
    found = {}
    for name, data in cases.items():
        try:
            take(name, data)
            found[name] = "done"
        except GwmError as error:
            found[name], sentence = "refused", str(error)
            is_sentence = len(sentence.splitlines()) == 1 and "Traceback" not in sentence
            if not is_sentence:
                pytest.fail(f"{name}: {sentence!r}")
    print(f"{what}: {len(cases)} cases, {dict(sorted(Counter(found.values()).items()))}")
    return found


def flipped(base: bytes, count: int, rng: random.Random) -> dict[str, bytes]:
    """Copies with flipped bits and cut ends."""
    cases = {}
    for number in range(count):
        data = bytearray(base)
        for _ in range(1 + number):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        cases[f"flipped{number}"] = bytes(data)
    for share in (0.1, 0.5, 0.9):
        cases[f"cut{share}"] = base[: int(share * len(base))]
    return cases | {"nothing": b"", "text": b"this is text", "noise": rng.randbytes(1000)}


def png() -> bytes:
    return cv2.imencode(".png", np.eye(8, dtype=np.uint8) * 255)[1].tobytes()


DOG = AnnotatedSequence(
    name="dog", is_video=True, frame_names=("00000",), frame_urls=("00000",), annotation_urls={}
)


def first_mask(url: str) -> np.ndarray:
    predictions = find_predictions(url, LIMITS)
    place = predictions.find(DOG, 0)
    (mask,) = read_predictions(url, predictions.kind, [place], LIMITS)
    return mask


def zipped(folder: Path, name: str, data: bytes, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    path = folder / "making.zip"
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(name, data)
    made = path.read_bytes()
    path.unlink()
    return made


def archive_cases(folder: Path) -> tuple[dict[str, bytes], set[str]]:
    """Zips by name, and the names of those that hold the mask."""
    slips = (
        "../dog/00000.png",
        "/dog/00000.png",
        "..\\dog\\00000.png",
        "C:\\dog\\00000.png",
        "dog/../dog/00000.png",
    )
    good = {f"slip{number}": zipped(folder, name, png()) for number, name in enumerate(slips)}
    plain = zipped(folder, "dog/00000.png", png(), zipfile.ZIP_STORED)
    bomb = zipped(folder, "dog/00000.png", bytes(2**27))
    pixels = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    claims = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + pixels
    claims += struct.pack(">I", zlib.crc32(b"IHDR" + pixels))
    central = plain.index(b"PK\x01\x02")
    bad = {
        "bomb": bomb,
        "bomb-that-lies": bomb.replace(struct.pack("<I", 2**27), struct.pack("<I", 2**20)),
        "claims-pixels": zipped(folder, "dog/00000.png", claims),
        "encrypted": plain[:6] + b"\x01" + plain[7 : central + 8] + b"\x01" + plain[central + 9 :],
        "unknown-method": plain[:8] + b"\x63" + plain[9 : central + 10] + b"\x63" + plain[central + 11 :],
        "no-mask": zipped(folder, "dog/00000.png", b"this is text"),
        "null-name": zipped(folder, "dog/00000.png\x00.txt", png()),
        "other": zipped(folder, "README.txt", b"x"),
    }
    return good | bad | flipped(plain, 12, random.Random(SEED)), set(good)


def test_archives_of_predictions(tmp_path):
    cases, good = archive_cases(tmp_path)
    place = tmp_path / "place"
    place.mkdir()

    def take(name: str, data: bytes) -> None:
        (place / "masks.zip").write_bytes(data)
        assert first_mask(str(place / "masks.zip")).shape == (8, 8)

    found = outcomes("archives", cases, take)
    assert {name for name in good if found[name] != "done"} == set()
    certain = set(cases) - good - {name for name in cases if name.startswith("flipped")} - {"null-name"}
    assert {name for name in certain if found[name] != "refused"} == set()
    assert {path.name for path in tmp_path.rglob("*")} == {"place", "masks.zip"}


def test_shards_of_masks(tmp_path):
    config = SegmentConfig(images="in", model="model", output=str(tmp_path))
    dataset = Dataset.open(str(tmp_path), kind="masks", config=config, schema_version=1)
    rle = encode_mask(np.eye(8, dtype=np.bool_))

    def shard(height_px: int | None, width_px: int | None, counts: bytes) -> bytes:
        row = MaskRow(source="dog", frame_index=0, height_px=height_px, width_px=width_px, mask_rle=counts)
        path = Path(dataset.shard_url("unit"))
        dataset.write_shard("unit", mask_table([row], source="dog", segments=False))
        return path.read_bytes()

    good = shard(8, 8, rle)
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"source": ["dog"], "frame_index": ["zero"]}), other)
    cases = {
        "good": good,
        "too-small": shard(2, 2, rle),
        "huge": shard(2**30, 2**30, rle),
        "negative": shard(-8, -8, rle),
        "no-size": shard(None, None, rle),
        "noise-rle": shard(8, 8, random.Random(SEED).randbytes(50)),
        "endless-rle": shard(8, 8, b"o" * 1000),
        "other-columns": other.read_bytes(),
        **flipped(good, 12, random.Random(SEED)),
    }

    def take(name: str, data: bytes) -> None:
        Path(dataset.shard_url("unit")).write_bytes(data)
        first_mask(str(tmp_path))

    found = outcomes("mask shards", cases, take)
    assert found["good"] == "done"
    certain = set(cases) - {"good"} - {name for name in cases if name.startswith("flipped")}
    assert {name for name in certain if found[name] != "refused"} == set()


def test_lists_of_inputs(tmp_path):
    path = tmp_path / "list.parquet"
    pq.write_table(pa.table({"url": ["a.mp4"]}), path)
    good = path.read_bytes()
    pq.write_table(pa.table({}), path)
    empty = path.read_bytes()
    pq.write_table(pa.table({"url": [[1, 2]], "n": [1]}), path)
    nested = path.read_bytes()
    names = pa.DictionaryArray.from_arrays(pa.array(np.zeros(2**13, np.int32)), ["a" * 2**20])
    bomb = pa.table({"url": names})
    pq.write_table(bomb, path)
    cases = {f"list.parquet {name}": data for name, data in flipped(good, 12, random.Random(SEED)).items()}
    cases |= {"list.parquet good": good, "list.parquet empty": empty, "list.parquet nested": nested}
    cases |= {"list.parquet bomb": path.read_bytes()}
    cases |= {
        "list.txt good": b"a.mp4\n\n# no\n",
        "list.txt binary": bytes(range(256)),
        "list.csv good": b"id,url\n1,a.mp4\n",
        "list.csv short": b"id,url\n1\n2,a.mp4\n",
        "list.csv large-field": b"url\n" + b"a" * 200_000 + b"\n",
        "list.csv binary": bytes(range(256)),
        "list.csv null": b"url\n\x00.mp4\n",
    }

    def take(name: str, data: bytes) -> None:
        file = tmp_path / name.split(" ")[0]
        file.write_bytes(data)
        assert list(find_videos(str(file)))

    found = outcomes("lists", cases, take)
    assert all(found[name] == "done" for name in cases if name.endswith(("good", "short")))
    for name in (
        "parquet empty",
        "parquet text",
        "parquet bomb",
        "txt binary",
        "csv large-field",
        "csv binary",
    ):
        assert found[f"list.{name}"] == "refused"


YAML = {
    "references": "a: &a [x, x]\nvideos: *a\n",
    "laughs": "a: &a [l, l]\n"
    + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    "itself": "videos: &v [*v]\n",
    "deep": "videos: " + "[" * 100_000,
    "deep-mapping": "a: {" * 5_000,
    "object": "videos: !!python/object/apply:os.system ['touch written']\n",
    "name": "videos: !!python/name:os.system\n",
    "tag": "videos: !unknown x\n",
    "binary": "\x00\x01\x02",
    "tabs": "videos:\n\t- a\n",
    "list": "- videos\n- output\n",
    "text": "this is text",
    "number": "17",
    "twice": "videos: a\nvideos: b\n",
    "two-documents": "videos: a\n---\nvideos: b\n",
    "wrong-kind": "decode: [1, 2]\n",
    "interpolated-nothing": "videos: ${nothing}\n",
    "interpolated-itself": "videos: ${videos}\n",
    "unknown-resolver": "videos: ${rm:-rf}\n",
    "number-too-long": "decode:\n  stride: " + "9" * 5_000 + "\n",
    "not-a-number": "decode:\n  timeout_s: .nan\n",
    "endless-time": "decode:\n  timeout_s: .inf\n",
    "merge": "<<: [1]\n",
    "null-key": "null: 1\n",
    "list-key": "? [a]\n: 1\n",
    "colours": "videos: '\x1b[31m'\n",
}


def test_configurations(tmp_path):
    cases = {name: text.encode() for name, text in YAML.items()}
    cases |= {"latin": "videos: \xe9".encode("latin-1"), "large": b"# " + b"x" * 2**21 + b"\nvideos: a\n"}
    cases |= {"utf16": "videos: a".encode("utf-16"), "zip": zipped(tmp_path, "a", b"b"), "image": png()}

    def take(name: str, data: bytes) -> None:
        (tmp_path / "c.yaml").write_bytes(data)
        load_config(PrepareConfig, str(tmp_path / "c.yaml"), ["output=o"])

    found = outcomes("configurations", cases, take)
    assert [name for name in cases if found[name] == "done"] == []
    assert {path.name for path in tmp_path.iterdir()} == {"c.yaml"}
    assert not Path("written").exists()


@pytest.mark.parametrize("word", ["estimate_flow.gaps=" + "[" * 5_000, "estimate_flow.gaps=[&a [1], *a]"])
def test_words_are_read_like_files(word):
    with pytest.raises(GwmError):
        load_config(PrepareConfig, None, ["videos=v", "output=o", word])


def json_cases(good: bytes) -> dict[str, bytes]:
    return {
        **flipped(good, 8, random.Random(SEED)),
        "deep": b"[" * 200_000,
        "list": b"[]",
        "null": b"null",
        "no-keys": b"{}",
        "long-number": b'{"kind": ' + b"9" * 10_000 + b"}",
        "nan": b'{"kind": NaN, "config": {}}',
        "empty-config": b'{"kind": "flow", "config": {}}',
        "config-of-lists": b'{"kind": "flow", "config": {"estimate_flow.gaps": [1]}}',
    }


def test_descriptions_of_datasets(tmp_path):
    config = PrepareConfig(videos="v", output=str(tmp_path))
    Dataset.open(str(tmp_path), kind="flow", config=config, schema_version=1)
    cases = json_cases((tmp_path / "dataset.json").read_bytes())

    def take(name: str, data: bytes) -> None:
        (tmp_path / "dataset.json").write_bytes(data)
        Dataset.open(str(tmp_path), kind="flow", config=config, schema_version=1)

    def read(name: str, data: bytes) -> None:
        (tmp_path / "dataset.json").write_bytes(data)
        open_flow_dataset(str(tmp_path))

    found = outcomes("dataset.json", cases, take)
    assert all(found[name] == "refused" for name in cases if not name.startswith("flipped"))
    assert set(outcomes("dataset.json, read", cases, read).values()) == {"refused"}  # there is no shard


def test_models(tmp_path, tiny_model):
    folder = tmp_path / "model"
    folder.mkdir()
    weights = (Path(tiny_model) / "segmenter.safetensors").read_bytes()
    described = (Path(tiny_model) / "segmenter.json").read_bytes()
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    description = json.loads(described)

    def sized(**values: int) -> bytes:
        return json.dumps(description | {"segmenter": description["segmenter"] | values}).encode()

    header = struct.pack("<Q", 2**62)
    cases = {f"weights {name}": data for name, data in flipped(weights, 6, random.Random(SEED)).items()}
    cases |= {f"json {name}": data for name, data in json_cases(described).items()}
    cases |= {
        "weights other": path.read_bytes(),
        "weights header": header + weights[8:],
        "weights pickle": b"PK\x03\x04" + bytes(100),
        "json masks": sized(num_masks=10**6),
        "json channels": sized(hidden_channels=10**6),
        "json endless": sized(hidden_channels=10**12),
        "json no-size": sized(height_px=0),
    }

    def take(name: str, data: bytes) -> None:
        kind = name.split(" ")[0]
        (folder / "segmenter.safetensors").write_bytes(data if kind == "weights" else weights)
        (folder / "segmenter.json").write_bytes(data if kind == "json" else described)
        read_model_card(str(folder))

    found = outcomes("models", cases, take)
    done = {name for name in cases if found[name] == "done"}
    assert {name for name in done if "flipped" not in name} == set()


def test_weights_of_flow_networks(tmp_path):
    state = raft_small(weights=None).state_dict()
    torch.save(state, tmp_path / "good.pth")
    good, path = (tmp_path / "good.pth").read_bytes(), tmp_path / "weights.pth"

    def saved(value: object) -> bytes:
        torch.save(value, path)
        return path.read_bytes()

    first = next(iter(state))
    cases = flipped(good, 12, random.Random(SEED)) | {
        "list": saved([state[first]]),
        "tensor": saved(state[first]),
        "nothing-in-it": saved({}),
        "one-missing": saved({name: value for name, value in state.items() if name != first}),
        "one-more": saved(state | {"module.more": state[first]}),
        "other-shape": saved(state | {first: torch.zeros(3)}),
        "not-tensors": saved(dict.fromkeys(state, 1)),
        "safetensors-header": struct.pack("<Q", 2**62) + good[8:],
    }

    def take(name: str, data: bytes) -> None:
        path.write_bytes(data)
        load_estimator(EstimateFlowConfig(estimator="raft_small", weights=str(path)), "cpu")

    found = outcomes("weights of RAFT", cases, take)
    assert {name for name in cases if found[name] == "done" and "flipped" not in name} == set()


def test_weights_of_backbones(tmp_path):
    rng, path = random.Random(SEED), tmp_path / "weights.pth"
    torch.save({"weight": torch.zeros(3)}, path)
    cases = flipped(path.read_bytes(), 6, rng)
    cases |= {f"noise{number}": rng.randbytes(50) for number in range(20)}
    config = BackboneConfig(weights=str(path))

    def take(name: str, data: bytes) -> None:
        path.write_bytes(data)
        try:
            load_weights(torch.nn.Linear(2, 3), config, is_transformer=False)
        except ValueError as error:
            raise GwmError(str(error)) from error

    assert set(outcomes("weights of a backbone", cases, take).values()) == {"refused"}


def test_verified_datasets(tmp_path):
    config = PrepareConfig(videos="v", output=str(tmp_path))
    dataset = Dataset.open(str(tmp_path), kind="flow", config=config, schema_version=1)
    table = pa.table(
        {"video": ["a"] * 50, "frame_index": range(50)}, metadata={"source": "a", "kind": "flow"}
    )
    unit = unit_id("a")
    dataset.write_manifest([dataset.write_shard(unit, table)])
    assert verify(str(tmp_path)) == []
    shard, manifest = Path(dataset.shard_url(unit)), tmp_path / "manifest.parquet"
    good = {path: path.read_bytes() for path in (shard, manifest)}
    cases = {
        f"{path.stem} {name}": data
        for path, content in good.items()
        for name, data in flipped(content, 10, random.Random(SEED)).items()
    }

    def take(name: str, data: bytes) -> None:
        for path, content in good.items():
            path.write_bytes(data if name.startswith(path.stem) else content)
        problems = verify(str(tmp_path))
        if problems:
            raise GwmError(problems[0])

    found = outcomes("verify", cases, take)
    assert {found[name] for name in cases if name.startswith(shard.stem)} == {"refused"}


def test_images_of_a_list_with_strange_entries(tmp_path):
    entries = ["../../../etc/passwd.jpg", "a\x1b[2J.jpg", "%2e%2e/x.jpg", "x" * 1000 + ".jpg", "nowhere.jpg"]
    (tmp_path / "list.txt").write_text("\n".join(entries))
    assert len(list(find_images(str(tmp_path / "list.txt")))) == len(entries)
