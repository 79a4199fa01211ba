"""Files on the Hugging Face hub, through its own client, from a server on loopback that answers as the hub does."""

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.hub_server import hub_server

READ_ALL = """
from pipeline import storage
from pipeline.images import read_image
from pipeline.inputs import find_images, find_videos, frame_urls
root = "hf://datasets/me/davis"
(bear,) = find_videos(f"{root}/JPEGImages/480p")
print(bear.name, bear.kind, len(frame_urls(bear)), read_image(frame_urls(bear)[2]).shape)
print(sorted(source.name for source in find_images(f"{root}/photos/*.jpg")))
with storage.open_read(f"{root}/photos/a.jpg") as file:
    file.seek(2)
    print(file.read(1))
print(storage.exists(f"{root}/none.jpg"), storage.size_bytes(f"{root}/photos/a.jpg"))
"""


def hub_python(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs code with a Hugging Face cache of its own."""
    values = {**os.environ, "HF_HOME": str(folder / "hub"), "HF_HUB_DISABLE_XET": "1", **environment}
    values.pop("HF_HUB_OFFLINE" if "HF_HUB_OFFLINE" not in environment else "", None)
    return subprocess.run(
        [sys.executable, "-c", code], env=values, capture_output=True, text=True, check=False
    )


@pytest.fixture
def jpeg() -> bytes:
    return cv2.imencode(".jpg", np.full((20, 30, 3), 120, np.uint8))[1].tobytes()


def test_images_and_videos_of_a_dataset_on_the_hub_are_found_and_read(jpeg: bytes, tmp_path: Path) -> None:
    frames = {f"JPEGImages/480p/bear/{number:05d}.jpg": jpeg for number in range(4)}
    photos = {"photos/a.jpg": jpeg, "photos/b.jpg": jpeg, "README.md": b"text"}
    with hub_server({"datasets/me/davis": frames | photos}) as (address, _):
        done = hub_python(READ_ALL, tmp_path, HF_ENDPOINT=address)
    assert done.stdout.splitlines() == [
        "bear frames 4 (20, 30, 3)",
        "['a.jpg', 'b.jpg']",
        "b'\\xff'",
        f"False {len(jpeg)}",
    ], done.stderr


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "is on the Hugging Face hub, and HF_HUB_OFFLINE is set"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "Cannot reach the storage server of hf://datasets/me/davis"),
    ],
)
def test_without_the_hub_there_is_one_sentence(
    environment: dict[str, str], said: str, tmp_path: Path
) -> None:
    code = "import sys; from pipeline.cli import main; sys.exit(main(sys.argv[1:]))"
    words = ["export", "format=coco", "masks=hf://datasets/me/davis", f"output={tmp_path}/x"]
    done = hub_python(f"import sys; sys.argv[1:] = {words}; {code}", tmp_path, **environment)
    assert done.returncode == 1
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
